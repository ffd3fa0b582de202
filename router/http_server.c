/* The HTTP/1.1 port, on libevent's evhttp; what evhttp does wrong for long answers is cured here.
 */
#include "router/http_server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>

#include "common/base/address.h"
#include "common/base/log.h"
#include "router/http_check.h"
#include "router/openai_answer.h"

enum {
    BACKLOG = 4096,             /* evhttp's own 128 make clients of a burst wait for SYN retries */
    UNREAD_BYTES_MAX = 65536,   /* kept of what a client sends while it is being answered */
    SEND_BUFFER_BYTES = 131072, /* else the kernel lets it grow to 4 MB per socket */
    ACCEPT_PAUSE_MS = 250,      /* after running out of descriptors */
    HEADERS_MAX = 128,
    METHODS = EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT |
              EVHTTP_REQ_DELETE | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PATCH,
};

struct bt_http_call {
    struct bt_http_server *server;
    struct evhttp_request *request;
    struct evhttp_connection *connection;
    struct bufferevent *bev;
    void (*on_gone)(void *arg);
    void *arg;
    bufferevent_event_cb
        evhttp_event; /* evhttp's own, with its argument, while we stand before it */
    void *evhttp_arg;
    bool kept;
    struct event *writable; /* while room is awaited */
    void (*on_room)(void *arg);
    void *room_arg;
    struct bt_http_call *next, *previous;
};

struct bt_http_server {
    struct evhttp *http;
    struct evconnlistener *listener; /* owned by http */
    struct event *resume;            /* accepting again after a pause */
    struct bt_http_server_config config;
    struct bt_http_call *calls;
    size_t n_calls;
    bool draining;
    char address[BT_ADDRESS_BYTES];
};

static void end_call(struct bt_http_call *call) {
    struct bt_http_server *server = call->server;
    *(call->previous ? &call->previous->next : &server->calls) = call->next;
    if (call->next)
        call->next->previous = call->previous;
    server->n_calls--;
    if (call->writable)
        event_free(call->writable);
    free(call);
}

/* The connection was lost while we owned its request. */
static void on_close(struct evhttp_connection *connection, void *arg) {
    struct bt_http_call *call = arg;
    struct evhttp_request *request = call->request;
    evhttp_connection_set_closecb(connection, NULL, NULL);
    if (call->on_gone)
        call->on_gone(call->arg);
    end_call(call);
    /* On end of file and on timeouts evhttp has taken the request off its connection and forgets
     * it: without this it would leak (libevent 2.1.12, evhttp_connection_incoming_fail). */
    evhttp_request_free(request);
}

static void restore_timeouts(struct bt_http_call *call) {
    struct timeval idle = {(time_t)call->server->config.idle_s, 0};
    bufferevent_set_timeouts(call->bev, &idle, &idle);
}

static void on_unread(struct bufferevent *bev, void *arg) {
    struct bt_http_call *call = arg;
    if (evbuffer_get_length(bufferevent_get_input(bev)) < UNREAD_BYTES_MAX)
        return;
    /* Reading stops here, so the end of this connection would not be seen any more. */
    void (*on_gone)(void *) = call->on_gone;
    void *gone_arg = call->arg;
    if (on_gone)
        on_gone(gone_arg);
    bt_http_call_cut(call);
}

static void on_event(struct bufferevent *bev, short what, void *arg) {
    struct bt_http_call *call = arg;
    call->evhttp_event(bev, what, call->evhttp_arg);
}

void bt_http_call_keep(struct bt_http_call *call, void (*on_gone)(void *arg), void *arg) {
    call->on_gone = on_gone;
    call->arg = arg;
    call->kept = true;
    evhttp_connection_set_closecb(call->connection, on_close, call);
    /* While a request waits, evhttp has reading off (a client that leaves is not seen) and its read
     * callback set (with reading on, a pipelined byte would end the process). So: reading on, our
     * callbacks before evhttp's, a bound on what is kept, no timeout. */
    bufferevent_data_cb read_cb, write_cb;
    bufferevent_getcb(call->bev, &read_cb, &write_cb, &call->evhttp_event, &call->evhttp_arg);
    bufferevent_setcb(call->bev, on_unread, NULL, on_event, call);
    bufferevent_setwatermark(call->bev, EV_READ, 0, UNREAD_BYTES_MAX);
    bufferevent_set_timeouts(call->bev, NULL, NULL);
    bufferevent_enable(call->bev, EV_READ);
}

