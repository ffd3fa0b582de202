/* Writes the logits of every position of given prompts as one arithmetic computes them, so that
 * bench_accuracy.py can compare arithmetics; f32 rows, prompts in turn.
 *
 *   logits_of MODEL PROFILE KV_TYPE THREADS TOKENS OUT
 *
 * PROFILE fast, bf16 or exact; KV_TYPE bf16, int8 or f32; TOKENS: a file with a line of token ids
 * for each prompt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/device/device.h"
#include "common/engine/forward.h"

enum { CHUNK = 64, CONTEXT = 2048, LINE_BYTES = CONTEXT * 12 };

static struct bt_device *device;
static struct bt_model model;
static struct bt_weights weights;
static struct bt_kv_memory kv;
static struct bt_forward *forward;

static uint32_t named(const char *text, const char *(*name)(uint32_t)) {
    for (uint32_t i = 1; i <= 3; i++)
        if (strcmp(name(i), text) == 0)
            return i;
    return 0;
}

static bt_status open_model(char **argv, struct bt_error *err) {
    char remark[BT_ERROR_TEXT_BYTES];
    enum bt_profile profile = (enum bt_profile)named(argv[2], bt_profile_name);
    enum bt_kv_type asked = (enum bt_kv_type)named(argv[3], bt_kv_type_name);
    enum bt_kv_type kv_type = profile && asked ? bt_forward_kv_type(profile, asked) : 0;
    if (!kv_type)
        return bt_fail(err, BT_E_INVALID, "profile \"%s\" with cache \"%s\" does not exist",
                       argv[2], argv[3]);
    const struct bt_device_params params = {.kind = "cpu",
                                            .n_threads = (uint32_t)strtoul(argv[4], NULL, 10)};
    BT_TRY(bt_device_open(&params, &device, remark, err));
    BT_TRY(bt_model_open(argv[1], &model, err));
    BT_TRY(bt_weights_load(&weights, &model, profile, device, NULL, NULL, err));
    size_t page_bytes = bt_device_kernels(device)->page_bytes(
        bt_forward_cache_type(kv_type), model.shape.n_kv_heads, model.shape.head_dim);
    BT_TRY(bt_kv_memory_init(&kv, device, model.shape.n_layers, CONTEXT / BT_PAGE_TOKENS,
                             page_bytes, err));
    const struct bt_forward_params forward_params = {
        .device = device,
        .model = &model,
        .weights = &weights,
        .kv = &kv,
        .profile = profile,
        .kv_type = kv_type,
        .max_rows = CHUNK,
        .max_seqs = CHUNK,
        .max_context = model.shape.context < CONTEXT ? model.shape.context : CONTEXT,
    };
    BT_TRY(bt_forward_create(&forward_params, &forward, err));
    bt_forward_keep_all_rows(forward, true);
    return BT_OK;
}

/* Ids of one line; 0 where there is none, or one that is not a token. */
static uint32_t parse_line(char *line, int32_t tokens[CONTEXT]) {
    uint32_t n = 0;
    for (char *word = strtok(line, " \n"); word && n < CONTEXT; word = strtok(NULL, " \n")) {
        unsigned long id = strtoul(word, NULL, 10);
        if (id >= model.shape.n_vocab)
            return 0;
        tokens[n++] = (int32_t)id;
    }
    return n;
}

static bool write_prompt(const int32_t *tokens, uint32_t n, FILE *out) {
    uint32_t pages[CONTEXT / BT_PAGE_TOKENS], rows[CHUNK];
    size_t n_vocab = model.shape.n_vocab;
    for (uint32_t i = 0; i < CONTEXT / BT_PAGE_TOKENS; i++)
        pages[i] = i;
    for (uint32_t at = 0; at < n; at += CHUNK) {
        uint32_t n_rows = n - at < CHUNK ? n - at : CHUNK;
        struct bt_step_seq seq = {.n_rows = n_rows, .position = at, .pages = pages};
        struct bt_step_result result;
        const struct bt_step step = {
            .tokens = tokens + at, .n_rows = n_rows, .seqs = &seq, .n_seqs = 1, .results = &result};
        bt_forward_run(forward, &step, NULL, NULL);
        for (uint32_t i = 0; i < n_rows; i++)
            rows[i] = i;
        const float *logits = bt_forward_logits(forward, rows, n_rows);
        if (fwrite(logits, n_vocab * sizeof *logits, n_rows, out) != n_rows)
            return false;
    }
    return true;
}

static int fail(const char *sentence) {
    fprintf(stderr, "logits_of: %s\n", sentence);
    return 1;
}

int main(int argc, char **argv) {
    static char line[LINE_BYTES];
    static int32_t tokens[CONTEXT];
    struct bt_error err = {0};
    if (argc != 7)
        return fail("MODEL PROFILE KV_TYPE THREADS TOKENS OUT");
    FILE *in = fopen(argv[5], "r"), *out = fopen(argv[6], "wb");
    if (!in || !out)
        return fail("a file cannot be opened");
    if (open_model(argv, &err) < 0)
        return fail(err.text);
    while (fgets(line, sizeof line, in)) {
        uint32_t n = parse_line(line, tokens);
        if (!n)
            return fail("a line of tokens cannot be read");
        if (!write_prompt(tokens, n, out))
            return fail("the logits cannot be written");
    }
    fclose(in);
    if (fclose(out))
        return fail("the logits cannot be written");
    bt_forward_destroy(forward);
    bt_kv_memory_fini(&kv);
    bt_weights_fini(&weights);
    bt_model_close(&model);
    bt_device_close(device);
    return 0;
}
