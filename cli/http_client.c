/* The tools' HTTP client. */
#include "cli/http_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

#include "cli/http_url.h"
#include "cli/tls_client.h"

enum { TIMEOUT_S = 600, KEY_BYTES_MAX = 512, LINE_BYTES_MAX = 16 << 20 };

struct bt_http_client {
    struct event_base *base;
    struct bt_tls_client *tls; /* NULL: plain */
    struct bt_http_url url;
};

/* One request and its answer. */
struct exchange {
    struct bt_http_client *client;
    struct evbuffer *rest; /* the body's last, unfinished line */
    bt_http_line *on_line;
    void *arg;
    struct bt_http_answer *answer;
    bool ended, stopped;
};

bt_status bt_http_client_create(const char *url, struct bt_http_client **client,
                                struct bt_error *err) {
    struct bt_http_url parts;
    if (!bt_http_url_parse(url, &parts) || parts.path[0])
        return bt_fail(err, BT_E_INVALID,
                       "url \"%.100s\" is not of the form http://host:port or https://host:port",
                       url);
    struct bt_http_client *c = calloc(1, sizeof *c);
    if (c) {
        c->url = parts;
        c->base = event_base_new();
    }
    if (!c || !c->base) {
        bt_http_client_destroy(c);
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for an HTTP client");
    }
    bt_status status = parts.https ? bt_tls_client_open(NULL, false, &c->tls, err) : BT_OK;
    if (status < 0)
        bt_http_client_destroy(c);
    else
        *client = c;
    return status;
}

bt_status bt_http_client_trust(struct bt_http_client *client, const char *ca_file, bool any_host,
                               struct bt_error *err) {
    struct bt_tls_client *tls = NULL;
    if (!client->tls)
        return BT_OK;
    BT_TRY(bt_tls_client_open(ca_file, any_host, &tls, err));
    bt_tls_client_close(client->tls);
    client->tls = tls;
    return BT_OK;
}

void bt_http_client_destroy(struct bt_http_client *client) {
    if (!client)
        return;
    bt_tls_client_close(client->tls);
    if (client->base)
        event_base_free(client->base);
    free(client);
}

static void stop(struct exchange *x) {
    x->stopped = true;
    event_base_loopbreak(x->client->base);
}

/* Hands over whole lines; at the end of the body also what stands behind the last line end. */
static void take_lines(struct exchange *x, struct evbuffer *body, bool at_end) {
    evbuffer_add_buffer(x->rest, body);
    while (!x->stopped) {
        size_t length = 0;
        char *line = evbuffer_readln(x->rest, &length, EVBUFFER_EOL_CRLF);
        if (!line && at_end && evbuffer_get_length(x->rest)) {
            length = evbuffer_get_length(x->rest);
            line = malloc(length + 1);
            if (line && evbuffer_remove(x->rest, line, length) == (int)length)
                line[length] = 0;
        }
        if (!line)
            break;
        if (!x->on_line(x->arg, line, length))
            stop(x);
        free(line);
    }
    if (evbuffer_get_length(x->rest) > LINE_BYTES_MAX)
        stop(x);
}

static int on_headers(struct evhttp_request *request, void *arg) {
    struct exchange *x = arg;
    x->answer->code = evhttp_request_get_response_code(request);
    const char *id = evhttp_find_header(evhttp_request_get_input_headers(request), "X-Request-Id");
    snprintf(x->answer->request_id, sizeof x->answer->request_id, "%s", id ? id : "");
    return 0;
}

static void on_chunk(struct evhttp_request *request, void *arg) {
    take_lines(arg, evhttp_request_get_input_buffer(request), false);
}

static void on_done(struct evhttp_request *request, void *arg) {
    struct exchange *x = arg;
    /* NULL, or no code: nobody listens, or the connection was cut before the answer's end. */
    if (request && evhttp_request_get_response_code(request)) {
        take_lines(x, evhttp_request_get_input_buffer(request), true);
        x->ended = !x->stopped;
    }
    event_base_loopbreak(x->client->base);
}

