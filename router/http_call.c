/* One HTTP request: finds its handler, checks what its sender may, and writes its answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/assert.h"
#include "router/http_state.h"
#include "router/openai_answer.h"

enum { CORS_HEADERS_BYTES_MAX = 1024 };

_Static_assert((int)BT_API_NAME_BYTES == (int)BT_CALLER_KEY_BYTES, "a key's name fits");

struct bt_http_call *bt_http_call_create(struct bt_http_connection *connection) {
    struct bt_http_call *call = calloc(1, sizeof *call);
    if (call)
        call->connection = connection;
    return call;
}

static void drop_body(struct bt_http_call *call) {
    call->connection->server->held_bytes -= call->body.capacity;
    bt_text_buffer_fini(&call->body);
}

static void drop_head(struct bt_http_call *call) {
    if (!call->head)
        return;
    call->connection->server->held_bytes -= sizeof *call->head + call->head->n_bytes;
    free(call->head);
    call->head = NULL;
}

void bt_http_call_free(struct bt_http_call *call) {
    drop_body(call);
    drop_head(call);
    free(call);
}

static const char *find(const struct bt_http_call *call, const char *name) {
    return call->head ? bt_http_find_header(&call->head->fields, name) : NULL;
}

/* Whether a page of the request's origin may read the answer (Fetch, 3.2: CORS protocol). */
static bool is_cors(const struct bt_http_call *call) {
    const char *allowed = call->connection->server->config.cors_origin;
    const char *origin = find(call, "Origin");
    return allowed && origin && (!strcmp(allowed, "*") || !strcmp(allowed, origin));
}

/* Nothing where it may not be said back: too long, or not printable. */
static void keep_client_id(struct bt_http_call *call) {
    const char *given = find(call, "X-Request-Id");
    size_t n = given ? strlen(given) : 0;
    for (size_t i = 0; i < n; i++)
        if (given[i] <= 0x20 || given[i] >= 0x7f)
            return;
    if (n && n < sizeof call->client_id)
        memcpy(call->client_id, given, n + 1);
}

bt_status bt_http_call_read_head(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                                 int *code, struct bt_error *err) {
    struct bt_http_call_head *head = malloc(sizeof *head + n_bytes);
    *code = 503;
    if (!head)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for a request");
    call->head = head;
    call->connection->server->held_bytes += sizeof *head + n_bytes;
    head->n_bytes = n_bytes;
    memcpy(head->bytes, bytes, n_bytes);
    bt_status status = bt_http_parse_head(head->bytes, n_bytes, &head->fields, code, err);
    if (status < 0) {
        drop_head(call);
        return status;
    }
    call->is_chunked = head->fields.version >= 11;
    call->closes = head->fields.closes;
    call->is_head_only = !strcmp(head->fields.method, "HEAD");
    call->is_cors = is_cors(call);
    keep_client_id(call);
    return BT_OK;
}

/* ---- what the handler asks ---- */

struct bt_slice bt_http_call_body(struct bt_http_call *call) {
    return (struct bt_slice){call->body.data ? call->body.data : "", call->body.n_bytes};
}

void bt_http_call_drop_body(struct bt_http_call *call) {
    drop_body(call);
}

const char *bt_http_call_header(struct bt_http_call *call, const char *name) {
    return find(call, name);
}

bool bt_http_call_path(struct bt_http_call *call, size_t from, char *out, size_t out_bytes) {
    const char *path = call->head->fields.path;
    size_t n = strlen(path);
    return n >= from && bt_http_decode(path + from, n - from, false, out, out_bytes);
}

bool bt_http_call_query(struct bt_http_call *call, const char *name, char *out, size_t out_bytes) {
    return bt_http_query_value(call->head->fields.query, name, out, out_bytes);
}

struct bt_caller bt_http_call_caller(const struct bt_http_call *call) {
    struct bt_caller caller = {.key = ""};
    memcpy(caller.key, call->key_name, sizeof caller.key);
    memcpy(caller.id, call->client_id, sizeof caller.id);
    return caller;
}

void bt_http_call_set_id(struct bt_http_call *call, uint64_t id) {
    call->id = id;
}

void bt_http_call_keep(struct bt_http_call *call, void (*on_gone)(void *arg), void *arg) {
    call->on_gone = on_gone;
    call->arg = arg;
    call->is_kept = true;
    drop_head(call); /* thousands may wait and stream */
}

bool bt_http_call_is_chunked(const struct bt_http_call *call) {
    return call->is_chunked;
}

/* ---- the head of an answer ---- */

static const char *reason_phrase(int code) {
    static const struct {
        int code;
        const char *phrase;
    } phrases[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof phrases / sizeof phrases[0]; i++)
        if (phrases[i].code == code)
            return phrases[i].phrase;
    return "-";
}

