/* The open loop: a timer sends what is due, evhttp reads the streams, every event is timed. */
#include "cli/bench_load.h"

#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

#include "cli/bench_connection.h"
#include "common/base/clock.h"

enum { PROGRESS_MS = 250, LINE_BYTES_MAX = 1 << 20, MODELS_BYTES_MAX = 1 << 20 };

struct run {
    struct bt_bench_load *load;
    struct event_base *base;
    struct bt_bench_connections *connections;
    struct event *due, *progress, *interrupt;
    char path[512];
    uint64_t start_us;
    uint32_t n_sent, n_ended, n_failed;
};

/* One request under way. */
struct exchange {
    struct run *run;
    struct bt_bench_result *result;
    struct bt_bench_connection *connection;
    struct evbuffer *rest; /* an unfinished line, or the body of an error */
    bool done;             /* [DONE] has come */
};

static uint64_t now_us(const struct run *run) {
    return bt_clock_us() - run->start_us;
}

/* ---- an answer ---- */

static void add_gap(struct bt_bench_gaps *gaps, uint64_t us, uint32_t request) {
    if (gaps->n == gaps->capacity) {
        uint64_t wanted = gaps->capacity ? 2 * gaps->capacity : 4096;
        struct bt_bench_gap *grown = realloc(gaps->all, wanted * sizeof *grown);
        if (!grown)
            return; /* the sample is lost, the run goes on; n says how many there are */
        gaps->all = grown;
        gaps->capacity = wanted;
    }
    gaps->all[gaps->n++] = (struct bt_bench_gap){.us = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us,
                                                 .request = request};
}

static void set_reason(struct bt_bench_result *result, const char *text) {
    if (!result->reason[0])
        snprintf(result->reason, sizeof result->reason, "%s", text);
}

/* The message of an OpenAI error object, or the text as it is. */
static void set_error(struct bt_bench_result *result, const json_t *event, const char *text) {
    const char *message =
        json_string_value(json_object_get(json_object_get(event, "error"), "message"));
    set_reason(result, message ? message : text);
}

/* Whether the event shows something of the answer: servers also send events with a role only, with
 * the finish reason only, with usage only. */
static bool has_content(const json_t *event) {
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *texts[] = {json_object_get(choice, "text"), json_object_get(delta, "content"),
                             json_object_get(delta, "reasoning"),
                             json_object_get(delta, "reasoning_content")};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (json_string_length(texts[i]))
            return true;
    return json_array_size(json_object_get(delta, "tool_calls")) > 0;
}

static void take_event(struct exchange *x, const char *text, uint64_t at_us) {
    struct bt_bench_result *result = x->result;
    if (!strcmp(text, "[DONE]")) {
        x->done = true;
        return;
    }
    json_t *event = json_loads(text, 0, NULL);
    if (!event || json_object_get(event, "error")) {
        set_error(result, event, "an event is not JSON");
        json_decref(event);
        return;
    }
    if (has_content(event)) {
        if (result->first_us)
            add_gap(&x->run->load->gaps, at_us - result->last_us,
                    (uint32_t)(result - x->run->load->results));
        else
            result->first_us = at_us;
        result->last_us = at_us;
        result->n_events++;
    }
    const json_t *usage = json_object_get(event, "usage");
    if (json_is_object(usage)) {
        result->prompt_tokens =
            (uint32_t)json_integer_value(json_object_get(usage, "prompt_tokens"));
        result->completion_tokens =
            (uint32_t)json_integer_value(json_object_get(usage, "completion_tokens"));
    }
    json_decref(event);
}

static void on_chunk(struct evhttp_request *request, void *arg) {
    struct exchange *x = arg;
    uint64_t at_us = now_us(x->run);
    evbuffer_add_buffer(x->rest, evhttp_request_get_input_buffer(request));
    if (evhttp_request_get_response_code(request) != 200)
        return; /* an error's body: read at the end */
    char *line;
    while ((line = evbuffer_readln(x->rest, NULL, EVBUFFER_EOL_CRLF))) {
        if (!strncmp(line, "data:", 5))
            take_event(x, line + 5 + (line[5] == ' '), at_us);
        free(line);
    }
    if (evbuffer_get_length(x->rest) > LINE_BYTES_MAX) {
        set_reason(x->result, "a line of the stream is longer than 1 MiB");
        evbuffer_drain(x->rest, evbuffer_get_length(x->rest));
    }
}