static void on_error(enum evhttp_request_error error, void *arg) {
    (void)error;
    struct exchange *x = arg;
    event_base_loopbreak(x->client->base);
}

static bt_status send_and_wait(struct exchange *x, struct evhttp_connection *connection,
                               const struct bt_http_request *asked, struct bt_error *err) {
    char bearer[KEY_BYTES_MAX + 8];
    if (asked->api_key &&
        (strlen(asked->api_key) > KEY_BYTES_MAX || strpbrk(asked->api_key, "\r\n")))
        return bt_fail(err, BT_E_INVALID,
                       "api-key has %zu bytes, it may have at most %d, and no line end",
                       strlen(asked->api_key), KEY_BYTES_MAX);
    struct evhttp_request *request = evhttp_request_new(on_done, x);
    if (!request)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for an HTTP request");
    const char *scheme = x->client->url.https ? "https" : "http";
    const char *host = x->client->url.authority;
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    evhttp_add_header(headers, "Host", host);
    evhttp_add_header(headers, "Connection", "close");
    if (asked->header_name)
        evhttp_add_header(headers, asked->header_name, asked->header_value);
    if (asked->api_key && snprintf(bearer, sizeof bearer, "Bearer %s", asked->api_key) > 0)
        evhttp_add_header(headers, "Authorization", bearer);
    if (asked->body) {
        evhttp_add_header(headers, "Content-Type", "application/json");
        evbuffer_add(evhttp_request_get_output_buffer(request), asked->body, strlen(asked->body));
    }
    evhttp_request_set_header_cb(request, on_headers);
    evhttp_request_set_chunked_cb(request, on_chunk);
    evhttp_request_set_error_cb(request, on_error);
    if (evhttp_make_request(connection, request, asked->body ? EVHTTP_REQ_POST : EVHTTP_REQ_GET,
                            asked->path) != 0)
        return bt_fail(err, BT_E_PEER_GONE, "cannot reach %s://%s", scheme, host);
    event_base_dispatch(x->client->base);
    if (x->ended)
        return BT_OK;
    if (x->stopped)
        return bt_fail(err, BT_E_CANCELLED, "the answer of %s://%s%s was not read to its end",
                       scheme, host, asked->path);
    if (!x->answer->code)
        return bt_fail(err, BT_E_PEER_GONE, "no answer from %s://%s; is a router running there%s?",
                       scheme, host,
                       x->client->tls ? ", with a certificate that is trusted here" : "");
    return bt_fail(err, BT_E_PEER_GONE, "the answer of %s://%s%s was cut off", scheme, host,
                   asked->path);
}

bt_status bt_http_client_request(struct bt_http_client *client,
                                 const struct bt_http_request *request, bt_http_line *on_line,
                                 void *arg, struct bt_http_answer *answer, struct bt_error *err) {
    *answer = (struct bt_http_answer){0};
    struct exchange x = {.client = client, .on_line = on_line, .arg = arg, .answer = answer};
    x.rest = evbuffer_new();
    struct bufferevent *bev =
        client->tls ? bt_tls_client_stream(client->tls, client->base, client->url.host) : NULL;
    struct evhttp_connection *connection =
        client->tls && !bev ? NULL
                            : evhttp_connection_base_bufferevent_new(
                                  client->base, NULL, bev, client->url.host, client->url.port);
    if (bev && !connection)
        bufferevent_free(bev);
    bt_status status;
    if (x.rest && connection) {
        evhttp_connection_set_timeout(connection,
                                      request->timeout_s ? request->timeout_s : TIMEOUT_S);
        status = send_and_wait(&x, connection, request, err);
    } else {
        status = bt_fail(err, BT_E_NO_MEMORY, "out of memory for an HTTP connection");
    }
    if (connection)
        evhttp_connection_free(connection);
    if (x.rest)
        evbuffer_free(x.rest);
    return status;
}