/* Gives a kept call's connection back to evhttp. */
static void unkeep(struct bt_http_call *call) {
    evhttp_connection_set_closecb(call->connection, NULL, NULL);
    if (!call->kept)
        return;
    call->kept = false;
    bufferevent_setcb(call->bev, NULL, NULL, call->evhttp_event, call->evhttp_arg);
    bufferevent_setwatermark(call->bev, EV_READ, 0, 0);
    restore_timeouts(call);
}

struct bt_slice bt_http_call_body(struct bt_http_call *call) {
    struct evbuffer *body = evhttp_request_get_input_buffer(call->request);
    size_t n = evbuffer_get_length(body);
    const char *data = n ? (const char *)evbuffer_pullup(body, -1) : "";
    return (struct bt_slice){data ? data : "", data ? n : 0};
}

void bt_http_call_drop_body(struct bt_http_call *call) {
    struct evbuffer *body = evhttp_request_get_input_buffer(call->request);
    evbuffer_drain(body, evbuffer_get_length(body));
}

const char *bt_http_call_header(struct bt_http_call *call, const char *name) {
    return evhttp_find_header(evhttp_request_get_input_headers(call->request), name);
}

static const char *raw_path(struct bt_http_call *call) {
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(call->request);
    const char *path = uri ? evhttp_uri_get_path(uri) : NULL;
    return path ? path : "";
}

bool bt_http_call_path(struct bt_http_call *call, size_t from, char *out, size_t out_bytes) {
    const char *path = raw_path(call);
    size_t n = 0;
    char *decoded =
        strlen(path) >= from ? evhttp_uridecode(path + from, /* plus is a space */ 0, &n) : NULL;
    bool fits = decoded && n < out_bytes;
    if (fits)
        memcpy(out, decoded, n + 1);
    free(decoded);
    return fits;
}

bool bt_http_call_query(struct bt_http_call *call, const char *name, char *out, size_t out_bytes) {
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(call->request);
    const char *query = uri ? evhttp_uri_get_query(uri) : NULL;
    struct evkeyvalq values;
    bool found = false;
    if (!query || evhttp_parse_query_str(query, &values) != 0)
        return false;
    const char *value = evhttp_find_header(&values, name);
    if (value && strlen(value) < out_bytes) {
        memcpy(out, value, strlen(value) + 1);
        found = true;
    }
    evhttp_clear_headers(&values);
    return found;
}

static void add_extra(struct evkeyvalq *headers, const char *extra) {
    for (const char *line = extra; line && *line;) {
        const char *end = strstr(line, "\r\n"), *colon = strstr(line, ": ");
        if (!end || !colon || colon > end)
            break;
        char name[64], value[256];
        snprintf(name, sizeof name, "%.*s", (int)(colon - line), line);
        snprintf(value, sizeof value, "%.*s", (int)(end - colon - 2), colon + 2);
        evhttp_add_header(headers, name, value);
        line = end + 2;
    }
}

void bt_http_call_reply(struct bt_http_call *call, int code, const char *content_type,
                        struct bt_slice body, const char *extra) {
    struct evhttp_request *request = call->request;
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    unkeep(call);
    evhttp_add_header(headers, "Content-Type", content_type);
    add_extra(headers, extra);
    if (bt_http_call_closes(call))
        evhttp_add_header(headers, "Connection", "close");
    struct evbuffer *out = NULL;
    if (evhttp_request_get_command(request) == EVHTTP_REQ_HEAD) {
        /* evhttp would send the body, and without saying its length. */
        char length[24];
        snprintf(length, sizeof length, "%zu", body.n_bytes);
        evhttp_add_header(headers, "Content-Length", length);
    } else if ((out = evbuffer_new())) {
        evbuffer_add(out, body.data, body.n_bytes);
    } else {
        code = 503;
    }
    end_call(call);
    evhttp_send_reply(request, code, NULL, out);
    if (out)
        evbuffer_free(out);
}

bt_status bt_http_call_send(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                            size_t *n_sent) {
    ssize_t n;
    do
        n = send((int)bufferevent_getfd(call->bev), bytes, n_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        *n_sent = (size_t)n;
        return BT_OK;
    }
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? BT_AGAIN : BT_E_PEER_GONE;
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_http_call *call = arg;
    call->on_room(call->room_arg);
}

