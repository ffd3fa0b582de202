/* A closed-loop client for streams over HTTP: time to first token, delay of each token from worker
 * to client, errors; one line of JSON.
 *
 *   sse_load --port P [--streams N] [--requests N] [--tokens N] [--words N] [--vocab N]
 *            [--seconds S] [--ramp-us N] [--ca FILE] [--fresh] [--by-index] [--hold]
 *
 * Each stream sends its next request when the last one has ended, on the same connection (--fresh:
 * on a new one, which its time to first token then includes). --ca: HTTPS, a certificate for
 * "localhost" that this authority signed. --words: a prompt of so many words, else of 16 token ids.
 * --by-index: the worker counts (mock_worker.c) and every token is checked, its delay is not known.
 * --hold: once every stream has its first token, print a line and wait for the end of stdin. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common/base/tls.h"
#include "tests/bench/load.h"

enum { TAIL_BYTES = 96, READ_BYTES = 65536, EVENTS = 512 };

struct stream {
    int fd;
    struct bt_tls_stream *tls;
    uint32_t n_tokens, n_tail;
    uint64_t sent_us;
    char tail[TAIL_BYTES]; /* the end of what was read, where a mark may be cut */
};

struct sse {
    struct load load;
    int epoll;
    struct bt_tls *tls;
    char *request;
    size_t request_bytes;
};

static void make_request(struct sse *sse) {
    const struct load *load = &sse->load;
    size_t room = 1024 + 12 * (size_t)(load->words + PROMPT_IDS);
    char *body = malloc(room), *at = body, *words = load_words(load);
    sse->request = malloc(room + 256);
    if (!body || !sse->request)
        exit(1);
    at += sprintf(at, "{\"prompt\":");
    if (words)
        at += sprintf(at, "\"%s\"", words);
    for (uint32_t i = 0; i < PROMPT_IDS && !words; i++)
        at += sprintf(at, "%c%u", i ? ',' : '[', FIRST_ID + i);
    at += sprintf(at,
                  "%s,\"max_tokens\":%u,\"stream\":true,\"ignore_eos\":true,"
                  "\"return_token_ids\":true}",
                  words ? "" : "]", load->tokens);
    sse->request_bytes =
        (size_t)sprintf(sse->request,
                        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                        load->port, (size_t)(at - body));
    memcpy(sse->request + sse->request_bytes, body, (size_t)(at - body));
    sse->request_bytes += (size_t)(at - body);
    free(words);
    free(body);
}

/* ---- the connection ---- */

static void drop(struct stream *stream) {
    bt_tls_stream_destroy(stream->tls);
    stream->tls = NULL;
    if (stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}

static bool wait_for(const struct stream *stream) {
    struct pollfd poll_fd = {.fd = stream->fd,
                             .events = bt_tls_wants_write(stream->tls) ? POLLOUT : POLLIN};
    return poll(&poll_fd, 1, 10000) == 1;
}

/* One handshake after the other: the other streams wait meanwhile. */
static bt_status shake_hands(struct sse *sse, struct stream *stream, struct bt_error *err) {
    if (fcntl(stream->fd, F_SETFL, O_NONBLOCK) != 0)
        return bt_fail(err, BT_E_IO, "fcntl: %s", strerror(errno));
    stream->tls = bt_tls_connect(sse->tls, stream->fd, 0, "localhost");
    if (!stream->tls)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for TLS");
    bt_status status = bt_tls_handshake(stream->tls, err);
    while (status == BT_AGAIN)
        status = wait_for(stream) ? bt_tls_handshake(stream->tls, err)
                                  : bt_fail(err, BT_E_DEADLINE, "no handshake in time");
    return status;
}

static bt_status dial(struct sse *sse, struct stream *stream, struct bt_error *err) {
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)sse->load.port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = stream};
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (stream->fd < 0 ||
        connect(stream->fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        epoll_ctl(sse->epoll, EPOLL_CTL_ADD, stream->fd, &event) != 0)
        return bt_fail(err, BT_E_IO, "connect: %s", strerror(errno));
    return sse->tls ? shake_hands(sse, stream, err) : BT_OK;
}

static bt_status send_request(struct sse *sse, struct stream *stream, struct bt_error *err) {
    for (size_t done = 0, n; stream->tls && done < sse->request_bytes; done += n) {
        bt_status status =
            bt_tls_write(stream->tls, sse->request + done, sse->request_bytes - done, &n, err);
        if (status == BT_AGAIN && wait_for(stream))
            n = 0;
        else if (status != BT_OK)
            return status;
    }
    if (!stream->tls && send(stream->fd, sse->request, sse->request_bytes, MSG_NOSIGNAL) !=
                            (ssize_t)sse->request_bytes)
        return bt_fail(err, BT_E_IO, "send: %s", strerror(errno));
    return BT_OK;
}

