/* Dials routers: one new channel and one Attach call per dial. */
#include "common/rpc/rpc_client.h"

#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/address.h"
#include "common/base/assert.h"
#include "common/rpc/rpc_call.h"
#include "common/rpc/rpc_tls.h"

enum { SLOTS_MAX = 4096, REDIAL_MS_MIN = 100, REDIAL_MS_MAX = 500 };

struct bt_rpc_client {
    struct bt_rpc_streams streams;
};

/* ---- completion-queue thread ---- */

static bool has_metadata(const grpc_metadata_array *metadata, const char *key) {
    for (size_t i = 0; i < metadata->count; i++)
        if (grpc_slice_str_cmp(metadata->metadata[i].key, key) == 0)
            return true;
    return false;
}

/* The router's initial metadata came, or the call ended without. */
static void on_answer(struct bt_rpc_tag *tag, bool ok) {
    struct bt_rpc_call *call = tag->self;
    pthread_mutex_lock(&call->lock);
    bool opened = ok && !call->closing && has_metadata(&call->metadata, BT_RPC_ATTACHED_KEY);
    if (opened && !call->ended) {
        call->opened = true;
        bt_rpc_set_deadline_locked(call, 0);
        bt_rpc_push_event(call, BT_RPC_OPENED, NULL, 0); /* before the first message can be */
        bt_rpc_call_receive_locked(call);
    } else {
        call->heard_all = true; /* a refusal has a status and no messages */
    }
    pthread_mutex_unlock(&call->lock);
    bt_rpc_call_unref(call);
}

/* ---- loop thread ---- */

bt_status bt_rpc_client_start(const struct bt_rpc_client_config *config, struct bt_rpc_client **out,
                              struct bt_error *err) {
    uint32_t n_slots = config->max_streams ? config->max_streams : BT_MAX_ROUTERS;
    if (n_slots > SLOTS_MAX)
        return bt_fail(err, BT_E_INVALID, "max_streams is %u, must be at most %d", n_slots,
                       SLOTS_MAX);
    struct bt_rpc_client *client = calloc(1, sizeof *client);
    if (!client)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a client");
    bt_status status;
    BT_TRY_GOTO(bt_rpc_streams_init(&client->streams, BT_WIRE_WORKER, n_slots,
                                    config->send_bytes_max, config->tls, err),
                fail);
    BT_TRY_GOTO(bt_rpc_streams_start_thread(&client->streams, err), fail);
    *out = client;
    return BT_OK;
fail:
    bt_rpc_client_stop(client);
    return status;
}

void bt_rpc_client_stop(struct bt_rpc_client *client) {
    if (!client)
        return;
    struct bt_rpc_streams *streams = &client->streams;
    if (streams->queue) {
        pthread_mutex_lock(&streams->lock);
        streams->stopping = true;
        for (uint32_t i = 0; i < streams->n_slots; i++) {
            struct bt_rpc_call *call = streams->calls[i];
            if (!call)
                continue;
            pthread_mutex_lock(&call->lock);
            if (!call->closing) /* else it has BT_RPC_CLOSE_MS for what it still has to say */
                bt_rpc_call_break_locked(call, BT_E_CANCELLED, "the worker stops");
            pthread_mutex_unlock(&call->lock);
        }
        /* The thread shuts its queue down with the last call; where there is none, we do. */
        bool over = streams->n_live == 0;
        pthread_mutex_unlock(&streams->lock);
        if (over) {
            atomic_store(&streams->down, true);
            grpc_completion_queue_shutdown(streams->queue);
        }
        if (!streams->thread_runs) /* it could not be started: its work is done here */
            bt_rpc_run(streams);
        bt_rpc_streams_join(streams);
    }
    bt_rpc_streams_fini(streams);
    free(client);
}

#define NUMBER(name, number) \
    { .type = GRPC_ARG_INTEGER, .key = (char *)(name), .value.integer = (number) }

