/* Draws arrivals and prompts from a seed, or reads them from a trace. */
#include "cli/bench_plan.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). */
static uint64_t draw(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* In (0, 1). */
static double draw_unit(uint64_t *state) {
    return ((double)(draw(state) >> 11) + 0.5) / 9007199254740992.0;
}

bt_status bt_bench_plan_rate(struct bt_bench_plan *plan, const struct bt_bench_rate *rate,
                             struct bt_error *err) {
    if (!(rate->per_s > 0) || !isfinite(rate->per_s))
        return bt_fail(err, BT_E_INVALID, "rate is %g requests a second, must be above 0",
                       rate->per_s);
    if (rate->n_requests < 1 || rate->n_requests > BT_BENCH_REQUESTS_MAX)
        return bt_fail(err, BT_E_INVALID, "requests is %" PRIu32 ", must be 1 to %d",
                       rate->n_requests, BT_BENCH_REQUESTS_MAX);
    plan->items = calloc(rate->n_requests, sizeof *plan->items);
    if (!plan->items)
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for %" PRIu32 " requests",
                       rate->n_requests);
    plan->n_items = rate->n_requests;
    uint64_t state = plan->seed;
    double at_s = 0;
    for (uint32_t i = 0; i < plan->n_items; i++) {
        plan->items[i] = (struct bt_bench_item){.at_us = (uint64_t)(at_s * 1e6),
                                                .prompt_tokens = rate->prompt_tokens,
                                                .max_tokens = rate->max_tokens};
        at_s += (rate->arrival == BT_BENCH_POISSON ? -log(draw_unit(&state)) : 1) / rate->per_s;
    }
    return BT_OK;
}

/* ---- traces ---- */

static bt_status get_number(const json_t *object, const char *name, uint32_t line, double max,
                            double *out, struct bt_error *err) {
    const json_t *value = json_object_get(object, name);
    if (!json_is_number(value))
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 ": %s must be a number", line, name);
    *out = json_number_value(value);
    if (!(*out >= 0 && *out <= max))
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 ": %s is %g, must be 0 to %g", line, name,
                       *out, max);
    return BT_OK;
}

/* The class's number; a new name gets the next one. */
static bt_status read_class(struct bt_bench_plan *plan, const json_t *object, uint32_t line,
                            uint32_t *out, struct bt_error *err) {
    const json_t *value = json_object_get(object, "class");
    const char *name = value ? json_string_value(value) : "other";
    size_t n = name ? strlen(name) : 0;
    if (n < 1 || n >= BT_BENCH_CLASS_BYTES)
        return bt_fail(err, BT_E_INVALID,
                       "line %" PRIu32 ": class must be a string of 1 to %d bytes", line,
                       BT_BENCH_CLASS_BYTES - 1);
    for (*out = 0; *out < plan->n_classes; ++*out)
        if (!strcmp(plan->classes[*out], name))
            return BT_OK;
    if (plan->n_classes == BT_BENCH_CLASSES_MAX)
        return bt_fail(err, BT_E_INVALID,
                       "line %" PRIu32 ": class \"%s\" is one too many, at most %d", line, name,
                       BT_BENCH_CLASSES_MAX);
    memcpy(plan->classes[plan->n_classes++], name, n + 1);
    return BT_OK;
}

static bt_status read_line(struct bt_bench_plan *plan, const json_t *object, uint32_t line,
                           double speed, struct bt_bench_item *item, struct bt_error *err) {
    double at_ms = 0, prompt = 0, answer = 0;
    uint32_t class_id = 0;
    if (!json_is_object(object))
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 " is not a JSON object", line);
    BT_TRY(get_number(object, "timestamp", line, 1e12, &at_ms, err));
    BT_TRY(get_number(object, "output_length", line, BT_BENCH_TOKENS_MAX, &answer, err));
    const json_t *text = json_object_get(object, "prompt");
    if (!text)
        BT_TRY(get_number(object, "input_length", line, BT_BENCH_TOKENS_MAX, &prompt, err));
    else if (!json_is_string(text))
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 ": prompt must be a string", line);
    BT_TRY(read_class(plan, object, line, &class_id, err));
    *item = (struct bt_bench_item){.at_us = (uint64_t)(at_ms * 1000 / speed),
                                   .class_id = class_id,
                                   .prompt_tokens = prompt < 1 ? 1 : (uint32_t)prompt,
                                   .max_tokens = answer < 1 ? 1 : (uint32_t)answer};
    if (text && !(item->prompt = strdup(json_string_value(text))))
        return bt_fail(err, BT_E_NO_MEMORY, "out of memory for a prompt");
    return BT_OK;
}