/* Sends the next request, on a new connection where there is none. */
static void start(struct sse *sse, struct stream *stream) {
    struct load *load = &sse->load;
    struct bt_error err = {0};
    if (load->n_started == load->n_requests)
        return;
    load->n_started++;
    stream->n_tokens = stream->n_tail = 0;
    uint64_t begun_us = load_now_us();
    bt_status status = stream->fd < 0 ? dial(sse, stream, &err) : BT_OK;
    stream->sent_us = load->fresh ? begun_us : load_now_us();
    if (status == BT_OK)
        status = send_request(sse, stream, &err);
    if (status != BT_OK) {
        drop(stream);
        load_fail(load, err.text);
        load->n_ended++;
    }
}

/* ---- what comes back ---- */

/* True where the answer has ended. */
static bool scan(struct load *load, struct stream *stream, char *data, size_t n) {
    static const char mark[] = "\"token_ids\":[";
    uint64_t now = load_now_us();
    char *at = data, *end = data + n, *found;
    while ((found = memmem(at, (size_t)(end - at), mark, sizeof mark - 1))) {
        char *digits = found + sizeof mark - 1,
             *close = memchr(digits, ']', (size_t)(end - digits));
        if (!close)
            break;
        load_take(load, stream->n_tokens++, (uint32_t)strtoul(digits, NULL, 10), stream->sent_us,
                  now);
        at = close + 1;
    }
    if (memmem(at, (size_t)(end - at), "\r\n0\r\n\r\n", 7))
        return true;
    size_t keep = (size_t)(end - at);
    if (keep > TAIL_BYTES)
        keep = TAIL_BYTES;
    memcpy(stream->tail, end - keep, keep);
    stream->n_tail = (uint32_t)keep;
    return false;
}

/* BT_OK with *n = 0: the server has closed. */
static bt_status receive(struct stream *stream, char *to, size_t *n, struct bt_error *err) {
    *n = 0;
    if (stream->tls) {
        bt_status status = bt_tls_read(stream->tls, to, READ_BYTES, n, err);
        return status == BT_DONE ? BT_OK : status;
    }
    ssize_t got = recv(stream->fd, to, READ_BYTES, MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN ? BT_AGAIN : bt_fail(err, BT_E_IO, "recv: %s", strerror(errno));
    *n = (size_t)got;
    return BT_OK;
}

/* One read; true where more may be there that no event will tell of. */
static bool take(struct sse *sse, struct stream *stream) {
    static char data[TAIL_BYTES + READ_BYTES + 1];
    struct load *load = &sse->load;
    struct bt_error err;
    size_t n;
    memcpy(data, stream->tail, stream->n_tail);
    bt_status status = receive(stream, data + stream->n_tail, &n, &err);
    if (status == BT_AGAIN)
        return false;
    size_t all = stream->n_tail + n;
    data[all] = 0;
    bool refused = !stream->n_tokens && all > 12 && !strncmp(data, "HTTP/1.1 ", 9) &&
                   strncmp(data + 9, "200", 3) != 0;
    if (status != BT_OK || !n || refused) {
        drop(stream);
        load_fail(load, refused                ? data
                        : n || status != BT_OK ? err.text
                                               : "the connection was cut");
        load->n_ended++;
        start(sse, stream);
        return false;
    }
    if (scan(load, stream, data, all)) {
        load_end(load, stream->n_tokens);
        if (load->fresh)
            drop(stream);
        start(sse, stream);
        return !load->fresh && stream->tls;
    }
    return stream->tls != NULL;
}

static void turn(struct sse *sse, int timeout_ms) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(sse->epoll, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct stream *stream = events[i].data.ptr;
        while (stream->fd >= 0 && take(sse, stream))
            continue;
    }
}

static void run(struct sse *sse, struct stream *streams) {
    struct load *load = &sse->load;
    for (uint32_t i = 0; i < load->n_streams; i++) {
        streams[i].fd = -1;
        start(sse, &streams[i]);
        for (uint64_t until = load_now_us() + load->ramp_us;
             load->ramp_us && load_now_us() < until;)
            turn(sse, 0);
    }
    while (load_goes_on(load))
        turn(sse, 100);
}

int main(int argc, char **argv) {
    static struct sse sse;
    struct bt_error err;
    if (!load_parse(&sse.load, argc, argv))
        return 2;
    if (sse.load.ca &&
        bt_tls_create(&(struct bt_tls_config){.ca = sse.load.ca}, &sse.tls, &err) != BT_OK) {
        fprintf(stderr, "sse_load: %s\n", err.text);
        return 2;
    }
    struct stream *streams = calloc(sse.load.n_streams, sizeof *streams);
    sse.epoll = epoll_create1(0);
    if (!streams || sse.epoll < 0)
        return 1;
    make_request(&sse);
    run(&sse, streams);
    load_report(&sse.load);
    for (uint32_t i = 0; i < sse.load.n_streams; i++)
        drop(&streams[i]);
    bt_tls_destroy(sse.tls);
    free(streams);
    free(sse.request);
    return sse.load.n_errors || sse.load.n_unordered ? 1 : 0;
}
