/* Two real ends of Attach in one process over loopback, driven by one loop: for the tests here. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "common/rpc/rpc.h"
#include "common/rpc/rpc_client.h"
#include "common/rpc/rpc_server.h"

enum { WAIT_MS = 20000, N_HEARD = 4096, WORKER = 0, ROUTER = 1 };

/* One event, with what of its message the tests look at. */
struct heard {
    enum bt_rpc_event_type type;
    uint32_t slot;
    enum bt_msg_type msg_type;
    bt_status status;
    char text[400];
    uint64_t number; /* of a message: see number_of */
};

struct end {
    struct bt_rpc_streams *streams;
    struct heard heard[N_HEARD];
    uint32_t n_heard;
    uint64_t n_rows, next_row; /* token rows heard, and the index that must come next */
    uint64_t n_messages;
    bool paused; /* it takes no events */
    void (*on_message)(struct end *end, const struct bt_rpc_event *event);
};

struct ends {
    struct bt_rpc_server *server;
    struct bt_rpc_client *client;
    struct end end[2]; /* WORKER, ROUTER */
};

static inline uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline uint64_t number_of(const struct bt_msg *msg) {
    switch (msg->type) {
    case BT_MSG_STATUS:
        return msg->status.kv_bytes;
    case BT_MSG_BLOCKS:
        return msg->blocks.sequence;
    case BT_MSG_ENDED:
        return msg->ended.kv_bytes;
    case BT_MSG_WELCOME:
        return msg->welcome.protocol;
    case BT_MSG_CANCEL:
        return msg->cancel.key.request;
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        return msg->work.n_tokens;
    default:
        return 0;
    }
}

static inline void hear(struct end *end, const struct bt_rpc_event *event) {
    if (event->type == BT_RPC_MESSAGE && event->msg->type == BT_MSG_TOKENS) {
        for (uint32_t i = 0; i < event->msg->tokens.n_rows; i++) {
            assert_int_equal(event->msg->tokens.rows[i].index, end->next_row);
            end->next_row++;
        }
        end->n_rows += event->msg->tokens.n_rows;
    }
    end->n_messages += event->type == BT_RPC_MESSAGE;
    if (end->n_heard < N_HEARD) {
        struct heard *heard = &end->heard[end->n_heard++];
        *heard = (struct heard){.type = event->type, .slot = event->slot, .status = event->status};
        if (event->text)
            snprintf(heard->text, sizeof heard->text, "%s", event->text);
        if (event->type == BT_RPC_MESSAGE) {
            heard->msg_type = event->msg->type;
            heard->number = number_of(event->msg);
        }
    }
    if (event->type == BT_RPC_MESSAGE && end->on_message)
        end->on_message(end, event);
}

/* One turn of the loop of both ends: sends what was said, waits for something, takes it. */
static inline void turn_for(struct ends *ends, int wait_ms) {
    struct pollfd fds[2];
    for (int i = 0; i < 2; i++) {
        struct end *end = &ends->end[i];
        fds[i] = (struct pollfd){.fd = end->streams && !end->paused ? bt_rpc_fd(end->streams) : -1,
                                 .events = POLLIN};
        if (end->streams)
            bt_rpc_flush(end->streams);
    }
    poll(fds, 2, wait_ms);
    for (int i = 0; i < 2; i++) {
        struct end *end = &ends->end[i];
        struct bt_rpc_event event;
        if (!end->streams)
            continue;
        while (!end->paused && bt_rpc_next(end->streams, &event))
            hear(end, &event);
        bt_rpc_flush(end->streams);
    }
}

static inline void turn(struct ends *ends) {
    turn_for(ends, 0);
}

/* Turns until the condition holds; fails after WAIT_MS. */
#define TURN_UNTIL(ends, condition)                                \
    do {                                                           \
        uint64_t until_ = now_ms() + WAIT_MS;                      \
        while (!(condition)) {                                     \
            if (now_ms() > until_)                                 \
                fail_msg("waited %d ms for " #condition, WAIT_MS); \
            turn_for(ends, 50);                                    \
        }                                                          \
    } while (0)

static inline const struct heard *last(const struct end *end) {
    return end->n_heard ? &end->heard[end->n_heard - 1] : NULL;
}

static inline bool heard_type(const struct end *end, enum bt_rpc_event_type type) {
    for (uint32_t i = 0; i < end->n_heard; i++)
        if (end->heard[i].type == type)
            return true;
    return false;
}

static inline const struct heard *find_closed(const struct end *end) {
    for (uint32_t i = 0; i < end->n_heard; i++)
        if (end->heard[i].type == BT_RPC_CLOSED)
            return &end->heard[i];
    return NULL;
}

static inline void start_server(struct ends *ends, uint32_t max_streams, size_t send_bytes_max) {
    struct bt_rpc_server_config config = {
        .listen = "127.0.0.1:0", .max_streams = max_streams, .send_bytes_max = send_bytes_max};
    struct bt_error err = {0};
    if (bt_rpc_server_start(&config, &ends->server, &err) != BT_OK)
        fail_msg("%s", err.text);
    ends->end[ROUTER].streams = bt_rpc_server_streams(ends->server);
}

static inline void start_client(struct ends *ends, size_t send_bytes_max) {
    struct bt_rpc_client_config config = {.send_bytes_max = send_bytes_max};
    struct bt_error err = {0};
    if (bt_rpc_client_start(&config, &ends->client, &err) != BT_OK)
        fail_msg("%s", err.text);
    ends->end[WORKER].streams = bt_rpc_client_streams(ends->client);
}

static inline void stop_server(struct ends *ends) {
    bt_rpc_server_stop(ends->server);
    ends->server = NULL;
    ends->end[ROUTER].streams = NULL;
}

static inline void stop_client(struct ends *ends) {
    bt_rpc_client_stop(ends->client);
    ends->client = NULL;
    ends->end[WORKER].streams = NULL;
}

static inline void dial(struct ends *ends, uint32_t slot) {
    struct bt_error err = {0};
    if (bt_rpc_client_dial(ends->client, slot, bt_rpc_server_address(ends->server), 0, &err) !=
        BT_OK)
        fail_msg("%s", err.text);
}

/* Both ends, with one stream open between them in slot 0 of each. */
static inline struct ends *open_ends(size_t send_bytes_max) {
    struct ends *ends = calloc(1, sizeof *ends);
    assert_non_null(ends);
    start_server(ends, 4, send_bytes_max);
    start_client(ends, send_bytes_max);
    dial(ends, 0);
    TURN_UNTIL(ends, heard_type(&ends->end[WORKER], BT_RPC_OPENED) &&
                         heard_type(&ends->end[ROUTER], BT_RPC_OPENED));
    return ends;
}

static inline void close_ends(struct ends *ends) {
    stop_client(ends);
    stop_server(ends);
    free(ends);
}

static inline bt_status send_status(struct ends *ends, uint64_t number) {
    struct bt_msg msg = {.type = BT_MSG_STATUS, .status = {.kv_bytes = number}};
    return bt_rpc_send(ends->end[WORKER].streams, 0, &msg, NULL);
}

static inline bt_status send_cancel(struct ends *ends, uint64_t number) {
    struct bt_msg msg = {.type = BT_MSG_CANCEL,
                         .cancel = {.key = {number, 1}, .ticket = {1, number}}};
    return bt_rpc_send(ends->end[ROUTER].streams, 0, &msg, NULL);
}
