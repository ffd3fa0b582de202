/* A small HTTP client for the tools: one request at a time, the answer read line by line as it
 * comes.
 *
 * On libevent's evhttp. Runs its own loop until the answer has ended, so it is called from the main
 * thread and blocks. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"

struct bt_http_client; /* one server; a connection is made per request */

/* url: "http://host[:port]" or https, and nothing behind it. An https server's certificate must be
 * the system's to trust, and name the host. */
bt_status bt_http_client_create(const char *url, struct bt_http_client **client,
                                struct bt_error *err);
void bt_http_client_destroy(struct bt_http_client *client);
/* Of an https server: trust what is in this PEM file instead, a server's own certificate among it.
 * any_host: whatever name it has. BT_E_INVALID. */
bt_status bt_http_client_trust(struct bt_http_client *client, const char *ca_file, bool any_host,
                               struct bt_error *err);

struct bt_http_answer {
    int code;            /* HTTP status, 0 if none came */
    char request_id[64]; /* X-Request-Id, empty if none */
};

/* Called for each whole line of the body, without its line end, NUL-terminated; the last line may
 * lack one in the body. Answering false ends the exchange (the connection is cut). */
typedef bool bt_http_line(void *arg, const char *line, size_t length);

struct bt_http_request {
    const char *path;
    const char *body;                       /* NULL: GET, else POST of JSON */
    const char *header_name, *header_value; /* one more header; NULL: none */
    const char *api_key;                    /* sent as a bearer token; NULL: none */
    int timeout_s;                          /* for the next byte to come; 0: ten minutes */
};

/* BT_OK once an answer has ended in order, whatever its code; BT_E_PEER_GONE where it was cut or
 * nobody listens; BT_E_CANCELLED where on_line ended it. */
bt_status bt_http_client_request(struct bt_http_client *client,
                                 const struct bt_http_request *request, bt_http_line *on_line,
                                 void *arg, struct bt_http_answer *answer, struct bt_error *err);