/* splitmix64: ids need to differ, not to be secret. */
static uint64_t draw_id(struct bt_http_server *server) {
    uint64_t z = server->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void write_ids(struct bt_http_call *call, struct bt_text_buffer *out) {
    if (!call->id)
        call->id = draw_id(call->connection->server);
    if (call->client_id[0]) {
        bt_text_buffer_add_literal(out, "X-Request-Id: ");
        bt_text_buffer_add_string(out, call->client_id);
        bt_text_buffer_add_literal(out, "\r\nX-Baton-Request-Id: ");
    } else {
        bt_text_buffer_add_literal(out, "X-Request-Id: ");
    }
    bt_text_buffer_add_hex64(out, call->id);
    bt_text_buffer_add_literal(out, "\r\n");
}

static void write_cors(const struct bt_http_call *call, struct bt_text_buffer *out) {
    const char *allowed = call->connection->server->config.cors_origin;
    if (!allowed)
        return;
    if (strcmp(allowed, "*") != 0)
        bt_text_buffer_add_literal(out, "Vary: Origin\r\n");
    if (!call->is_cors)
        return;
    bt_text_buffer_add_literal(out, "Access-Control-Allow-Origin: ");
    bt_text_buffer_add_string(out, allowed);
    bt_text_buffer_add_literal(out, "\r\nAccess-Control-Expose-Headers: X-Request-Id, "
                                    "X-Baton-Request-Id, Retry-After\r\n");
}

/* Everything but what frames the body and the empty line. */
static void write_head(struct bt_http_call *call, struct bt_text_buffer *out, int code,
                       const char *content_type, const char *extra) {
    struct bt_http_connection *c = call->connection;
    char date[48];
    struct tm tm;
    time_t now = time(NULL);
    strftime(date, sizeof date, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", gmtime_r(&now, &tm));
    bt_text_buffer_printf(out, "HTTP/1.1 %d %s\r\n", code, reason_phrase(code));
    bt_text_buffer_add_string(out, date);
    if (content_type)
        bt_text_buffer_printf(out, "Content-Type: %s\r\n", content_type);
    if (extra)
        bt_text_buffer_add_string(out, extra);
    write_ids(call, out);
    write_cors(call, out);
    c->close_after = c->close_after || call->closes || c->server->draining;
    if (c->close_after)
        bt_text_buffer_add_literal(out, "Connection: close\r\n");
}

void bt_http_call_write_head(struct bt_http_call *call, struct bt_text_buffer *out, int code,
                             const char *content_type, const char *extra) {
    write_head(call, out, code, content_type, extra);
    if (bt_http_call_is_chunked(call))
        bt_text_buffer_add_literal(out, "Transfer-Encoding: chunked\r\n");
    bt_text_buffer_add_literal(out, "\r\n");
}

/* ---- answering ---- */

/* Takes the call away from its connection and frees it. */
static struct bt_http_connection *end_call(struct bt_http_call *call) {
    struct bt_http_connection *c = call->connection;
    if (call->on_room)
        bt_http_connection_await_room(c, false);
    c->call = NULL;
    bt_http_call_free(call);
    return c;
}

void bt_http_call_reply(struct bt_http_call *call, int code, const char *content_type,
                        struct bt_slice body, const char *extra) {
    struct bt_text_buffer *out = &call->connection->out;
    write_head(call, out, code, content_type, extra);
    if (code != 204)
        bt_text_buffer_printf(out, "Content-Length: %zu\r\n", body.n_bytes);
    bt_text_buffer_add_literal(out, "\r\n");
    if (!call->is_head_only)
        bt_text_buffer_add(out, body.data, body.n_bytes);
    bool failed = out->failed;
    struct bt_http_connection *c = end_call(call);
    if (failed)
        bt_http_connection_close(c);
    else
        bt_http_connection_send_out(c);
}

bt_status bt_http_call_send(struct bt_http_call *call, const char *bytes, size_t n_bytes,
                            size_t *n_sent) {
    return bt_http_connection_write(call->connection, bytes, n_bytes, n_sent);
}

bt_status bt_http_call_await_room(struct bt_http_call *call, void (*on_room)(void *arg),
                                  void *arg) {
    call->on_room = on_room;
    call->room_arg = arg;
    return bt_http_connection_await_room(call->connection, on_room != NULL) ? BT_OK
                                                                            : BT_E_NO_MEMORY;
}

void bt_http_call_finish(struct bt_http_call *call) {
    bt_http_connection_answered(end_call(call));
}

void bt_http_call_cut(struct bt_http_call *call) {
    call->is_kept = false; /* its keeper knows */
    bt_http_connection_close(call->connection);
}

/* The message quotes what the client sent; an answer in JSON must be UTF-8. */
static void make_printable(char *text) {
    for (unsigned char *p = (unsigned char *)text; *p; p++)
        if (*p < 0x20 || *p >= 0x7f)
            *p = '?';
}

static void answer_error(struct bt_http_call *call, int code, const char *message,
                         const char *extra) {
    struct bt_text_buffer body = {0};
    char text[BT_ERROR_TEXT_BYTES];
    snprintf(text, sizeof text, "%s", message);
    make_printable(text);
    call->connection->server->counters.n_refused++;
    bt_openai_write_error(&body, code, text, NULL, NULL);
    bt_http_call_reply(call, code, "application/json", (struct bt_slice){body.data, body.n_bytes},
                       extra);
    bt_text_buffer_fini(&body);
}

void bt_http_call_refuse(struct bt_http_call *call, int code, const char *message,
                         const char *extra) {
    call->connection->close_after = true;
    answer_error(call, code, message, extra);
}

/* ---- finding the handler ---- */

static bool path_matches(const char *pattern, const char *path) {
    size_t n = strlen(pattern);
    return !strcmp(pattern, path) ||
           (n > 1 && pattern[n - 1] == '/' && !strncmp(pattern, path, n) && path[n]);
}

/* A browser asks whether a page of another origin may send the real request. */
static bool answer_preflight(struct bt_http_call *call) {
    const char *wanted = find(call, "Access-Control-Request-Headers");
    if (strcmp(call->head->fields.method, "OPTIONS") != 0 || !call->is_cors ||
        !find(call, "Access-Control-Request-Method"))
        return false;
    char extra[CORS_HEADERS_BYTES_MAX + 128];
    if (!wanted || strlen(wanted) > CORS_HEADERS_BYTES_MAX)
        wanted = "Authorization, Content-Type";
    snprintf(extra, sizeof extra,
             "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Allow-Headers: %s\r\n"
             "Access-Control-Max-Age: 600\r\n",
             wanted);
    bt_http_call_reply(call, 204, NULL, (struct bt_slice){NULL, 0}, extra);
    return true;
}

static enum bt_http_method method_of(const struct bt_http_call *call) {
    const char *name = call->head->fields.method;
    if (!strcmp(name, "GET") || !strcmp(name, "HEAD"))
        return BT_HTTP_GET;
    return !strcmp(name, "POST") ? BT_HTTP_POST : (enum bt_http_method)0;
}

static bool check_right(struct bt_http_call *call, const struct bt_http_route *route) {
    struct bt_http_connection *c = call->connection;
    struct bt_error err;
    const struct bt_api_caller caller = {
        .authorization = find(call, "Authorization"),
        /* Through a proxy everybody comes from its machine. */
        .is_local = c->is_local && !find(call, "X-Forwarded-For") && !find(call, "Forwarded"),
    };
    bt_status status =
        bt_api_keys_check(c->server->config.keys, &caller, route->right, call->key_name, &err);
    if (status == BT_OK)
        return true;
    int code = bt_status_http(status);
    answer_error(call, code, err.text, code == 401 ? "WWW-Authenticate: Bearer\r\n" : NULL);
    return false;
}

bool bt_http_call_route(struct bt_http_call *call) {
    const struct bt_http_server_config *config = &call->connection->server->config;
    const struct bt_http_head *head = &call->head->fields;
    const struct bt_http_route *other = NULL;
    enum bt_http_method method = method_of(call);
    char text[160], extra[32];
    /* A body that is not wanted is not read: the connection ends with the refusal. */
    bool had_to_close = call->connection->close_after;
    call->connection->close_after = had_to_close || head->has_body;
    if (answer_preflight(call))
        return false;
    for (size_t i = 0; i < config->n_routes; i++) {
        const struct bt_http_route *route = &config->routes[i];
        if (!path_matches(route->path, head->path))
            continue;
        other = route;
        if (route->method != method)
            continue;
        if (!check_right(call, route))
            return false;
        call->route = route;
        call->connection->close_after = had_to_close;
        return true;
    }
    if (other) {
        snprintf(text, sizeof text, "%.16s is not a method of %.100s", head->method, head->path);
        snprintf(extra, sizeof extra, "Allow: %s\r\n",
                 other->method == BT_HTTP_POST ? "POST" : "GET, HEAD");
        answer_error(call, 405, text, extra);
    } else {
        snprintf(text, sizeof text, "there is no page %.100s", head->path);
        answer_error(call, 404, text, NULL);
    }
    return false;
}

void bt_http_call_handle(struct bt_http_call *call) {
    struct bt_http_connection *c = call->connection;
    call->route->handler(c->server->config.arg, call);
    BT_ASSERT(c->call != call || call->is_kept);
}
