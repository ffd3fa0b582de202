/* Sends chat turns to a router, prints the tokens as they come, then the request's stage times and
 * verdict. */
#include "cli/chat.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/http_client.h"
#include "cli/no_cache.h"
#include "common/base/clock.h"
#include "common/base/config.h"

enum { GAPS_MAX = 1 << 16, LINE_BYTES = 1 << 16, MAX_TOKENS = 512 };

struct chat {
    struct bt_http_client *client;
    json_t *messages;
    uint32_t max_tokens;
    const char *temperature, *seed; /* numbers as text, checked; NULL: the server's own */
    const char *api_key;            /* NULL: none */
    bool no_kv_cache;
    bool color;
    /* The answer under way. */
    double sent_ms, last_ms, first_ms; /* first_ms: after sending, < 0 until it comes */
    double *gaps_ms;
    size_t n_gaps;
    char *text;
    size_t text_bytes;
    struct bt_no_cache_answer *answer; /* kept where it is to be computed again, else NULL */
    json_t *record;                    /* of the answer that ended; NULL: the server sent none */
    bool failed, ended;
};

static double now_ms(void) {
    return (double)bt_clock_ns() / 1e6;
}

static void append(struct chat *chat, const char *text) {
    size_t n = strlen(text);
    char *grown = realloc(chat->text, chat->text_bytes + n + 1);
    if (!grown) {
        chat->failed = true;
        return;
    }
    memcpy(grown + chat->text_bytes, text, n + 1);
    chat->text = grown;
    chat->text_bytes += n;
}

/* Keeps the ids of an event, and how long they took. */
static void keep_tokens(struct chat *chat, const json_t *choice, double now) {
    struct bt_no_cache_answer *answer = chat->answer;
    json_t *ids = json_object_get(choice, "token_ids");
    double gap = now - (chat->first_ms < 0 ? chat->sent_ms : chat->last_ms);
    for (size_t i = 0; i < json_array_size(ids) && answer->n_tokens < BT_NO_CACHE_TOKENS_MAX; i++) {
        answer->tokens[answer->n_tokens] = (int32_t)json_integer_value(json_array_get(ids, i));
        answer->gaps_ms[answer->n_tokens++] = i ? 0 : gap;
    }
}

static void take_delta(struct chat *chat, json_t *event) {
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const char *text =
        json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (!choice)
        return;
    double now = now_ms();
    if (chat->answer)
        keep_tokens(chat, choice, now);
    if (chat->first_ms < 0)
        chat->first_ms = now - chat->sent_ms;
    else if (text && chat->n_gaps < GAPS_MAX)
        chat->gaps_ms[chat->n_gaps++] = now - chat->last_ms;
    chat->last_ms = now;
    if (text && *text) {
        fputs(text, stdout);
        fflush(stdout);
        append(chat, text);
    }
}