static void judge(struct exchange *x, struct evhttp_request *request) {
    struct bt_bench_result *result = x->result;
    char text[400] = "";
    result->code = request ? evhttp_request_get_response_code(request) : 0;
    if (!result->code) {
        set_reason(result, result->first_us ? "the stream was cut" : "no answer");
    } else if (result->code != 200) {
        evbuffer_add_buffer(x->rest, evhttp_request_get_input_buffer(request));
        ssize_t n = evbuffer_copyout(x->rest, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        json_t *body = json_loads(text, 0, NULL);
        snprintf(text + 300, 100, "HTTP %d", result->code);
        set_error(result, body, text + 300);
        json_decref(body);
    } else if (!x->done) {
        set_reason(result, "the stream ended without [DONE]");
    } else if (!result->first_us) {
        set_reason(result, "no token came");
    }
    result->ok = !result->reason[0];
}

static void end_if_all_ended(struct run *run) {
    if (run->n_ended == run->load->plan->n_items)
        event_base_loopbreak(run->base);
}

static void on_done(struct evhttp_request *request, void *arg) {
    struct exchange *x = arg;
    struct run *run = x->run;
    struct bt_bench_result *result = x->result;
    if (request && evhttp_request_get_response_code(request) == 200)
        on_chunk(request, x);
    judge(x, request);
    result->end_us = now_us(run);
    if (!result->completion_tokens)
        result->completion_tokens = result->n_events;
    run->n_ended++;
    run->n_failed += !result->ok;
    bt_bench_connection_give_back(x->connection, result->code != 0);
    evbuffer_free(x->rest);
    free(x);
    end_if_all_ended(run);
}

/* ---- a request ---- */

static char *make_body(const struct run *run, uint32_t i) {
    const struct bt_bench_server *server = &run->load->server;
    char *prompt = bt_bench_prompt(run->load->plan, i);
    if (!prompt)
        return NULL;
    json_t *body = json_pack("{s:s, s:b, s:{s:b}, s:i, s:f}", "model", run->load->model, "stream",
                             1, "stream_options", "include_usage", 1, "max_tokens",
                             (int)run->load->plan->items[i].max_tokens, "temperature",
                             strtod(server->temperature, NULL));
    if (server->ignore_eos)
        json_object_set_new(body, "ignore_eos", json_true());
    if (server->chat)
        json_object_set_new(body, "messages",
                            json_pack("[{s:s, s:s}]", "role", "user", "content", prompt));
    else
        json_object_set_new(body, "prompt", json_string(prompt));
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    free(prompt);
    return text;
}

/* False: out of memory. */
static bool send_one(struct run *run, uint32_t i) {
    struct exchange *x = calloc(1, sizeof *x);
    char *body = make_body(run, i);
    if (!x || !body || !(x->rest = evbuffer_new()) ||
        !(x->connection = bt_bench_connection_take(run->connections)))
        goto fail;
    x->run = run;
    x->result = &run->load->results[i];
    struct evhttp_request *request = evhttp_request_new(on_done, x);
    if (!request)
        goto fail;
    evhttp_request_set_chunked_cb(request, on_chunk);
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    evhttp_add_header(headers, "Content-Type", "application/json");
    evbuffer_add(evhttp_request_get_output_buffer(request), body, strlen(body));
    free(body);
    x->result->sent_us = now_us(run);
    /* Where it fails at once, on_done has been called or the request is gone: libevent says so. */
    if (bt_bench_connection_send(x->connection, request, EVHTTP_REQ_POST, run->path) != 0) {
        set_reason(x->result, "no connection");
        on_done(NULL, x);
    }
    return true;
fail:
    if (x && x->connection)
        bt_bench_connection_give_back(x->connection, true);
    if (x && x->rest)
        evbuffer_free(x->rest);
    free(body);
    free(x);
    return false;
}

static void on_due(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct run *run = arg;
    const struct bt_bench_plan *plan = run->load->plan;
    for (; run->n_sent < plan->n_items; run->n_sent++) {
        uint64_t at_us = plan->items[run->n_sent].at_us, now = now_us(run);
        if (at_us > now) {
            const struct timeval wait = {(time_t)((at_us - now) / 1000000),
                                         (suseconds_t)((at_us - now) % 1000000)};
            event_add(run->due, &wait);
            return;
        }
        struct bt_bench_result *result = &run->load->results[run->n_sent];
        result->due_us = at_us;
        if (!send_one(run, run->n_sent)) {
            set_reason(result, "out of memory for a request");
            run->n_ended++;
            run->n_failed++;
            end_if_all_ended(run);
        }
    }
}

static void on_progress(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct run *run = arg;
    const struct bt_bench_progress progress = {.n_sent = run->n_sent,
                                               .n_ended = run->n_ended,
                                               .n_failed = run->n_failed,
                                               .n_in_flight = run->n_sent - run->n_ended,
                                               .n_total = run->load->plan->n_items,
                                               .elapsed_us = now_us(run)};
    if (run->load->on_progress)
        run->load->on_progress(run->load->arg, &progress);
}

static void on_interrupt(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    struct run *run = arg;
    run->load->stopped = true;
    event_base_loopbreak(run->base);
}

/* ---- the model's name ---- */

struct asked {
    struct event_base *base;
    char *text;
    int code;
};

static void on_models(struct evhttp_request *request, void *arg) {
    struct asked *asked = arg;
    asked->code = request ? evhttp_request_get_response_code(request) : 0;
    struct evbuffer *body = request ? evhttp_request_get_input_buffer(request) : NULL;
    size_t n = body ? evbuffer_get_length(body) : 0;
    if (n < MODELS_BYTES_MAX && (asked->text = malloc(n + 1))) {
        ssize_t got = body ? evbuffer_copyout(body, asked->text, n) : 0;
        asked->text[got > 0 ? got : 0] = 0;
    }
    event_base_loopbreak(asked->base);
}

static bt_status ask_model(struct run *run, struct bt_error *err) {
    struct bt_bench_load *load = run->load;
    if (load->server.model) {
        snprintf(load->model, sizeof load->model, "%s", load->server.model);
        return BT_OK;
    }
    struct asked asked = {.base = run->base};
    char path[512];
    struct bt_bench_connection *connection = bt_bench_connection_take(run->connections);
    struct evhttp_request *request = connection ? evhttp_request_new(on_models, &asked) : NULL;
    if (!request)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for a request");
    snprintf(path, sizeof path, "%s/v1/models", bt_bench_connections_prefix(run->connections));
    if (bt_bench_connection_send(connection, request, EVHTTP_REQ_GET, path) == 0)
        event_base_dispatch(run->base);
    bt_bench_connection_give_back(connection, asked.code != 0);
    json_t *list = asked.text ? json_loads(asked.text, 0, NULL) : NULL;
    free(asked.text);
    const char *id =
        json_string_value(json_object_get(json_array_get(json_object_get(list, "data"), 0), "id"));
    bt_status status = BT_OK;
    if (id)
        snprintf(load->model, sizeof load->model, "%s", id);
    else if (asked.code)
        status = bt_fail(err, BT_E_PEER_GONE,
                         "GET %.200s/v1/models answered HTTP %d and no model; --model names one",
                         load->server.url, asked.code);
    else
        status = bt_fail(err, BT_E_PEER_GONE, "no answer from %.200s; is a server running there%s?",
                         load->server.url,
                         !strncmp(load->server.url, "https", 5)
                             ? ", with a certificate that is trusted here (--ca-file)"
                             : "");
    json_decref(list);
    return status;
}

/* ---- the whole run ---- */

static bt_status prepare(struct run *run, struct bt_error *err) {
    struct bt_bench_load *load = run->load;
    /* Timers of libevent are rounded to milliseconds unless it is asked. */
    struct event_config *config = event_config_new();
    if (config && event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER) == 0)
        run->base = event_base_new_with_config(config);
    if (config)
        event_config_free(config);
    load->results = calloc(load->plan->n_items, sizeof *load->results);
    if (!run->base || !load->results)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for %" PRIu32 " requests",
                       load->plan->n_items);
    const struct bt_bench_target target = {.url = load->server.url,
                                           .api_key = load->server.api_key,
                                           .ca_file = load->server.ca_file,
                                           .timeout_s = load->server.timeout_s};
    BT_TRY(bt_bench_connections_create(run->base, &target, &run->connections, err));
    snprintf(run->path, sizeof run->path, "%s%s", bt_bench_connections_prefix(run->connections),
             load->server.chat ? "/v1/chat/completions" : "/v1/completions");
    run->due = evtimer_new(run->base, on_due, run);
    run->progress = event_new(run->base, -1, EV_PERSIST, on_progress, run);
    run->interrupt = evsignal_new(run->base, SIGINT, on_interrupt, run);
    if (!run->due || !run->progress || !run->interrupt)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the loop's events");
    return ask_model(run, err);
}

