/* Resolves, binds, listens, and asks what the port became. */
#include "common/base/listen.h"

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

/* -1: errno says why. */
static int open_on(const struct addrinfo *address, const struct bt_listen *config) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (config->send_buffer_bytes)
        set_int(fd, SOL_SOCKET, SO_SNDBUF, config->send_buffer_bytes);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, config->backlog) == 0)
        return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

bt_status bt_listen_open(const struct bt_listen *config, int *fd, char address[BT_ADDRESS_BYTES],
                         struct bt_error *err) {
    char digits[8];
    snprintf(digits, sizeof digits, "%u", config->port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(config->host, digits, &hints, &list);
    if (code != 0)
        return bt_fail(err, BT_E_INVALID, "host \"%.64s\": %s", config->host, gai_strerror(code));
    int opened = -1;
    for (const struct addrinfo *at = list; at && opened < 0; at = at->ai_next)
        opened = open_on(at, config);
    int reason = errno;
    freeaddrinfo(list);
    if (opened < 0)
        return bt_fail(err, BT_E_IO, "cannot listen for %s on %.64s:%u: %s", config->what,
                       config->host, config->port, strerror(reason));
    name_address(opened, config->host, config->port, address);
    *fd = opened;
    return BT_OK;
}
