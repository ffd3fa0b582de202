/* Turns a conversation in JSON into template values, renders, and reports what came from the
 * client. */
#include "common/text/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/jinja_eval.h"
#include "common/text/jinja_parser.h"
#include "common/text/jinja_string.h"

enum {
    TEMPLATE_MEMORY_BYTES = 64 << 20, /* of the parsed template */
    OUTPUT_BYTES_MAX = 64 << 20,      /* counted for memory; a larger bound stands, but for it */
    PROBE_STEPS = 200000,
};

struct bt_chat_template {
    struct bt_arena arena;
    struct bt_jnode *root;
    bool reads_parts;
};

/* NOLINTBEGIN(misc-no-recursion): JSON nests at most BT_JINJA_DATA_DEPTH deep, counted here. */
static bt_status from_json(struct bt_jinja *j, const json_t *json, int depth,
                           struct bt_jvalue *out);

static bt_status from_object(struct bt_jinja *j, const json_t *json, int depth,
                             struct bt_jvalue *out) {
    /* jansson's iteration takes the object without const, and does not change it. */
    json_t *object = (json_t *)json;
    BT_TRY(bt_jinja_dict(j, json_object_size(json), out));
    struct bt_jdict *dict = out->dict;
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *name = json_object_iter_key(at);
        struct bt_jvalue key, value;
        /* The key stays while the object is borrowed; no two keys of an object are equal. */
        BT_TRY(bt_jinja_string(
            j, (struct bt_jstring){.data = name, .n_bytes = strlen(name), .tainted = true}, &key));
        BT_TRY(from_json(j, json_object_iter_value(at), depth + 1, &value));
        dict->entries[dict->n_entries++] = (struct bt_jentry){key, value};
    }
    return BT_OK;
}

static bt_status from_json(struct bt_jinja *j, const json_t *json, int depth,
                           struct bt_jvalue *out) {
    struct bt_jvalue *items;
    if (depth == BT_JINJA_DATA_DEPTH)
        return bt_fail(j->err, BT_E_TOO_LARGE, "the conversation's JSON is nested deeper than %d",
                       BT_JINJA_DATA_DEPTH);
    BT_TRY(bt_jinja_spend(j, 1));
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        BT_TRY(from_object(j, json, depth, out));
        break;
    case JSON_ARRAY:
        BT_TRY(bt_jinja_list(j, json_array_size(json), &items, out));
        for (size_t i = 0; i < json_array_size(json); i++)
            BT_TRY(from_json(j, json_array_get(json, i), depth + 1, &items[i]));
        break;
    case JSON_STRING:
        return bt_jinja_string(j,
                               (struct bt_jstring){.data = json_string_value(json),
                                                   .n_bytes = json_string_length(json),
                                                   .tainted = true},
                               out);
    case JSON_INTEGER:
        *out = bt_jvalue_int(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = (struct bt_jvalue){.kind = BT_J_FLOAT, .real = json_real_value(json)};
        break;
    case JSON_NULL:
        *out = (struct bt_jvalue){.kind = BT_J_NONE};
        break;
    default:
        *out = bt_jvalue_bool(json_is_true(json));
    }
    out->tainted = true;
    return BT_OK;
}
/* NOLINTEND(misc-no-recursion) */

static struct bt_slice name_slice(const char *name) {
    return (struct bt_slice){name, strlen(name)};
}

static bt_status bind_text(struct bt_jinja *j, const char *name, struct bt_slice text) {
    struct bt_jvalue value;
    BT_TRY(bt_jinja_string(j, (struct bt_jstring){.data = text.data, .n_bytes = text.n_bytes},
                           &value));
    return bt_jinja_bind(j, name_slice(name), value);
}

/* The variables that transformers' renderer gives to every template, then the caller's. */
static bt_status bind_variables(struct bt_jinja *j, const struct bt_chat_input *in) {
    struct bt_jvalue value;
    const struct bt_jvalue none = {.kind = BT_J_NONE};
    BT_TRY(from_json(j, in->messages, 0, &value));
    BT_TRY(bt_jinja_bind(j, name_slice("messages"), value));
    BT_TRY(bind_text(j, "bos_token", in->bos));
    BT_TRY(bind_text(j, "eos_token", in->eos));
    BT_TRY(bt_jinja_bind(j, name_slice("add_generation_prompt"),
                         bt_jvalue_bool(in->add_generation_prompt)));
    BT_TRY(bt_jinja_bind(j, name_slice("tools"), none));
    BT_TRY(bt_jinja_bind(j, name_slice("documents"), none));
    json_t *vars = (json_t *)in->vars; /* iteration changes nothing */
    for (void *at = vars ? json_object_iter(vars) : NULL; at;
         at = json_object_iter_next(vars, at)) {
        BT_TRY(from_json(j, json_object_iter_value(at), 0, &value));
        BT_TRY(bt_jinja_bind(j, name_slice(json_object_iter_key(at)), value));
    }
    return BT_OK;
}

