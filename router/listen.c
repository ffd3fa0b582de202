/* Listens for clients on one address. */
#include "router/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/address.h"
#include "common/base/log.h"

enum {
    BACKLOG = 4096,             /* with the usual 128, clients of a burst wait for SYN retries */
    SEND_BUFFER_BYTES = 131072, /* else the kernel lets it grow to 4 MB per socket */
};

static void set_int(int fd, int level, int name, int value) {
    /* A hint: the port works without it. */
    if (setsockopt(fd, level, name, &value, sizeof value) != 0)
        BT_WARN("socket option %d of level %d: %s", name, level, strerror(errno));
}

static void name_address(int fd, const char *host, uint16_t port_asked,
                         char out[BT_ADDRESS_BYTES]) {
    struct sockaddr_storage bound = {0};
    socklen_t n = sizeof bound;
    struct bt_address address = {.port = port_asked};
    char port[8] = "";
    /* What cannot be named (it is bound, so it can) is shown as it was asked for. */
    if (getsockname(fd, (struct sockaddr *)&bound, &n) != 0 ||
        getnameinfo((struct sockaddr *)&bound, n, address.host, sizeof address.host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        snprintf(address.host, sizeof address.host, "%.60s", host);
    else
        address.port = (uint16_t)strtoul(port, NULL, 10);
    bt_address_format(&address, out);
}

bt_status bt_listen_open(const char *host, uint16_t port, const char *what, int *fd,
                         char address[BT_ADDRESS_BYTES], struct bt_error *err) {
    char digits[8];
    snprintf(digits, sizeof digits, "%u", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(host, digits, &hints, &list);
    if (code != 0)
        return bt_fail(err, BT_E_INVALID, "host \"%.64s\": %s", host, gai_strerror(code));
    int opened = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (opened >= 0) {
        set_int(opened, SOL_SOCKET, SO_REUSEADDR, 1);
        set_int(opened, IPPROTO_TCP, TCP_NODELAY, 1);
        set_int(opened, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
    }
    bt_status status = BT_OK;
    if (opened < 0 || bind(opened, list->ai_addr, list->ai_addrlen) != 0 ||
        listen(opened, BACKLOG) != 0) {
        status = bt_fail(err, BT_E_IO, "cannot listen for %s on %.64s:%u: %s", what, host, port,
                         strerror(errno));
        if (opened >= 0)
            close(opened);
    } else {
        name_address(opened, host, port, address);
        *fd = opened;
    }
    freeaddrinfo(list);
    return status;
}