bt_status bt_http_call_await_room(struct bt_http_call *call, void (*on_room)(void *arg),
                                  void *arg) {
    call->on_room = on_room;
    call->room_arg = arg;
    if (!on_room) {
        if (call->writable)
            event_free(call->writable);
        call->writable = NULL;
        return BT_OK;
    }
    if (!call->writable)
        call->writable = event_new(bufferevent_get_base(call->bev), bufferevent_getfd(call->bev),
                                   EV_WRITE | EV_PERSIST, on_writable, call);
    return call->writable && event_add(call->writable, NULL) == 0 ? BT_OK : BT_E_NO_MEMORY;
}

bool bt_http_call_is_chunked(const struct bt_http_call *call) {
    return call->request->major > 1 || (call->request->major == 1 && call->request->minor >= 1);
}

bool bt_http_call_closes(const struct bt_http_call *call) {
    const char *said =
        evhttp_find_header(evhttp_request_get_input_headers(call->request), "Connection");
    return call->server->draining || !bt_http_call_is_chunked(call) ||
           (said && !strcasecmp(said, "close"));
}

void bt_http_call_finish(struct bt_http_call *call) {
    struct evhttp_request *request = call->request;
    if (bt_http_call_closes(call))
        evhttp_add_header(evhttp_request_get_output_headers(request), "Connection", "close");
    unkeep(call);
    end_call(call);
    /* The flag speaks of the request's body here; set, evhttp would write a last chunk of its own.
     */
    request->chunked = 0;
    evhttp_send_reply_end(request);
}

void bt_http_call_cut(struct bt_http_call *call) {
    struct evhttp_connection *connection = call->connection;
    unkeep(call);
    end_call(call);
    evhttp_connection_free(connection);
}

/* ---- arrival ---- */

static bt_status check(struct evhttp_request *request, struct bt_error *err) {
    struct bt_http_header headers[HEADERS_MAX];
    size_t n = 0;
    const struct evkeyval *header;
    for (header = evhttp_request_get_input_headers(request)->tqh_first; header;
         header = header->next.tqe_next) {
        if (n == HEADERS_MAX)
            return bt_fail(err, BT_E_INVALID, "more than %d headers", HEADERS_MAX);
        headers[n++] = (struct bt_http_header){header->key, header->value};
    }
    return bt_http_check_headers(headers, n, request->major * 10 + request->minor, err);
}

static void refuse(struct bt_http_call *call, int code, const char *message, const char *extra) {
    struct bt_text_buffer body = {0};
    bt_openai_write_error(&body, code, message, NULL, NULL);
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body.data, body.n_bytes},
                       extra);
    bt_text_buffer_fini(&body);
}

static bool path_matches(const char *pattern, const char *path) {
    size_t n = strlen(pattern);
    return !strcmp(pattern, path) ||
           (n > 1 && pattern[n - 1] == '/' && !strncmp(pattern, path, n) && path[n]);
}

static void dispatch(struct bt_http_server *server, struct bt_http_call *call) {
    enum evhttp_cmd_type type = evhttp_request_get_command(call->request);
    enum bt_http_method method = type == EVHTTP_REQ_POST ? BT_HTTP_POST
                                 : type == EVHTTP_REQ_GET || type == EVHTTP_REQ_HEAD
                                     ? BT_HTTP_GET
                                     : (enum bt_http_method)0;
    const char *path = raw_path(call);
    char message[256];
    const struct bt_http_route *other = NULL;
    for (size_t i = 0; i < server->config.n_routes; i++) {
        const struct bt_http_route *route = &server->config.routes[i];
        if (!path_matches(route->path, path))
            continue;
        if (route->method == method) {
            route->handler(server->config.arg, call);
            return;
        }
        other = route;
    }
    if (other) {
        const char *allowed = other->method == BT_HTTP_POST ? "POST" : "GET";
        char extra[32];
        snprintf(extra, sizeof extra, "Allow: %s\r\n", allowed);
        snprintf(message, sizeof message, "%.100s takes %s only", path, allowed);
        refuse(call, 405, message, extra);
        return;
    }
    snprintf(message, sizeof message, "there is no page %.100s", path);
    refuse(call, 404, message, NULL);
}

static void on_request(struct evhttp_request *request, void *arg) {
    struct bt_http_server *server = arg;
    struct bt_http_call *call = calloc(1, sizeof *call);
    struct bt_error err;
    if (!call) {
        evhttp_send_error(request, 503, "out of memory");
        return;
    }
    call->server = server;
    call->request = request;
    call->connection = evhttp_request_get_connection(request);
    call->bev = evhttp_connection_get_bufferevent(call->connection);
    call->next = server->calls;
    if (call->next)
        call->next->previous = call;
    server->calls = call;
    server->n_calls++;
    if (check(request, &err) != BT_OK)
        refuse(call, 400, err.text, "Connection: close\r\n");
    else
        dispatch(server, call);
}