/* Copies the text, and the runs of tainted bytes as spans. */
static bt_status take_text(const struct bt_jbuffer *b, struct bt_chat_text *out,
                           struct bt_error *err) {
    size_t n_spans = 0;
    for (size_t i = 0; i < b->n_bytes; i++)
        n_spans += b->mask[i] && (i == 0 || !b->mask[i - 1]);
    struct bt_chat_text text = {.n_bytes = b->n_bytes};
    text.text = malloc(b->n_bytes + 1);
    text.untrusted = malloc((n_spans + 1) * sizeof *text.untrusted);
    if (!text.text || !text.untrusted) {
        bt_chat_text_fini(&text);
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a prompt of %zu bytes", b->n_bytes);
    }
    if (b->n_bytes)
        memcpy(text.text, b->data, b->n_bytes);
    for (size_t i = 0; i < b->n_bytes; i++) {
        if (!b->mask[i])
            continue;
        if (i == 0 || !b->mask[i - 1])
            text.untrusted[text.n_untrusted++].start = i;
        text.untrusted[text.n_untrusted - 1].end = i + 1;
    }
    *out = text;
    return BT_OK;
}

static bt_status render(const struct bt_chat_template *tpl, const struct bt_chat_input *in,
                        int64_t steps, struct bt_chat_text *out, struct bt_error *err) {
    struct bt_jbuffer buffer;
    struct bt_error ignored;
    struct bt_jinja j = {.err = err ? err : &ignored,
                         .steps_left = steps,
                         .now_s = in->now_s,
                         .out = &buffer,
                         .captured = {.kind = BT_J_UNDEFINED}};
    bt_status status;
    /* Room for the text itself: bytes and their origin, and what growing leaves behind. */
    size_t output_bytes =
        in->max_output_bytes < OUTPUT_BYTES_MAX ? in->max_output_bytes : OUTPUT_BYTES_MAX;
    bt_arena_init(&j.arena, BT_JINJA_MEMORY_BYTES + 8 * output_bytes);
    BT_TRY_GOTO(bt_jbuffer_init(&j, &buffer, in->max_output_bytes), end);
    BT_TRY_GOTO(bt_jinja_push_scope(&j, NULL), end);
    BT_TRY_GOTO(bind_variables(&j, in), end);
    BT_TRY_GOTO(bt_jinja_push_scope(&j, j.scope), end);
    BT_TRY_GOTO(bt_jinja_exec(&j, tpl->root), end);
    status = take_text(&buffer, out, err);
end:
    bt_arena_fini(&j.arena);
    return status;
}

/* Renders one message whose content is a list with one text part: a template that looks into the
 * list shows that text and nothing of the list around it. */
static bt_status probe_parts(struct bt_chat_template *tpl, struct bt_error *err) {
    static const char mark[] = "part-of-text";
    json_t *messages = json_pack("[{s:s, s:[{s:s, s:s}]}]", "role", "user", "content", "type",
                                 "text", "text", mark);
    if (!messages)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a chat template");
    struct bt_chat_input in = {.messages = messages, .max_output_bytes = 1 << 20};
    struct bt_chat_text text;
    bt_status status = render(tpl, &in, PROBE_STEPS, &text, NULL);
    json_decref(messages);
    /* A refusal is an answer too: the template wants its content as a string. */
    if (status < 0)
        return bt_status_is_process(status) ? bt_fail(err, status, "no memory to try a template")
                                            : BT_OK;
    tpl->reads_parts = memmem(text.text, text.n_bytes, mark, sizeof mark - 1) &&
                       !memmem(text.text, text.n_bytes, "'type'", 6) &&
                       !memmem(text.text, text.n_bytes, "\"type\"", 6);
    bt_chat_text_fini(&text);
    return BT_OK;
}

bt_status bt_chat_template_create(struct bt_slice source, struct bt_chat_template **out,
                                  struct bt_error *err) {
    if (source.n_bytes > BT_CHAT_TEMPLATE_BYTES)
        return bt_fail(err, BT_E_INVALID, "the chat template has %zu bytes, allowed %d",
                       source.n_bytes, BT_CHAT_TEMPLATE_BYTES);
    struct bt_chat_template *tpl = calloc(1, sizeof *tpl);
    if (!tpl)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for a chat template");
    bt_arena_init(&tpl->arena, TEMPLATE_MEMORY_BYTES);
    bt_status status;
    BT_TRY_GOTO(bt_jinja_parse(source, &tpl->arena, &tpl->root, err), fail);
    BT_TRY_GOTO(probe_parts(tpl, err), fail);
    *out = tpl;
    return BT_OK;
fail:
    bt_chat_template_destroy(tpl);
    return status;
}

void bt_chat_template_destroy(struct bt_chat_template *tpl) {
    if (!tpl)
        return;
    bt_arena_fini(&tpl->arena);
    free(tpl);
}

bool bt_chat_template_reads_parts(const struct bt_chat_template *tpl) {
    return tpl->reads_parts;
}

bt_status bt_chat_template_render(const struct bt_chat_template *tpl,
                                  const struct bt_chat_input *in, struct bt_chat_text *out,
                                  struct bt_error *err) {
    return render(tpl, in, BT_CHAT_STEPS, out, err);
}

void bt_chat_text_fini(struct bt_chat_text *text) {
    free(text->text);
    free(text->untrusted);
    *text = (struct bt_chat_text){0};
}