/* Takes the credentials. */
static grpc_channel *create_channel(const struct bt_address *address,
                                    grpc_channel_credentials *credentials, int connect_ms) {
    grpc_arg args[] = {
        NUMBER(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, BT_MESSAGE_BYTES),
        NUMBER(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0), /* as in rpc_server.c */
        NUMBER(GRPC_ARG_HTTP2_BDP_PROBE, 0),
        NUMBER(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, BT_MESSAGE_BYTES),
        NUMBER(GRPC_ARG_KEEPALIVE_TIME_MS, BT_RPC_KEEPALIVE_MS),
        NUMBER(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, BT_RPC_KEEPALIVE_TIMEOUT_MS),
        NUMBER(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        NUMBER(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        NUMBER(GRPC_ARG_ENABLE_RETRIES, 0),
        NUMBER(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        /* No connection is shared with an earlier dial. */
        NUMBER(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        NUMBER(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, connect_ms), /* also connect's timeout */
        NUMBER(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        NUMBER(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500),
        /* Under TLS the router is known by its role, not by its host. */
        {.type = GRPC_ARG_STRING,
         .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = (char *)bt_tls_role_dns(BT_TLS_ROUTER)},
    };
    grpc_channel_args list = {.num_args = sizeof args / sizeof args[0], .args = args};
    /* The scheme is named, so that a host called "unix" is none; a URI's path has no '[', ']'
     * (RFC 3986, section 3.3). */
    char text[BT_ADDRESS_BYTES], target[16 + 3 * BT_ADDRESS_BYTES] = "dns:///";
    bt_address_format(address, text);
    size_t n = strlen(target);
    for (const char *c = text; *c; c++)
        n += (size_t)snprintf(target + n, sizeof target - n, strchr("[]%", *c) ? "%%%02X" : "%c",
                              (unsigned)*c);
    grpc_channel *channel = grpc_channel_create(target, credentials, &list);
    grpc_channel_credentials_release(credentials);
    return channel;
}

/* Fail fast: without wait-for-ready a router that cannot be reached ends the call with the reason.
 */
static void begin_locked(struct bt_rpc_call *call) {
    grpc_op answer[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                         {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    answer[1].data.recv_initial_metadata.recv_initial_metadata = &call->metadata;
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    end.data.recv_status_on_client.trailing_metadata = &call->trailing;
    end.data.recv_status_on_client.status = &call->code;
    end.data.recv_status_on_client.status_details = &call->detail;
    bt_rpc_set_deadline_locked(call, BT_RPC_DIAL_MS);
    bt_rpc_call_batch(call, &end, 1, &call->on_end);
    bt_rpc_call_batch(call, answer, 2, &call->on_start);
    /* An empty batch comes back at once: the thread wakes up and sees the deadline. */
    bt_rpc_call_batch(call, NULL, 0, &call->on_wake);
}

bt_status bt_rpc_client_dial(struct bt_rpc_client *client, uint32_t slot, const char *address,
                             uint32_t deadline_ms, struct bt_error *err) {
    struct bt_rpc_streams *streams = &client->streams;
    struct bt_address parsed;
    if (slot >= streams->n_slots)
        return bt_fail(err, BT_E_INVALID, "slot is %u, must be under %u", slot, streams->n_slots);
    if (streams->slots[slot].call)
        return bt_fail(err, BT_E_INVALID, "slot %u is not free", slot);
    BT_TRY(bt_address_parse(address, &parsed, err));
    grpc_channel_credentials *credentials;
    if (streams->tls)
        BT_TRY(bt_rpc_tls_client(streams->tls, BT_TLS_ROUTER, &credentials, err));
    else
        credentials = grpc_insecure_credentials_create();
    struct bt_rpc_call *call = bt_rpc_call_create(streams);
    if (!call) {
        grpc_channel_credentials_release(credentials);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to dial %s", address);
    }
    call->on_start = (struct bt_rpc_tag){on_answer, call};
    call->slot = slot;
    call->has_slot = true;
    snprintf(call->peer, sizeof call->peer, "%s", address);
    call->channel = create_channel(&parsed, credentials,
                                   streams->tls ? BT_RPC_CONNECT_TLS_MS : BT_RPC_CONNECT_MS);
    gpr_timespec deadline = deadline_ms
                                ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                               gpr_time_from_millis(deadline_ms, GPR_TIMESPAN))
                                : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    call->grpc = grpc_channel_create_call(
        call->channel, NULL, GRPC_PROPAGATE_DEFAULTS, streams->queue,
        grpc_slice_from_static_string(BT_RPC_METHOD), NULL, deadline, NULL);
    streams->slots[slot].call = call;
    pthread_mutex_lock(&streams->lock);
    BT_ASSERT(!streams->calls[slot]);
    streams->calls[slot] = call;
    streams->n_live++;
    pthread_mutex_lock(&call->lock);
    begin_locked(call);
    pthread_mutex_unlock(&call->lock);
    pthread_mutex_unlock(&streams->lock);
    return BT_OK;
}

struct bt_rpc_streams *bt_rpc_client_streams(struct bt_rpc_client *client) {
    return &client->streams;
}

uint32_t bt_rpc_redial_ms(uint32_t failures, uint64_t random) {
    if (failures == 0)
        return 0;
    uint32_t max = failures < 4 ? REDIAL_MS_MIN * (failures + 1) : REDIAL_MS_MAX;
    return REDIAL_MS_MIN + (uint32_t)(random % (max - REDIAL_MS_MIN + 1));
}
