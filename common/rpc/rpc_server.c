/* Listens for workers: takes new Attach calls into free slots and refuses all other calls. */
#include "common/rpc/rpc_server.h"

#include <errno.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/address.h"
#include "common/rpc/rpc_call.h"
#include "common/rpc/rpc_seam.h"
#include "common/rpc/rpc_tls.h"

enum { CALLS_ASKED_FOR = 4, STREAMS_PER_CONNECTION = 16, SLOTS_MAX = 4096 };

struct bt_rpc_server {
    struct bt_rpc_streams streams; /* first: a call's streams are its server */
    grpc_server *grpc;
    struct bt_rpc_tls_server tls;
    struct bt_rpc_tag on_down;
    char address[BT_ADDRESS_BYTES];
};

static void ask_for_call(struct bt_rpc_server *server);

/* ---- completion-queue thread ---- */

static void refuse_locked(struct bt_rpc_call *call, grpc_status_code code, const char *why) {
    grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_STATUS_FROM_SERVER}};
    grpc_slice text = grpc_slice_from_copied_string(why);
    ops[1].data.send_status_from_server.status = code;
    ops[1].data.send_status_from_server.status_details = &text;
    call->closing = call->finishing = true;
    bt_rpc_call_batch(call, ops, 2, &call->on_finish);
    grpc_slice_unref(text);
}

/* Answers at once, so that the worker knows that it is attached, and begins to read. */
static void accept_locked(struct bt_rpc_call *call) {
    grpc_metadata attached = {.key = grpc_slice_from_static_string(BT_RPC_ATTACHED_KEY),
                              .value = grpc_slice_from_static_string("1")};
    grpc_op op = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    op.data.send_initial_metadata.count = 1;
    op.data.send_initial_metadata.metadata = &attached;
    call->opened = true;
    bt_rpc_call_batch(call, &op, 1, &call->on_wake);
    bt_rpc_call_receive_locked(call);
}

static bool take_slot(struct bt_rpc_call *call) {
    struct bt_rpc_streams *streams = call->streams;
    pthread_mutex_lock(&streams->lock);
    uint32_t i = 0;
    while (i < streams->n_slots && streams->calls[i])
        i++;
    if (i < streams->n_slots) {
        call->slot = i;
        call->has_slot = true;
        streams->calls[i] = call;
        streams->n_live++;
    }
    pthread_mutex_unlock(&streams->lock);
    return call->has_slot;
}

static void on_call(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_call *call = tag->self;
    struct bt_rpc_server *server = (struct bt_rpc_server *)call->streams;
    if (!ok) { /* the server is shutting down */
        bt_rpc_call_unref(call);
        return;
    }
    ask_for_call(server);
    char *peer = grpc_call_get_peer(call->grpc);
    snprintf(call->peer, sizeof call->peer, "%s", peer);
    gpr_free(peer);
    if (server->streams.tls)
        call->roles = bt_rpc_tls_caller_roles(call->grpc);
    bool is_attach = grpc_slice_str_cmp(call->details.method, BT_RPC_METHOD) == 0;
    bool accepted = is_attach && take_slot(call);
    pthread_mutex_lock(&call->lock);
    if (accepted) /* before anything can be heard on it; the loop waits for the lock to speak */
        bt_rpc_push_event(call, BT_RPC_OPENED, NULL, 0);
    grpc_op end = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    end.data.recv_close_on_server.cancelled = &call->cancelled;
    bt_rpc_call_batch(call, &end, 1, &call->on_end);
    char text[BT_RPC_TEXT_BYTES];
    snprintf(text, sizeof text, "the router has its %u workers' streams, attach later",
             call->streams->n_slots);
    if (accepted)
        accept_locked(call);
    else if (is_attach)
        refuse_locked(call, GRPC_STATUS_RESOURCE_EXHAUSTED, text);
    else
        refuse_locked(call, GRPC_STATUS_UNIMPLEMENTED,
                      "no such method, there is only " BT_RPC_METHOD);
    pthread_mutex_unlock(&call->lock);
    bt_rpc_call_unref(call);
}

/* Asks gRPC for the next incoming call. Without memory for it the server goes on with fewer. */
static void ask_for_call(struct bt_rpc_server *server) {
    struct bt_rpc_call *call = bt_rpc_call_create(&server->streams);
    if (!call)
        return;
    call->on_start = (struct bt_rpc_tag){on_call, call};
    call->n_refs = 1;
    BT_RPC_GIVE(&call->on_start);
    if (grpc_server_request_call(server->grpc, &call->grpc, &call->details, &call->metadata,
                                 server->streams.queue, server->streams.queue,
                                 &call->on_start) != GRPC_CALL_OK)
        bt_rpc_call_destroy(call);
}

/* Every call has ended; tags that are still out come back without success. */
static void on_down(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_server *server = tag->self;
    (void)ok;
    atomic_store(&server->streams.down, true);
    grpc_completion_queue_shutdown(server->streams.queue);
}

/* ---- loop thread ---- */

#define NUMBER(name, number) \
    { .type = GRPC_ARG_INTEGER, .key = (char *)(name), .value.integer = (number) }

