/* A closed-loop client for streams over gRPC: what sse_load is for HTTP, with the same line of
 * JSON.
 *
 *   grpc_load --port P [--streams N] [--connections N] [--requests N] [--tokens N] [--words N]
 *             [--vocab N] [--seconds S] [--ramp-us N] [--ca FILE] [--fresh] [--by-index] [--hold]
 *
 * Each stream starts its next baton.v1.Inference/Generate when the last one has ended. Streams
 * share
 * --connections (by default one for each 500), or --fresh: each call has a channel of its own, made
 * for it. The other options are those of sse_load. One thread, one completion queue. */
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/inference.pb-c.h"
#include "tests/bench/load.h"

struct client;
struct stream;

/* One batch of a call: `done` runs when it comes back. */
struct tag {
    void (*done)(struct client *client, struct stream *stream, bool ok);
    struct stream *stream;
};

struct stream {
    struct tag on_start, on_message, on_end;
    grpc_channel *channel;
    bool owns_channel;
    grpc_call *call;
    int n_out; /* batches that have not come back */
    uint32_t n_tokens;
    uint64_t sent_us;
    grpc_byte_buffer *request, *message; /* sending takes the request's slices out of it */
    grpc_metadata_array initial, trailing;
    grpc_slice details;
    grpc_status_code code;
};

struct client {
    struct load load;
    char address[64], *ca;
    grpc_completion_queue *queue;
    grpc_channel **channels;
    grpc_byte_buffer *request;
    struct stream *streams;
};

static char *read_file(const char *path) {
    FILE *file = fopen(path, "r");
    char *text = calloc(1, 1 << 16);
    if (!file || !text || !fread(text, 1, (1 << 16) - 1, file)) {
        perror(path);
        exit(2);
    }
    fclose(file);
    return text;
}

static grpc_channel *make_channel(const struct client *client) {
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL,
         .value.integer = 1},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_RETRIES, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_HTTP2_BDP_PROBE, .value.integer = 0},
        {.type = GRPC_ARG_STRING,
         .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = (char *)"localhost"},
    };
    grpc_channel_args list = {.num_args = sizeof args / sizeof args[0] - !client->ca, .args = args};
    grpc_channel_credentials *credentials =
        client->ca ? grpc_ssl_credentials_create(client->ca, NULL, NULL, NULL)
                   : grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(client->address, credentials, &list);
    grpc_channel_credentials_release(credentials);
    return channel;
}

static void make_request(struct client *client) {
    const struct load *load = &client->load;
    Baton__V1__GenerateRequest message;
    Baton__V1__SamplingParams sampling;
    Baton__V1__TokenIds tokens;
    uint32_t ids[PROMPT_IDS];
    char *words = load_words(load);
    baton__v1__generate_request__init(&message);
    baton__v1__sampling_params__init(&sampling);
    baton__v1__token_ids__init(&tokens);
    for (uint32_t i = 0; i < PROMPT_IDS; i++)
        ids[i] = FIRST_ID + i;
    tokens.n_ids = PROMPT_IDS;
    tokens.ids = ids;
    sampling.ignore_eos = true;
    sampling.max_tokens_opt_case = BATON__V1__SAMPLING_PARAMS__MAX_TOKENS_OPT_MAX_TOKENS;
    sampling.max_tokens = load->tokens;
    message.sampling = &sampling;
    if (words) {
        message.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TEXT;
        message.text = (ProtobufCBinaryData){strlen(words), (uint8_t *)words};
    } else {
        message.prompt_case = BATON__V1__GENERATE_REQUEST__PROMPT_TOKENS;
        message.tokens = &tokens;
    }
    grpc_slice slice = grpc_slice_malloc(baton__v1__generate_request__get_packed_size(&message));
    baton__v1__generate_request__pack(&message, GRPC_SLICE_START_PTR(slice));
    client->request = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    free(words);
}

/* ---- a call ---- */

static void start(struct client *client, struct stream *stream);

static void batch(struct stream *stream, grpc_op *ops, size_t n, struct tag *tag) {
    tag->stream = stream;
    stream->n_out++;
    grpc_call_error error = grpc_call_start_batch(stream->call, ops, n, tag, NULL);
    if (error != GRPC_CALL_OK) {
        fprintf(stderr, "grpc_load: a batch was refused: %s\n", grpc_call_error_to_string(error));
        exit(1);
    }
}

static void release(struct stream *stream) {
    grpc_call_unref(stream->call);
    grpc_metadata_array_destroy(&stream->initial);
    grpc_metadata_array_destroy(&stream->trailing);
    grpc_slice_unref(stream->details);
    grpc_byte_buffer_destroy(stream->request);
    if (stream->owns_channel)
        grpc_channel_destroy(stream->channel);
    stream->call = NULL;
    stream->owns_channel = false;
}

static void on_batch(struct client *client, struct stream *stream) {
    if (--stream->n_out)
        return;
    if (stream->code == GRPC_STATUS_OK) {
        load_end(&client->load, stream->n_tokens);
    } else {
        char *text = grpc_slice_to_c_string(stream->details), why[256];
        snprintf(why, sizeof why, "status %d: %.200s", (int)stream->code, text);
        gpr_free(text);
        load_fail(&client->load, why);
        client->load.n_ended++;
    }
    release(stream);
    start(client, stream);
}

