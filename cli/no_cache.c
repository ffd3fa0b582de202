/* Computes an answer again without the cache and shows both times side by side. */
#include "cli/no_cache.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cli/bars.h"
#include "common/base/clock.h"

enum { BAR_CELLS = 36, FIRST_SHARE = 3, FEW = 8 };

struct show {
    struct bt_http_client *client;
    const char *api_key;
    json_t *prompt;  /* ids so far */
    uint64_t salt;   /* random: of this run */
    json_t *reply;   /* the body that came last */
    double scale_ms; /* a whole bar */
    bool terminal, unicode;
    uint32_t n; /* tokens timed both ways */
    double with_ms[BT_NO_CACHE_TOKENS_MAX], without_ms[BT_NO_CACHE_TOKENS_MAX];
};

static bool on_line(void *arg, const char *line, size_t length) {
    struct show *show = arg;
    if (!length)
        return true;
    json_decref(show->reply);
    show->reply = json_loadb(line, length, 0, NULL);
    return true;
}

/* Answers the body of a POST in show->reply; false where there is none that is good, which has been
 * said. Takes body. */
static bool post(struct show *show, const char *path, json_t *body) {
    struct bt_http_answer answer;
    struct bt_error err;
    char *json = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    if (!json) {
        fprintf(stderr, "chat: out of memory\n");
        return false;
    }
    json_decref(show->reply);
    show->reply = NULL;
    const struct bt_http_request request = {.path = path, .body = json, .api_key = show->api_key};
    bt_status status = bt_http_client_request(show->client, &request, on_line, show, &answer, &err);
    free(json);
    if (status == BT_OK && answer.code == 200 && show->reply)
        return true;
    const char *message =
        json_string_value(json_object_get(json_object_get(show->reply, "error"), "message"));
    if (status != BT_OK)
        fprintf(stderr, "\nchat: %s\n", err.text);
    else
        fprintf(stderr, "\nchat: %s answered %d: %s\n", path, answer.code,
                message ? message : "no reason was given");
    return false;
}

static bool get_prompt(struct show *show, const char *messages) {
    json_t *body = json_pack("{s:o}", "messages", json_loads(messages, 0, NULL));
    if (!post(show, "/tokenize", body))
        return false;
    show->prompt = json_deep_copy(json_object_get(show->reply, "tokens"));
    if (json_is_array(show->prompt) && json_array_size(show->prompt))
        return true;
    fprintf(stderr, "\nchat: /tokenize answered without tokens\n");
    return false;
}

/* The token after the prompt so far, computed from nothing. */
static bool recompute(struct show *show, uint32_t i, int32_t *token, double *ms) {
    char salt[64];
    snprintf(salt, sizeof salt, "no-kv-cache-%016" PRIx64 "-%" PRIu32, show->salt, i);
    json_t *body = json_pack("{s:O, s:i, s:i, s:s, s:b}", "prompt", show->prompt, "max_tokens", 1,
                             "temperature", 0, "cache_salt", salt, "return_token_ids", 1);
    uint64_t from_ns = bt_clock_ns();
    if (!post(show, "/v1/completions", body))
        return false;
    *ms = (double)(bt_clock_ns() - from_ns) / 1e6;
    json_t *choice = json_array_get(json_object_get(show->reply, "choices"), 0);
    json_t *id = json_array_get(json_object_get(choice, "token_ids"), 0);
    if (!json_is_integer(id)) {
        fprintf(stderr, "\nchat: /v1/completions answered without token_ids\n");
        return false;
    }
    *token = (int32_t)json_integer_value(id);
    json_array_append_new(show->prompt, json_integer(*token));
    return true;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, size_t n) {
    double sorted[BT_NO_CACHE_TOKENS_MAX];
    memcpy(sorted, values, n * sizeof *values);
    qsort(sorted, n, sizeof *sorted, by_size);
    return n ? sorted[n / 2] : 0;
}

/* One line per token; on a terminal it is written over by the next, except at powers of two. Times
 * of single tokens jump, so the last few stand for each. */
static void print_row(struct show *show, uint32_t n_tokens) {
    char with_bar[BT_BAR_BYTES], without_bar[BT_BAR_BYTES];
    uint32_t token = show->n + 1, few = show->n < FEW ? show->n : FEW;
    bool kept = (token & (token - 1)) == 0 || token == n_tokens;
    if (!show->terminal && !kept)
        return;
    double with_ms = median(show->with_ms + show->n - few, few);
    double without_ms = median(show->without_ms + show->n - few, few);
    if (show->scale_ms == 0)
        show->scale_ms = FIRST_SHARE * (without_ms > with_ms ? without_ms : with_ms);
    bt_bar(with_bar, with_ms / show->scale_ms, BAR_CELLS / 3, true, show->unicode);
    bt_bar(without_bar, without_ms / show->scale_ms, BAR_CELLS, show->terminal, show->unicode);
    printf("%s  %5" PRIu32 " %8zu  %8.1f ms %s %8.1f ms %s%s", show->terminal ? "\r" : "", token,
           json_array_size(show->prompt) - 1, with_ms, with_bar, without_ms, without_bar,
           kept ? "\n" : "");
    fflush(stdout);
}

static void print_end(const struct show *show, size_t n_prompt) {
    if (!show->n) {
        printf("\nOne token only: there is nothing to compare.\n");
        return;
    }
    double with_ms = median(show->with_ms, show->n), without_ms = median(show->without_ms, show->n);
    printf(
        "\nWith the KV cache %.1f ms a token, without %.1f ms, %.0f times (medians of %" PRIu32
        " tokens after a prompt of %zu).\nThe same %" PRIu32
        " tokens both ways. Without a cache the cost of a token grows with the text; with it only "
        "its own is computed.\n",
        with_ms, without_ms, with_ms > 0 ? without_ms / with_ms : 0, show->n, n_prompt,
        show->n + 1);
}

static bool run(struct show *show, const struct bt_no_cache_answer *answer) {
    if (!get_prompt(show, answer->messages))
        return false;
    size_t n_prompt = json_array_size(show->prompt);
    printf("Demonstration: the same answer without the KV cache. Each token is computed from the "
           "whole text so far.\n\n  token  context  with the cache%*s without it (medians of the "
           "last %d)\n",
           BAR_CELLS / 3 - 1, "", FEW);
    for (uint32_t i = 0; i < answer->n_tokens; i++) {
        int32_t token;
        double ms;
        if (!recompute(show, i, &token, &ms))
            return false;
        if (token != answer->tokens[i]) {
            printf("\nToken %" PRIu32 " differs: %" PRId32 " with the cache, %" PRId32
                   " without it. That must not be.\n",
                   i + 1, answer->tokens[i], token);
            return false;
        }
        if (!i)
            continue; /* its prompt is computed either way: there is no gap to compare */
        show->with_ms[show->n] = answer->gaps_ms[i];
        show->without_ms[show->n++] = ms;
        print_row(show, answer->n_tokens);
    }
    print_end(show, n_prompt);
    return true;
}

bool bt_no_cache_show(struct bt_http_client *client, const char *api_key,
                      const struct bt_no_cache_answer *answer, bool terminal) {
    struct show show = {
        .client = client, .api_key = api_key, .terminal = terminal, .unicode = bt_bar_unicode()};
    if (getrandom(&show.salt, sizeof show.salt, 0) != (ssize_t)sizeof show.salt) {
        fprintf(stderr, "chat: no random bytes for the salt\n");
        return false;
    }
    bool good = run(&show, answer);
    fflush(stdout);
    json_decref(show.prompt);
    json_decref(show.reply);
    return good;
}