static grpc_server *create_grpc(void) {
    grpc_arg args[] = {
        NUMBER(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, BT_MESSAGE_BYTES),
        /* A compressed message could grow without bound: it is not unpacked but refused. */
        NUMBER(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        NUMBER(GRPC_ARG_HTTP2_BDP_PROBE, 0), /* a window that grows is memory without a bound */
        NUMBER(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, BT_MESSAGE_BYTES),
        NUMBER(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_PER_CONNECTION),
        NUMBER(GRPC_ARG_ALLOW_REUSEPORT, 0), /* a second router on a port is an error */
        NUMBER(GRPC_ARG_KEEPALIVE_TIME_MS, BT_RPC_KEEPALIVE_MS),
        NUMBER(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, BT_RPC_KEEPALIVE_TIMEOUT_MS),
        NUMBER(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        NUMBER(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        NUMBER(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, BT_RPC_PING_MIN_MS),
    };
    grpc_channel_args list = {.num_args = sizeof args / sizeof args[0], .args = args};
    return grpc_server_create(&list, NULL);
}

/* gRPC logs why it cannot listen but does not say it: the same is tried once more for the errno. */
static const char *why_not_listen(const struct bt_address *address) {
    char port[8];
    snprintf(port, sizeof port, "%u", address->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int failed = getaddrinfo(address->host, port, &hints, &list);
    if (failed)
        return gai_strerror(failed);
    const char *why = "see the warning before this";
    for (struct addrinfo *a = list; a; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int yes = 1;
        if (fd >= 0)
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (fd < 0 || bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, 1) != 0)
            why = strerror(errno);
        if (fd >= 0)
            close(fd);
    }
    freeaddrinfo(list);
    return why;
}

static bt_status listen_at(struct bt_rpc_server *server, const char *text, struct bt_error *err) {
    struct bt_address address;
    BT_TRY(bt_address_parse(text, &address, err));
    bt_address_format(&address, server->address);
    grpc_server_credentials *credentials;
    if (server->streams.tls)
        BT_TRY(bt_rpc_tls_server_init(&server->tls, server->streams.tls,
                                      BT_TLS_PREFILL | BT_TLS_DECODE, &credentials, err));
    else
        credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server->grpc, server->address, credentials);
    grpc_server_credentials_release(credentials);
    if (port <= 0)
        return bt_fail(err, BT_E_IO, "cannot listen at %s: %s", server->address,
                       why_not_listen(&address));
    address.port = (uint16_t)port;
    bt_address_format(&address, server->address);
    return BT_OK;
}

bt_status bt_rpc_server_start(const struct bt_rpc_server_config *config, struct bt_rpc_server **out,
                              struct bt_error *err) {
    uint32_t n_slots = config->max_streams ? config->max_streams : 2 * BT_MAX_WORKERS;
    if (n_slots > SLOTS_MAX)
        return bt_fail(err, BT_E_INVALID, "max_streams is %u, must be at most %d", n_slots,
                       SLOTS_MAX);
    struct bt_rpc_server *server = calloc(1, sizeof *server);
    if (!server)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a server");
    server->on_down = (struct bt_rpc_tag){on_down, server};
    bt_status status;
    BT_TRY_GOTO(bt_rpc_streams_init(&server->streams, BT_WIRE_ROUTER, n_slots,
                                    config->send_bytes_max, config->tls, err),
                fail);
    server->grpc = create_grpc();
    grpc_server_register_completion_queue(server->grpc, server->streams.queue, NULL);
    BT_TRY_GOTO(listen_at(server, config->listen, err), fail);
    grpc_server_start(server->grpc);
    for (int i = 0; i < CALLS_ASKED_FOR; i++)
        ask_for_call(server);
    BT_TRY_GOTO(bt_rpc_streams_start_thread(&server->streams, err), fail);
    *out = server;
    return BT_OK;
fail:
    bt_rpc_server_stop(server);
    return status;
}

void bt_rpc_server_stop(struct bt_rpc_server *server) {
    if (!server)
        return;
    if (server->grpc) {
        pthread_mutex_lock(&server->streams.lock);
        server->streams.stopping = true;
        pthread_mutex_unlock(&server->streams.lock);
        BT_RPC_GIVE(&server->on_down);
        grpc_server_shutdown_and_notify(server->grpc, server->streams.queue, &server->on_down);
        grpc_server_cancel_all_calls(server->grpc);
        if (!server->streams.thread_runs) /* it could not be started: its work is done here */
            bt_rpc_run(&server->streams);
        bt_rpc_streams_join(&server->streams);
        grpc_server_destroy(server->grpc);
    } else if (server->streams.queue) {
        grpc_completion_queue_shutdown(server->streams.queue);
        bt_rpc_run(&server->streams);
    }
    bt_rpc_streams_fini(&server->streams);
    bt_rpc_tls_server_fini(&server->tls);
    free(server);
}

bt_status bt_rpc_server_reload(struct bt_rpc_server *server, struct bt_error *err) {
    return server->streams.tls ? bt_rpc_tls_server_reload(&server->tls, err) : BT_OK;
}

const char *bt_rpc_server_address(const struct bt_rpc_server *server) {
    return server->address;
}

struct bt_rpc_streams *bt_rpc_server_streams(struct bt_rpc_server *server) {
    return &server->streams;
}