static void on_start_or_end(struct client *client, struct stream *stream, bool ok) {
    (void)ok; /* the status says why */
    on_batch(client, stream);
}

static void receive(struct stream *stream) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &stream->message;
    batch(stream, &op, 1, &stream->on_message);
}

static void take(struct client *client, struct stream *stream) {
    uint64_t now = load_now_us();
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, stream->message))
        exit(1);
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    Baton__V1__GenerateResponse *response = baton__v1__generate_response__unpack(
        NULL, GRPC_SLICE_LENGTH(all), GRPC_SLICE_START_PTR(all));
    for (size_t i = 0; response && i < response->n_tokens; i++) {
        client->load.n_unordered += response->tokens[i]->index != stream->n_tokens;
        load_take(&client->load, stream->n_tokens++, response->tokens[i]->id, stream->sent_us, now);
    }
    if (!response)
        load_fail(&client->load, "a message is no GenerateResponse");
    baton__v1__generate_response__free_unpacked(response, NULL);
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(stream->message);
    stream->message = NULL;
}

static void on_message(struct client *client, struct stream *stream, bool ok) {
    if (ok && stream->message) {
        take(client, stream);
        receive(stream);
    }
    on_batch(client, stream);
}

static void start(struct client *client, struct stream *stream) {
    struct load *load = &client->load;
    if (load->n_started == load->n_requests)
        return;
    load->n_started++;
    stream->n_tokens = 0;
    stream->sent_us = load_now_us();
    stream->owns_channel = load->fresh;
    if (load->fresh)
        stream->channel = make_channel(client);
    stream->call =
        grpc_channel_create_call(stream->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->queue,
                                 grpc_slice_from_static_string("/baton.v1.Inference/Generate"),
                                 NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_metadata_array_init(&stream->initial);
    grpc_metadata_array_init(&stream->trailing);
    stream->details = grpc_empty_slice();
    stream->on_start.done = stream->on_end.done = on_start_or_end;
    stream->on_message.done = on_message;
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    end.data.recv_status_on_client.trailing_metadata = &stream->trailing;
    end.data.recv_status_on_client.status = &stream->code;
    end.data.recv_status_on_client.status_details = &stream->details;
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_MESSAGE},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    stream->request = grpc_byte_buffer_copy(client->request);
    ops[1].data.send_message.send_message = stream->request;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &stream->initial;
    batch(stream, &end, 1, &stream->on_end);
    batch(stream, ops, 4, &stream->on_start);
    receive(stream);
}

/* ---- all of them ---- */

/* Takes what is there, waiting up to so long for the first. */
static void turn(struct client *client, uint64_t wait_us) {
    gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                      gpr_time_from_micros((int64_t)wait_us, GPR_TIMESPAN));
    grpc_event event = grpc_completion_queue_next(client->queue, until, NULL);
    if (event.type != GRPC_OP_COMPLETE)
        return;
    struct tag *tag = event.tag;
    tag->done(client, tag->stream, event.success);
}

static void run(struct client *client) {
    struct load *load = &client->load;
    for (uint32_t i = 0; i < load->n_streams; i++) {
        uint64_t until = load_now_us() + load->ramp_us;
        client->streams[i].channel = client->channels[i % load->n_connections];
        start(client, &client->streams[i]);
        for (uint64_t now; load->ramp_us && (now = load_now_us()) < until;)
            turn(client, until - now);
    }
    while (load_goes_on(load))
        turn(client, 100000);
}

/* Ends what is still open. */
static void stop(struct client *client) {
    client->load.n_requests = client->load.n_started;
    for (uint32_t i = 0; i < client->load.n_streams; i++)
        if (client->streams[i].call)
            grpc_call_cancel(client->streams[i].call, NULL);
    for (uint32_t i = 0; i < client->load.n_streams; i++)
        while (client->streams[i].call)
            turn(client, 100000);
    for (uint32_t i = 0; i < client->load.n_connections; i++)
        grpc_channel_destroy(client->channels[i]);
    grpc_completion_queue_shutdown(client->queue);
    while (
        grpc_completion_queue_next(client->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
        GRPC_QUEUE_SHUTDOWN)
        continue;
    grpc_completion_queue_destroy(client->queue);
    grpc_byte_buffer_destroy(client->request);
    free(client->channels);
    free(client->streams);
    free(client->ca);
}

int main(int argc, char **argv) {
    static struct client client;
    struct load *load = &client.load;
    if (!load_parse(load, argc, argv))
        return 2;
    client.ca = load->ca ? read_file(load->ca) : NULL;
    snprintf(client.address, sizeof client.address, "ipv4:127.0.0.1:%d", load->port);
    grpc_init();
    client.queue = grpc_completion_queue_create_for_next(NULL);
    client.channels = calloc(load->n_connections, sizeof(grpc_channel *));
    client.streams = calloc(load->n_streams, sizeof *client.streams);
    if (!client.channels || !client.streams)
        return 1;
    for (uint32_t i = 0; i < load->n_connections; i++)
        client.channels[i] = make_channel(&client);
    make_request(&client);
    run(&client);
    load_report(load);
    bool good = !load->n_errors && !load->n_unordered;
    stop(&client);
    grpc_shutdown_blocking();
    return good ? 0 : 1;
}