static bool on_line(void *arg, const char *line, size_t length) {
    struct chat *chat = arg;
    static const char data[] = "data: ";
    const char *json = !strncmp(line, data, sizeof data - 1) ? line + sizeof data - 1 : line;
    if (!*json || *json == ':' || !strncmp(line, "event:", 6))
        return true;
    if (!strcmp(json, "[DONE]")) {
        chat->ended = true;
        return true;
    }
    json_error_t why;
    json_t *event = json_loadb(json, length - (size_t)(json - line), 0, &why);
    if (!event) {
        fprintf(stderr, "\nchat: the server sent a line that is not JSON (%s): %.200s\n", why.text,
                line);
        chat->failed = true;
        return false;
    }
    json_t *error = json_object_get(event, "error");
    if (error) {
        const char *message = json_string_value(json_object_get(error, "message"));
        fprintf(stderr, "\nchat: %s\n", message ? message : "the server refused without a reason");
        chat->failed = true;
    } else {
        take_delta(chat, event);
        json_t *record = json_object_get(event, "baton");
        if (record) {
            json_decref(chat->record);
            chat->record = json_incref(record);
        }
    }
    json_decref(event);
    return true;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The request's record, as the router appends it to the last event: stages in milliseconds, the
 * workers it was on, the verdict. */
static void print_record(const json_t *record) {
    json_t *stages = json_object_get(record, "stages"), *value;
    const char *key, *comma = "";
    printf("  stages:  ");
    json_object_foreach(stages, key, value) {
        size_t n = strlen(key);
        if (n <= 3 || strcmp(key + n - 3, "_ms"))
            continue;
        if (json_is_number(value))
            printf("%s%.*s %.1f ms", comma, (int)n - 3, key, json_number_value(value));
        else /* nobody has reported it */
            printf("%s%.*s unknown", comma, (int)n - 3, key);
        comma = ", ";
    }
    const char *prefill = json_string_value(json_object_get(record, "prefill_worker"));
    const char *decode = json_string_value(json_object_get(record, "decode_worker"));
    const char *reason = json_string_value(json_object_get(record, "reason"));
    const char *verdict =
        json_string_value(json_object_get(json_object_get(record, "verdict"), "text"));
    if (decode)
        printf("\n  way:     %s%s%s%s%s%s", prefill ? prefill : "", prefill ? " -> " : "", decode,
               reason ? " (" : "", reason ? reason : "", reason ? ")" : "");
    printf("\n  verdict: %s\n", verdict ? verdict : "none");
}

static void print_times(struct chat *chat) {
    printf("\n\n%s", chat->color ? "\033[2m" : "");
    qsort(chat->gaps_ms, chat->n_gaps, sizeof *chat->gaps_ms, by_size);
    printf("  first token %.1f ms (TTFT)", chat->first_ms);
    if (chat->n_gaps) {
        double median = chat->gaps_ms[chat->n_gaps / 2], sum = 0;
        for (size_t i = 0; i < chat->n_gaps; i++)
            sum += chat->gaps_ms[i];
        printf(", then %zu tokens %.1f ms apart (ITL, median), %.0f tokens/s", chat->n_gaps, median,
               sum > 0 ? (double)chat->n_gaps * 1e3 / sum : 0);
    }
    printf("\n");
    if (chat->record)
        print_record(chat->record);
    else
        printf("(the server sent no stage times)\n");
    printf("%s\n", chat->color ? "\033[0m" : "");
    fflush(stdout);
}

static void add_message(struct chat *chat, const char *role, const char *content) {
    json_t *message = json_pack("{s:s, s:s%}", "role", role, "content", content, strlen(content));
    if (!message || json_array_append_new(chat->messages, message) != 0) {
        fprintf(stderr, "chat: \"%.40s\" is not valid UTF-8\n", content);
        chat->failed = true;
    }
}

/* The request's body as text; NULL where memory lacks. */
static char *make_body(const struct chat *chat) {
    json_t *body = json_pack("{s:O, s:b, s:i}", "messages", chat->messages, "stream", 1,
                             "max_tokens", (int)chat->max_tokens);
    if (chat->answer)
        json_object_set_new(body, "return_token_ids", json_true());
    if (chat->temperature)
        json_object_set_new(body, "temperature", json_real(strtod(chat->temperature, NULL)));
    if (chat->seed)
        json_object_set_new(body, "seed", json_integer(strtoll(chat->seed, NULL, 10)));
    char *json = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return json;
}

/* The answer once more, without a cache; before it joins the conversation. */
static bool show_no_cache(struct chat *chat) {
    char *messages = json_dumps(chat->messages, JSON_COMPACT);
    chat->answer->messages = messages;
    bool good = messages &&
                bt_no_cache_show(chat->client, chat->api_key, chat->answer, isatty(STDOUT_FILENO));
    chat->answer->messages = NULL;
    free(messages);
    return good;
}

/* Sends the conversation so far and prints the answer. */
static bool turn(struct chat *chat, const char *prompt) {
    chat->failed = chat->ended = false;
    add_message(chat, "user", prompt);
    if (chat->failed)
        return false;
    char *json = make_body(chat);
    if (!json) {
        fprintf(stderr, "chat: out of memory\n");
        return false;
    }
    chat->text_bytes = chat->n_gaps = 0;
    if (chat->answer)
        chat->answer->n_tokens = 0;
    json_decref(chat->record);
    chat->record = NULL;
    chat->first_ms = -1;
    chat->sent_ms = now_ms();
    const struct bt_http_request request = {.path = "/v1/chat/completions",
                                            .body = json,
                                            .header_name = "X-Baton-Timings",
                                            .header_value = "1",
                                            .api_key = chat->api_key};
    struct bt_http_answer answer;
    struct bt_error err;
    bt_status status = bt_http_client_request(chat->client, &request, on_line, chat, &answer, &err);
    free(json);
    if (status != BT_OK && !chat->failed)
        fprintf(stderr, "\nchat: %s\n", err.text);
    if (status != BT_OK || chat->failed || !chat->ended) {
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
        return false;
    }
    print_times(chat);
    bool good = !chat->answer || show_no_cache(chat);
    add_message(chat, "assistant", chat->text_bytes ? chat->text : "");
    return good;
}

static int converse(struct chat *chat) {
    bool terminal = isatty(STDIN_FILENO);
    char line[LINE_BYTES];
    bool good = true;
    if (terminal)
        printf("Ask something; Ctrl-D ends.\n");
    for (;;) {
        if (terminal)
            printf("> ");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            break;
        line[strcspn(line, "\n")] = 0;
        if (*line)
            good = turn(chat, line) && good;
    }
    return good ? 0 : 1;
}

/* The server checks the ranges; here only that these are numbers at all. */
static bt_status check_numbers(const struct chat *chat, struct bt_error *err) {
    char *end;
    if (chat->temperature &&
        (!isfinite(strtod(chat->temperature, &end)) || *end || end == chat->temperature))
        return bt_fail(err, BT_E_INVALID, "temperature: \"%.40s\" is not a number",
                       chat->temperature);
    errno = 0;
    if (chat->seed && (strtoll(chat->seed, &end, 10), *end || end == chat->seed || errno))
        return bt_fail(err, BT_E_INVALID, "seed: \"%.40s\" is not an integer of 64 bits",
                       chat->seed);
    return BT_OK;
}

/* Both ways must take the same tokens: greedily, and few, for each costs a whole prompt. */
static bt_status check_no_cache(struct chat *chat, struct bt_error *err) {
    if (!chat->max_tokens)
        chat->max_tokens = chat->no_kv_cache ? BT_NO_CACHE_TOKENS : MAX_TOKENS;
    if (!chat->no_kv_cache)
        return BT_OK;
    if (chat->temperature && strtod(chat->temperature, NULL) != 0)
        return bt_fail(err, BT_E_INVALID,
                       "temperature is %.40s, with --no-kv-cache it must be 0: both ways must take "
                       "the same tokens",
                       chat->temperature);
    if (chat->max_tokens > BT_NO_CACHE_TOKENS_MAX)
        return bt_fail(
            err, BT_E_INVALID,
            "max-tokens is %u, with --no-kv-cache it may be at most %d: each token costs "
            "the whole text",
            chat->max_tokens, BT_NO_CACHE_TOKENS_MAX);
    chat->temperature = "0";
    chat->answer = calloc(1, sizeof *chat->answer);
    return chat->answer ? BT_OK : bt_fail(err, BT_E_NO_MEMORY, "out of memory for an answer");
}

int bt_chat_main(int argc, char **argv) {
    struct chat chat = {.messages = json_array(), .gaps_ms = calloc(GAPS_MAX, sizeof(double))};
    const char *url, *words[1], *system = NULL, *ca_file = NULL;
    size_t n_words = 0;
    const struct bt_option options[] = {
        {"url", BT_OPTION_STRING, &url, "http://127.0.0.1:8000", .argument = "URL",
         .help = "The router."},
        {"max-tokens", BT_OPTION_U32, &chat.max_tokens, NULL, 1, 1u << 20, .argument = "N",
         .help = "Longest answer, in tokens; default: 512, with --no-kv-cache 64."},
        {"temperature", BT_OPTION_STRING, &chat.temperature, .argument = "T",
         .help = "0 always takes the likeliest token; 1 draws as the model says. Default: the "
                 "server's (1)."},
        {"seed", BT_OPTION_STRING, &chat.seed, .argument = "N",
         .help = "The same seed gives the same answer."},
        {"system", BT_OPTION_STRING, &system, .argument = "TEXT",
         .help = "System message of the conversation."},
        {"no-kv-cache", BT_OPTION_FLAG, &chat.no_kv_cache, "no",
         .help = "Then shows what the cache saves: computes the answer once more, each token from "
                 "the whole text so far, and prints both times between tokens. Takes temperature 0 "
                 "and at most 512 tokens."},
        {"ca-file", BT_OPTION_STRING, &ca_file, .argument = "FILE",
         .help = "Certificates (PEM) to trust an https router by; default: the system's."},
        {"api-key", BT_OPTION_STRING, &chat.api_key, .argument = "KEY",
         .help = "Where the router asks for one; better in BATON_API_KEY, where ps does not show "
                 "it."},
    };
    const struct bt_command command = {
        .name = "chat",
        .usage = "baton chat [--url URL] [PROMPT]",
        .summary = "Asks a running cluster and shows the answer with its stage times. Without "
                   "PROMPT it reads one question\n"
                   "per line and keeps the conversation.",
        .example = "  baton chat \"What is a KV cache?\"\n"
                   "  baton chat --no-kv-cache \"What is a KV cache?\"",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .words = words,
        .n_words_max = 1,
        .n_words = &n_words,
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    int code = status == BT_DONE ? 0 : 2;
    if (status == BT_OK)
        status = check_numbers(&chat, &err);
    if (status == BT_OK)
        status = check_no_cache(&chat, &err);
    if (status == BT_OK)
        status = bt_http_client_create(url, &chat.client, &err);
    if (status == BT_OK && ca_file)
        status = bt_http_client_trust(chat.client, ca_file, false, &err);
    if (status < 0) {
        fprintf(stderr, "baton chat: %s\n", err.text);
    } else if (status == BT_OK) {
        chat.color = isatty(STDOUT_FILENO);
        if (system)
            add_message(&chat, "system", system);
        code = chat.failed ? 2 : n_words ? !turn(&chat, words[0]) : converse(&chat);
    }
    bt_http_client_destroy(chat.client);
    json_decref(chat.messages);
    json_decref(chat.record);
    free(chat.gaps_ms);
    free(chat.answer);
    free(chat.text);
    return code;
}