/* ---- listening ---- */

/* Harmless while it is enabled. */
static void on_resume(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct bt_http_server *server = arg;
    evconnlistener_enable(server->listener);
}

/* The argument is evhttp's own. */
static void on_accept_error(struct evconnlistener *listener, void *arg) {
    (void)arg;
    /* Out of descriptors, most likely: the pending connection stays pending, and trying again at
     * once would spin. on_resume tries again. */
    BT_WARN("cannot accept a connection: %s; waiting", strerror(errno));
    evconnlistener_disable(listener);
}

static void set_int(int fd, int level, int name, int value) {
    /* A hint: the port works without it. */
    if (setsockopt(fd, level, name, &value, sizeof value) != 0)
        BT_WARN("socket option %d of level %d: %s", name, level, strerror(errno));
}

/* A socket that listens; accepted ones inherit its options. */
static int listen_on(const struct bt_http_server_config *config, struct bt_error *err) {
    char port[8];
    snprintf(port, sizeof port, "%u", config->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(config->host, port, &hints, &list);
    if (code != 0) {
        bt_fail(err, BT_E_INVALID, "host \"%.64s\": %s", config->host, gai_strerror(code));
        return -1;
    }
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        set_int(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
    }
    if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        bt_fail(err, BT_E_IO, "cannot listen for HTTP on %.64s:%u: %s", config->host, config->port,
                strerror(errno));
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

static void name_address(struct bt_http_server *server, int fd) {
    struct sockaddr_storage bound = {0};
    socklen_t n = sizeof bound;
    struct bt_address address = {.port = server->config.port};
    char port[8] = "";
    /* What cannot be named (it is bound, so it can) is shown as it was asked for. */
    if (getsockname(fd, (struct sockaddr *)&bound, &n) != 0 ||
        getnameinfo((struct sockaddr *)&bound, n, address.host, sizeof address.host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        snprintf(address.host, sizeof address.host, "%.60s", server->config.host);
    else
        address.port = (uint16_t)strtoul(port, NULL, 10);
    bt_address_format(&address, server->address);
}

static bt_status start(struct bt_http_server *server, struct event_base *base,
                       struct bt_error *err) {
    server->http = evhttp_new(base);
    server->resume = event_new(base, -1, EV_PERSIST, on_resume, server);
    if (!server->http || !server->resume)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    evhttp_set_max_headers_size(server->http, (ev_ssize_t)server->config.header_bytes_max);
    evhttp_set_max_body_size(server->http, (ev_ssize_t)server->config.body_bytes_max);
    evhttp_set_timeout(server->http, (int)server->config.idle_s);
    evhttp_set_allowed_methods(server->http, METHODS);
    evhttp_set_gencb(server->http, on_request, server);
    int fd = listen_on(&server->config, err);
    if (fd < 0)
        return err ? err->status : BT_E_IO;
    name_address(server, fd);
    struct evhttp_bound_socket *bound = evhttp_accept_socket_with_handle(server->http, fd);
    if (!bound) {
        close(fd);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    }
    server->listener = evhttp_bound_socket_get_listener(bound);
    evconnlistener_set_error_cb(server->listener, on_accept_error);
    struct timeval pause = {0, ACCEPT_PAUSE_MS * 1000};
    event_add(server->resume, &pause);
    return BT_OK;
}

bt_status bt_http_server_start(struct event_base *base, const struct bt_http_server_config *config,
                               struct bt_http_server **out, struct bt_error *err) {
    struct bt_http_server *server = calloc(1, sizeof *server);
    if (!server)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the HTTP port");
    server->config = *config;
    bt_status status = start(server, base, err);
    if (status < 0) {
        bt_http_server_destroy(server);
        return status;
    }
    *out = server;
    return BT_OK;
}

const char *bt_http_server_address(const struct bt_http_server *server) {
    return server->address;
}

void bt_http_server_drain(struct bt_http_server *server) {
    server->draining = true;
}

void bt_http_server_destroy(struct bt_http_server *server) {
    if (!server)
        return;
    for (struct bt_http_call *call = server->calls, *next; call; call = next) {
        next = call->next;
        /* unkeep: evhttp_free frees the requests of its connections itself. */
        unkeep(call);
        end_call(call);
    }
    if (server->http)
        evhttp_free(server->http);
    if (server->resume)
        event_free(server->resume);
    free(server);
}
