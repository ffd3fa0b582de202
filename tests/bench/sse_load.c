/* A closed-loop client for streams: time to first token, delay of each token from worker to client,
 * errors; one line of JSON.
 *
 *   sse_load --port P [--streams N] [--requests N] [--tokens N] [--words N] [--vocab N]
 *            [--seconds S] [--ramp-us N] [--hold] [--tls]
 *
 * Each stream sends its next request when the last one has ended, on the same connection. Token ids
 * tell when they were sent (mock_worker.c, mock_http.c). --words: a prompt of so many words, else
 * of 16 token ids. --tls: the server speaks HTTPS; its certificate is not looked at. --hold: once
 * every stream has its first token, print a line and wait for the end of stdin. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { TAIL_BYTES = 96, READ_BYTES = 65536, FIRST_ID = 100, DELAYS_MAX = 1 << 24, EVENTS = 512 };

struct stream {
    int fd;
    SSL *tls; /* NULL: plain */
    uint32_t n_tokens, n_tail;
    uint64_t sent_us;
    char tail[TAIL_BYTES]; /* the end of what was read, where a mark may be cut */
};

struct samples {
    uint32_t *us;
    size_t n, capacity;
};

struct load {
    int port, epoll;
    uint32_t n_streams, tokens, words, vocab, ramp_us;
    uint64_t n_requests, n_started, n_ended, n_tokens, n_errors;
    double seconds;
    bool hold;
    SSL_CTX *tls;
    char *request;
    size_t request_bytes;
    struct samples ttft, delay;
    char error[256];
};

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void add_sample(struct samples *s, uint64_t us) {
    if (s->n == DELAYS_MAX)
        return;
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 4096;
        s->us = realloc(s->us, s->capacity * sizeof *s->us);
        if (!s->us)
            exit(1);
    }
    s->us[s->n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The samples must be sorted. */
static uint32_t quantile(const struct samples *s, double q) {
    return s->n ? s->us[(size_t)((double)(s->n - 1) * q)] : 0;
}

static void make_request(struct load *load) {
    size_t room = 1024 + 12 * (size_t)(load->words + 16);
    char *body = malloc(room), *at = body;
    load->request = malloc(room + 256);
    if (!body || !load->request)
        exit(1);
    at += sprintf(at, "{\"prompt\":");
    if (load->words) {
        *at++ = '"';
        for (uint32_t i = 0; i < load->words; i++)
            at += sprintf(at, "%sword%c", i ? " " : "", (char)('a' + i % 26));
        *at++ = '"';
    } else {
        for (uint32_t i = 0; i < 16; i++)
            at += sprintf(at, "%s%u", i ? "," : "[", 100 + i);
        *at++ = ']';
    }
    at += sprintf(
        at, ",\"max_tokens\":%u,\"stream\":true,\"ignore_eos\":true,\"return_token_ids\":true}",
        load->tokens);
    load->request_bytes =
        (size_t)sprintf(load->request,
                        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                        load->port, (size_t)(at - body));
    memcpy(load->request + load->request_bytes, body, (size_t)(at - body));
    load->request_bytes += (size_t)(at - body);
    free(body);
}

static void fail_stream(struct load *load, struct stream *stream, const char *why) {
    load->n_errors++;
    if (!load->error[0])
        snprintf(load->error, sizeof load->error, "%.200s", why);
    SSL_free(stream->tls);
    stream->tls = NULL;
    if (stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}

/* After connect; the socket still blocks. */
static bool shake_hands(struct load *load, struct stream *stream) {
    if (!load->tls)
        return true;
    stream->tls = SSL_new(load->tls);
    return stream->tls && SSL_set_fd(stream->tls, stream->fd) == 1 &&
           SSL_connect(stream->tls) == 1 && fcntl(stream->fd, F_SETFL, O_NONBLOCK) == 0;
}

static bool send_all(const struct stream *stream, const char *bytes, size_t n) {
    if (stream->tls)
        return SSL_write(stream->tls, bytes, (int)n) == (int)n;
    return send(stream->fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n;
}

/* As recv: -1 with EAGAIN where there is nothing. */
static ssize_t receive(const struct stream *stream, char *to, size_t n_max) {
    if (!stream->tls)
        return recv(stream->fd, to, n_max, MSG_DONTWAIT);
    int n = SSL_read(stream->tls, to, (int)n_max);
    errno = n < 0 && SSL_get_error(stream->tls, n) == SSL_ERROR_WANT_READ ? EAGAIN : EPROTO;
    return n;
}

/* Sends the next request, on a new connection where there is none. */
static void start(struct load *load, struct stream *stream) {
    if (load->n_started == load->n_requests)
        return;
    load->n_started++;
    if (stream->fd < 0) {
        const struct sockaddr_in address = {.sin_family = AF_INET,
                                            .sin_port = htons((uint16_t)load->port),
                                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int one = 1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = stream};
        stream->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (stream->fd < 0 ||
            connect(stream->fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
            setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
            !shake_hands(load, stream) ||
            epoll_ctl(load->epoll, EPOLL_CTL_ADD, stream->fd, &event) != 0) {
            fail_stream(load, stream, strerror(errno));
            load->n_ended++;
            return;
        }
    }
    stream->n_tokens = stream->n_tail = 0;
    stream->sent_us = now_us();
    if (!send_all(stream, load->request, load->request_bytes)) {
        fail_stream(load, stream, strerror(errno));
        load->n_ended++;
    }
}

static void take_token(struct load *load, struct stream *stream, uint32_t id, uint64_t now) {
    uint64_t range = load->vocab - FIRST_ID;
    load->n_tokens++;
    if (!stream->n_tokens++)
        add_sample(&load->ttft, now - stream->sent_us);
    add_sample(&load->delay, (now / 100 % range + range - (id - FIRST_ID) % range) % range * 100);
}

/* True where the answer has ended. */
static bool scan(struct load *load, struct stream *stream, char *data, size_t n) {
    static const char mark[] = "\"token_ids\":[";
    uint64_t now = now_us();
    char *at = data, *end = data + n, *found;
    while ((found = memmem(at, (size_t)(end - at), mark, sizeof mark - 1))) {
        char *digits = found + sizeof mark - 1,
             *close = memchr(digits, ']', (size_t)(end - digits));
        if (!close)
            break;
        take_token(load, stream, (uint32_t)strtoul(digits, NULL, 10), now);
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

static void on_readable(struct load *load, struct stream *stream) {
    static char data[TAIL_BYTES + READ_BYTES + 1];
    if (stream->fd < 0)
        return;
    memcpy(data, stream->tail, stream->n_tail);
    ssize_t n = receive(stream, data + stream->n_tail, READ_BYTES);
    if (n < 0 && errno == EAGAIN)
        return;
    size_t all = stream->n_tail + (n > 0 ? (size_t)n : 0);
    data[all] = 0;
    bool refused = !stream->n_tokens && all > 12 && !strncmp(data, "HTTP/1.1 ", 9) &&
                   strncmp(data + 9, "200", 3) != 0;
    if (n <= 0 || refused) {
        fail_stream(load, stream, refused ? data : n ? strerror(errno) : "the connection was cut");
        load->n_ended++;
        start(load, stream);
    } else if (scan(load, stream, data, all)) {
        if (stream->n_tokens != load->tokens) {
            load->n_errors++;
            snprintf(load->error, sizeof load->error, "%u tokens instead of %u", stream->n_tokens,
                     load->tokens);
        }
        load->n_ended++;
        start(load, stream);
    }
}

static void report(struct load *load, uint64_t started_us) {
    struct rusage usage;
    double wall_s = (double)(now_us() - started_us) / 1e6;
    getrusage(RUSAGE_SELF, &usage);
    qsort(load->ttft.us, load->ttft.n, sizeof *load->ttft.us, by_size);
    qsort(load->delay.us, load->delay.n, sizeof *load->delay.us, by_size);
    for (char *c = load->error; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ')
            *c = ' ';
    printf("{\"streams\":%u,\"requests\":%" PRIu64 ",\"tokens\":%" PRIu64
           ",\"wall_s\":%.3f,\"tokens_s\":%.0f,\"ttft_p50_us\":%u,\"ttft_p99_us\":%u,"
           "\"delay_p50_us\":%u,\"delay_p99_us\":%u,\"errors\":%" PRIu64 ",\"client_cpu_s\":%.2f,"
           "\"error\":\"%.200s\"}\n",
           load->n_streams, load->n_ended, load->n_tokens, wall_s, (double)load->n_tokens / wall_s,
           quantile(&load->ttft, 0.5), quantile(&load->ttft, 0.99), quantile(&load->delay, 0.5),
           quantile(&load->delay, 0.99), load->n_errors,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
           load->error);
    fflush(stdout);
}

static void turn(struct load *load, int timeout_ms) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(load->epoll, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct stream *stream = events[i].data.ptr;
        do
            on_readable(load, stream);
        while (stream->tls && SSL_has_pending(stream->tls));
    }
}

static void run(struct load *load) {
    struct stream *streams = calloc(load->n_streams, sizeof *streams);
    uint64_t started_us = now_us();
    if (!streams)
        exit(1);
    for (uint32_t i = 0; i < load->n_streams; i++) {
        streams[i].fd = -1;
        start(load, &streams[i]);
        for (uint64_t until = now_us() + load->ramp_us; load->ramp_us && now_us() < until;)
            turn(load, 0);
    }
    while (load->n_ended < load->n_started || load->n_started < load->n_requests) {
        turn(load, 100);
        if (load->hold && load->ttft.n + load->n_errors >= load->n_streams) {
            char byte;
            report(load, started_us);
            while (read(STDIN_FILENO, &byte, 1) > 0)
                continue;
            return;
        }
        if ((double)(now_us() - started_us) / 1e6 > load->seconds) {
            load->n_errors += load->n_started - load->n_ended;
            snprintf(load->error, sizeof load->error, "out of time");
            break;
        }
    }
    report(load, started_us);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},    {"streams", 1, NULL, 's'}, {"requests", 1, NULL, 'r'},
        {"tokens", 1, NULL, 't'},  {"words", 1, NULL, 'w'},   {"vocab", 1, NULL, 'v'},
        {"seconds", 1, NULL, 'e'}, {"ramp-us", 1, NULL, 'u'}, {"hold", 0, NULL, 'h'},
        {"tls", 0, NULL, 'T'},     {NULL, 0, NULL, 0},
    };
    static struct load load = {
        .n_streams = 1, .n_requests = 1, .tokens = 64, .vocab = 500, .seconds = 60};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        uint32_t value = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        if (o == 'p')
            load.port = (int)value;
        else if (o == 's')
            load.n_streams = value;
        else if (o == 'r')
            load.n_requests = value;
        else if (o == 't')
            load.tokens = value;
        else if (o == 'w')
            load.words = value;
        else if (o == 'v')
            load.vocab = value;
        else if (o == 'e')
            load.seconds = value;
        else if (o == 'u')
            load.ramp_us = value;
        else if (o == 'h')
            load.hold = true;
        else if (o == 'T')
            load.tls = SSL_CTX_new(TLS_client_method());
        else
            return 2;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    load.epoll = epoll_create1(0);
    if (load.epoll < 0 || !load.port || load.vocab <= FIRST_ID)
        return 2;
    make_request(&load);
    run(&load);
    return load.n_errors ? 1 : 0;
}