static bt_status add_line(struct bt_bench_plan *plan, struct bt_slice text, uint32_t line,
                          double speed, uint32_t *capacity, struct bt_error *err) {
    if (plan->n_items == *capacity) {
        uint32_t wanted = *capacity ? 2 * *capacity : 256;
        struct bt_bench_item *grown = realloc(plan->items, wanted * sizeof *grown);
        if (!grown)
            return bt_fail(err, BT_E_NO_MEMORY, "out of memory for %" PRIu32 " requests", wanted);
        plan->items = grown;
        *capacity = wanted;
    }
    json_error_t why;
    json_t *object = json_loadb(text.data, text.n_bytes, 0, &why);
    if (!object)
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 " is not JSON: %.100s", line, why.text);
    struct bt_bench_item item = {0};
    bt_status status = read_line(plan, object, line, speed, &item, err);
    json_decref(object);
    BT_TRY(status);
    plan->items[plan->n_items++] = item;
    if (plan->n_items > 1 && item.at_us < plan->items[plan->n_items - 2].at_us)
        return bt_fail(err, BT_E_INVALID, "line %" PRIu32 ": timestamp is below the line's before",
                       line);
    return BT_OK;
}

static bool is_blank(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r')
            return false;
    return true;
}

bt_status bt_bench_plan_trace(struct bt_bench_plan *plan, struct bt_slice trace, double speed,
                              uint32_t n_requests_max, struct bt_error *err) {
    uint32_t capacity = 0, line = 0;
    if (n_requests_max > BT_BENCH_REQUESTS_MAX)
        n_requests_max = BT_BENCH_REQUESTS_MAX;
    for (size_t at = 0; at < trace.n_bytes && plan->n_items < n_requests_max;) {
        const char *begin = trace.data + at;
        const char *end = memchr(begin, '\n', trace.n_bytes - at);
        size_t n = end ? (size_t)(end - begin) : trace.n_bytes - at;
        at += n + 1;
        line++;
        if (is_blank(begin, n))
            continue;
        BT_TRY(add_line(plan, (struct bt_slice){begin, n}, line, speed, &capacity, err));
    }
    if (!plan->n_items)
        return bt_fail(err, BT_E_INVALID, "the trace has no request");
    uint64_t first_us = plan->items[0].at_us;
    for (uint32_t i = 0; i < plan->n_items; i++)
        plan->items[i].at_us -= first_us;
    return BT_OK;
}

void bt_bench_plan_fini(struct bt_bench_plan *plan) {
    for (uint32_t i = 0; i < plan->n_items; i++)
        free(plan->items[i].prompt);
    free(plan->items);
    plan->items = NULL;
    plan->n_items = 0;
}

/* ---- prompts ---- */

/* Words that are one token each, with the space before them, in the common English vocabularies. */
static const char *const words[] = {
    "time",  "people", "way",   "water", "day",   "work",  "world", "school", "house", "night",
    "place", "hand",   "point", "state", "story", "light", "line",  "money",  "book",  "air",
    "power", "game",   "city",  "name",  "team",  "study", "level", "street", "music", "table",
    "field", "plan",   "north", "south", "river", "force", "art",   "war",    "law",   "food",
    "fire",  "land",   "mind",  "voice", "paper", "group", "road",  "form",   "room",  "stone",
};
enum { N_WORDS = sizeof words / sizeof words[0], WORD_BYTES = 8 };

char *bt_bench_prompt(const struct bt_bench_plan *plan, uint32_t i) {
    const struct bt_bench_item *item = &plan->items[i];
    if (item->prompt)
        return strdup(item->prompt);
    char *text = malloc((size_t)item->prompt_tokens * WORD_BYTES + 1);
    if (!text)
        return NULL;
    uint64_t shared = plan->seed, own = plan->seed + 1 + i;
    char *end = text;
    *end = 0;
    for (uint32_t w = 0; w < item->prompt_tokens; w++) {
        const char *word = words[draw(w < plan->shared_tokens ? &shared : &own) % N_WORDS];
        if (w)
            *end++ = ' ';
        end = stpcpy(end, word);
    }
    return text;
}
