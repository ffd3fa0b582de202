/* Feeds the tokenizer and the chat template from a GGUF file's keys. */
#include "common/text/text_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/gguf.h"
#include "common/base/gguf_text.h"
#include "common/text/utf8.h"

/* What has been read of the file, as the tokenizer wants it; the texts stay in the mapped file. */
struct arrays {
    struct bt_slice *tokens, *merges;
    int32_t *types;
};

static struct bt_slice slice_of(struct bt_gguf_string string) {
    return (struct bt_slice){string.text, string.n_bytes};
}

static bt_status read_strings(const struct bt_gguf *gguf, const char *name, struct bt_slice **out,
                              uint32_t *n_out, struct bt_error *err) {
    struct bt_gguf_array array;
    struct bt_gguf_string string;
    BT_TRY(bt_gguf_get_array(gguf, name, BT_GGUF_STRING, &array, err));
    *out = malloc((array.n_elements + (size_t)1) * sizeof **out);
    if (!*out)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the %u strings of %s", array.n_elements,
                       name);
    for (uint32_t i = 0; bt_gguf_next_string(&array, &string); i++) {
        (*out)[i] = slice_of(string);
        *n_out = i + 1;
    }
    return BT_OK;
}

static bt_status read_types(const struct bt_gguf *gguf, uint32_t n_tokens, int32_t **out,
                            struct bt_error *err) {
    static const char name[] = "tokenizer.ggml.token_type";
    struct bt_gguf_array array;
    if (!bt_gguf_find_key(gguf, name))
        return BT_OK; /* all tokens are then normal */
    BT_TRY(bt_gguf_get_array(gguf, name, BT_GGUF_I32, &array, err));
    if (array.n_elements != n_tokens)
        return bt_fail(err, BT_E_INVALID, "%s has %u elements, the vocabulary %u tokens", name,
                       array.n_elements, n_tokens);
    *out = malloc((n_tokens + (size_t)1) * sizeof **out);
    if (!*out)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u token types", n_tokens);
    for (uint32_t i = 0; i < n_tokens; i++)
        (*out)[i] = bt_gguf_i32_at(&array, i);
    return BT_OK;
}

/* An absent key leaves *out alone. */
static bt_status read_id(const struct bt_gguf *gguf, const char *name, int32_t *out,
                         struct bt_error *err) {
    uint32_t id;
    bt_status status = bt_gguf_get_u32(gguf, name, &id, err);
    if (status == BT_E_NOT_FOUND)
        return BT_OK;
    BT_TRY(status);
    if (id >= BT_VOCAB_TOKENS)
        return bt_fail(err, BT_E_INVALID, "%s is %u, allowed up to %d", name, id,
                       BT_VOCAB_TOKENS - 1);
    *out = (int32_t)id;
    return BT_OK;
}

static bt_status read_tokenizer(const struct bt_gguf *gguf, struct arrays *arrays,
                                struct bt_tokenizer **out, struct bt_error *err) {
    struct bt_vocab_source source = {.bos_id = -1, .eos_id = -1};
    struct bt_gguf_string string;
    BT_TRY(bt_gguf_get_string(gguf, "tokenizer.ggml.model", &string, err));
    source.model = slice_of(string);
    bt_status status = bt_gguf_get_string(gguf, "tokenizer.ggml.pre", &string, err);
    if (status == BT_OK)
        source.pre = slice_of(string);
    else if (status != BT_E_NOT_FOUND)
        return status;
    BT_TRY(read_strings(gguf, "tokenizer.ggml.tokens", &arrays->tokens, &source.n_tokens, err));
    /* A vocabulary of another kind has no merges: its `model` is what is to be refused. */
    if (bt_gguf_find_key(gguf, "tokenizer.ggml.merges"))
        BT_TRY(read_strings(gguf, "tokenizer.ggml.merges", &arrays->merges, &source.n_merges, err));
    BT_TRY(read_types(gguf, source.n_tokens, &arrays->types, err));
    BT_TRY(read_id(gguf, "tokenizer.ggml.bos_token_id", &source.bos_id, err));
    BT_TRY(read_id(gguf, "tokenizer.ggml.eos_token_id", &source.eos_id, err));
    status = bt_gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &source.add_bos, err);
    if (status != BT_OK && status != BT_E_NOT_FOUND)
        return status;
    source.tokens = arrays->tokens;
    source.merges = arrays->merges;
    source.types = arrays->types;
    return bt_tokenizer_create(&source, out, err);
}

static bt_status read_context(const struct bt_gguf *gguf, uint32_t *out, struct bt_error *err) {
    struct bt_gguf_string architecture;
    char name[128];
    bt_status status = bt_gguf_get_string(gguf, "general.architecture", &architecture, err);
    if (status == BT_E_NOT_FOUND)
        return BT_OK;
    BT_TRY(status);
    snprintf(name, sizeof name, "%.*s.context_length",
             (int)(architecture.n_bytes < 64 ? architecture.n_bytes : 64), architecture.text);
    status = bt_gguf_get_u32(gguf, name, out, err);
    return status == BT_E_NOT_FOUND ? BT_OK : status;
}

/* Cut between characters; the name is shown to clients, so what is not UTF-8 is replaced. */
static bt_status read_name(const struct bt_gguf *gguf, char *out, size_t out_bytes,
                           struct bt_error *err) {
    struct bt_gguf_string string;
    bt_status status = bt_gguf_get_string(gguf, "general.name", &string, err);
    if (status != BT_OK)
        return status == BT_E_NOT_FOUND ? BT_OK : status;
    size_t n = 0;
    for (size_t i = 0; i < string.n_bytes;) {
        struct bt_utf8_step step = bt_utf8_next(string.text + i, string.n_bytes - i);
        char text[4];
        uint32_t code_point = step.kind == BT_UTF8_VALID ? step.code_point : 0xfffd;
        size_t n_text = bt_utf8_encode(code_point < 0x20 ? ' ' : code_point, text);
        if (n + n_text >= out_bytes)
            break;
        memcpy(out + n, text, n_text);
        n += n_text;
        i += step.n_bytes;
    }
    out[n] = 0;
    return BT_OK;
}

static bt_status read_all(const struct bt_gguf *gguf, struct arrays *arrays,
                          struct bt_text_model *model, struct bt_error *err) {
    struct bt_gguf_string template;
    BT_TRY(read_tokenizer(gguf, arrays, &model->tokenizer, err));
    BT_TRY(read_context(gguf, &model->context_tokens, err));
    BT_TRY(read_name(gguf, model->name, sizeof model->name, err));
    model->text_hash = bt_gguf_text_hash(gguf);
    bt_status status = bt_gguf_get_string(gguf, "tokenizer.chat_template", &template, err);
    if (status == BT_E_NOT_FOUND)
        return BT_OK;
    BT_TRY(status);
    return bt_chat_template_create(slice_of(template), &model->chat, err);
}

bt_status bt_text_model_open(const char *path, struct bt_text_model *model, struct bt_error *err) {
    *model = (struct bt_text_model){0};
    struct bt_gguf *gguf = NULL;
    struct arrays arrays = {0};
    BT_TRY(bt_gguf_open(path, &gguf, err));
    bt_status status = read_all(gguf, &arrays, model, err);
    free(arrays.tokens);
    free(arrays.merges);
    free(arrays.types);
    bt_gguf_close(gguf);
    if (status < 0)
        bt_text_model_close(model);
    return status;
}

void bt_text_model_close(struct bt_text_model *model) {
    bt_tokenizer_destroy(model->tokenizer);
    bt_chat_template_destroy(model->chat);
    *model = (struct bt_text_model){0};
}
