/* A worker that costs nothing and speaks HTTP itself: what a router is compared with.
 *
 *   mock_http [--port P] [--interval-us N] [--vocab N]
 *
 * Streams the chunks that the router would send, for a request of sse_load: token 0 at once, the
 * others one per step of a clock that ticks at multiples of the interval; one send() per token. */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { CONNECTIONS = 32768, REQUEST_BYTES = 16384, FIRST_ID = 100, EVENTS = 512 };

struct connection {
    char in[REQUEST_BYTES];
    size_t n_in;
    uint32_t left; /* tokens to send */
};

static struct connection *connections[CONNECTIONS];
static int streaming[CONNECTIONS]; /* descriptors with tokens left */
static size_t n_streaming;
static uint32_t vocab = 500;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void drop(int fd) {
    for (size_t i = 0; i < n_streaming; i++)
        if (streaming[i] == fd)
            streaming[i] = streaming[--n_streaming];
    close(fd);
    free(connections[fd]);
    connections[fd] = NULL;
}

/* False where the connection is lost. What a socket does not take at once ends it: the clients of a
 * bench read. */
static bool put(int fd, const char *data, size_t n) {
    return send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

static bool send_token(int fd, const char *head) {
    struct connection *c = connections[fd];
    char event[512], out[1024];
    bool last = c->left == 1;
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"cmpl-0000000000100000\",\"object\":\"text_completion\","
                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                     "\"text\":\" word\",\"logprobs\":null,\"finish_reason\":%s,"
                     "\"token_ids\":[%" PRIu64 "]}]}\n\n%s",
                     last ? "\"length\"" : "null", FIRST_ID + now_us() / 100 % (vocab - FIRST_ID),
                     last ? "data: [DONE]\n\n" : "");
    int m = snprintf(out, sizeof out, "%s%06x\r\n%s\r\n%s", head, (unsigned)n, event,
                     last ? "0\r\n\r\n" : "");
    c->left--;
    return put(fd, out, (size_t)m);
}

/* Answers a whole request, if there is one; false where the connection is lost. */
static bool answer(int fd) {
    struct connection *c = connections[fd];
    c->in[c->n_in] = 0;
    char *body = strstr(c->in, "\r\n\r\n"), *length = strcasestr(c->in, "content-length:");
    if (!body || !length)
        return true;
    size_t whole = (size_t)(body - c->in) + 4 + strtoul(length + 15, NULL, 10);
    if (c->n_in < whole)
        return true;
    char *tokens = strstr(body, "\"max_tokens\":");
    c->left = tokens ? (uint32_t)strtoul(tokens + 13, NULL, 10) : 16;
    c->n_in = 0;
    if (!send_token(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                        "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"))
        return false;
    if (c->left)
        streaming[n_streaming++] = fd;
    return true;
}

static void step(void) {
    for (size_t i = n_streaming; i-- > 0;) {
        int fd = streaming[i];
        if (!send_token(fd, ""))
            drop(fd);
        else if (!connections[fd]->left)
            streaming[i] = streaming[--n_streaming];
    }
}

static void accept_all(int epoll, int listener) {
    int one = 1;
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= CONNECTIONS || !(connections[fd] = malloc(sizeof *connections[fd]))) {
            close(fd);
            continue;
        }
        connections[fd]->n_in = connections[fd]->left = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

static void on_readable(int fd) {
    struct connection *c = connections[fd];
    if (!c)
        return;
    ssize_t n = recv(fd, c->in + c->n_in, sizeof c->in - 1 - c->n_in, 0);
    if (n > 0)
        c->n_in += (size_t)n;
    if ((n < 0 && errno != EAGAIN) || n == 0 || (n > 0 && !answer(fd)))
        drop(fd);
}

static void run(int listener, uint64_t interval_us) {
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.fd = listener};
    int epoll = epoll_create1(0);
    uint64_t step_at = (now_us() / interval_us + 1) * interval_us;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        uint64_t now = now_us();
        uint64_t wait_us = n_streaming ? (step_at > now ? step_at - now : 0) : 1000000;
        struct timespec wait = {(time_t)(wait_us / 1000000), (long)(wait_us % 1000000 * 1000)};
        int n = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                on_readable(events[i].data.fd);
        }
        now = now_us();
        if (now >= step_at) {
            step();
            step_at = (now / interval_us + 1) * interval_us;
        }
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},
        {"interval-us", 1, NULL, 'i'},
        {"vocab", 1, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    uint64_t port = 0, interval_us = 10000;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 10) : 0;
        if (o == 'p')
            port = value;
        else if (o == 'i')
            interval_us = value;
        else if (o == 'v')
            vocab = (uint32_t)value;
        else
            return 2;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    if (listener < 0 || !interval_us || vocab <= FIRST_ID ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 4096) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &n) != 0) {
        perror("mock_http");
        return 1;
    }
    printf("ready: http=127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    run(listener, interval_us);
    return 0;
}