static int by_size(const void *a, const void *b) {
    const struct bt_bench_gap *x = a, *y = b;
    return (x->us > y->us) - (x->us < y->us);
}

/* Each request's p99 is found by nearest rank, as everywhere, in one walk over the gaps, which
 * ascend. */
bool bt_bench_gaps_sort(struct bt_bench_load *load) {
    struct bt_bench_gaps *gaps = &load->gaps;
    struct {
        uint32_t n, seen;
    } *of = calloc(load->plan->n_items, sizeof *of);
    if (!of)
        return false;
    if (gaps->n)
        qsort(gaps->all, gaps->n, sizeof *gaps->all, by_size);
    for (uint64_t i = 0; i < gaps->n; i++)
        of[gaps->all[i].request].n++;
    for (uint64_t i = 0; i < gaps->n; i++) {
        uint32_t request = gaps->all[i].request;
        uint64_t rank = (99 * (uint64_t)of[request].n + 99) / 100;
        if (++of[request].seen <= rank)
            load->results[request].itl_p99_us = gaps->all[i].us;
    }
    free(of);
    return true;
}

/* What did not end is not ok, and says why. */
static bt_status close_results(struct run *run, struct bt_error *err) {
    struct bt_bench_load *load = run->load;
    if (!bt_bench_gaps_sort(load))
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for the gaps");
    for (uint32_t i = 0; i < load->plan->n_items; i++) {
        struct bt_bench_result *result = &load->results[i];
        if (!result->end_us && !result->reason[0])
            set_reason(result, i < run->n_sent ? "interrupted" : "not sent");
        if (result->end_us > load->took_us)
            load->took_us = result->end_us;
    }
    return BT_OK;
}

bt_status bt_bench_load_run(struct bt_bench_load *load, struct bt_error *err) {
    struct run run = {.load = load};
    bt_status status = prepare(&run, err);
    if (status == BT_OK) {
        const struct timeval period = {0, PROGRESS_MS * 1000}, at_once = {0, 0};
        run.start_us = bt_clock_us();
        event_add(run.progress, &period);
        event_add(run.interrupt, NULL);
        event_add(run.due, &at_once);
        event_base_dispatch(run.base);
        on_progress(-1, 0, &run);
        status = close_results(&run, err);
    }
    struct event *events[] = {run.due, run.progress, run.interrupt};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    bt_bench_connections_destroy(run.connections);
    if (run.base)
        event_base_free(run.base);
    return status;
}

void bt_bench_load_fini(struct bt_bench_load *load) {
    free(load->results);
    free(load->gaps.all);
    load->results = NULL;
    load->gaps = (struct bt_bench_gaps){0};
}
