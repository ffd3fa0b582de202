/* Prints a model's architecture, its sizes and what a token costs, from the file's header alone. */
#include "cli/inspect.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/bars.h"
#include "cli/kv_growth.h"
#include "common/base/config.h"
#include "common/base/gguf.h"

enum { TYPES_MAX = 64, CONTEXT_SHOWN = 4096, EXIT_REFUSED = 2 };

/* The shape of a model, as far as the file says it; 0: it does not. */
struct shape {
    char architecture[64];
    uint64_t layers, width, feed_forward, heads, kv_heads, head_dim_k, head_dim_v, context, vocab;
    uint64_t experts, experts_used, window;
};

struct totals {
    uint64_t parameters, bytes;
    uint64_t read_bytes; /* of the weights, for one decoded token */
    uint64_t expert_bytes;
    struct {
        uint64_t n, bytes;
    } types[TYPES_MAX];
};

static const char *count_text(uint64_t n, char out[32]) {
    if (n >= 1000000000)
        snprintf(out, 32, "%.2f billion", (double)n / 1e9);
    else if (n >= 1000000)
        snprintf(out, 32, "%.1f million", (double)n / 1e6);
    else
        snprintf(out, 32, "%" PRIu64, n);
    return out;
}

/* A number under "<architecture>.", 0 where it is absent; an array (one value per layer) counts
 * with its largest. */
static bt_status read_number(const struct bt_gguf *gguf, const struct shape *shape,
                             const char *name, uint64_t *out, struct bt_error *err) {
    char key[128];
    struct bt_gguf_array array;
    snprintf(key, sizeof key, "%s.%s", shape->architecture, name);
    const struct bt_gguf_key *found = bt_gguf_find_key(gguf, key);
    *out = 0;
    if (!found)
        return BT_OK;
    if (found->type != BT_GGUF_ARRAY)
        return bt_gguf_get_u64(gguf, key, out, err);
    enum bt_gguf_type type = found->array.type;
    if (type != BT_GGUF_I32 && type != BT_GGUF_U32)
        return bt_fail(err, BT_E_INVALID, "%s is an array of %s", key, bt_gguf_type_name(type));
    BT_TRY(bt_gguf_get_array(gguf, key, type, &array, err));
    for (uint32_t i = 0; i < array.n_elements; i++) {
        int32_t value = bt_gguf_i32_at(&array, i);
        if (value > 0 && (uint64_t)value > *out)
            *out = (uint64_t)value;
    }
    return BT_OK;
}

static bt_status read_shape(const struct bt_gguf *gguf, struct shape *shape, struct bt_error *err) {
    struct bt_gguf_string architecture;
    BT_TRY(bt_gguf_get_string(gguf, "general.architecture", &architecture, err));
    if (!architecture.n_bytes || architecture.n_bytes >= sizeof shape->architecture)
        return bt_fail(err, BT_E_INVALID, "general.architecture has %zu bytes, allowed 1 to %zu",
                       architecture.n_bytes, sizeof shape->architecture - 1);
    memcpy(shape->architecture, architecture.text, architecture.n_bytes);
    /* With these bounds no product that is printed leaves 64 bits. */
    const struct {
        const char *name;
        uint64_t *out;
        uint64_t max;
    } numbers[] = {
        {"block_count", &shape->layers, 1 << 16},
        {"embedding_length", &shape->width, 1 << 24},
        {"feed_forward_length", &shape->feed_forward, 1 << 24},
        {"attention.head_count", &shape->heads, 1 << 16},
        {"attention.head_count_kv", &shape->kv_heads, 1 << 16},
        {"attention.key_length", &shape->head_dim_k, 1 << 16},
        {"attention.value_length", &shape->head_dim_v, 1 << 16},
        {"context_length", &shape->context, UINT32_MAX},
        {"vocab_size", &shape->vocab, UINT32_MAX},
        {"expert_count", &shape->experts, 1 << 16},
        {"expert_used_count", &shape->experts_used, 1 << 16},
        {"attention.sliding_window", &shape->window, UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        BT_TRY(read_number(gguf, shape, numbers[i].name, numbers[i].out, err));
        if (*numbers[i].out > numbers[i].max)
            return bt_fail(err, BT_E_INVALID, "%s.%s is %" PRIu64 ", allowed up to %" PRIu64,
                           shape->architecture, numbers[i].name, *numbers[i].out, numbers[i].max);
    }
    if (!shape->kv_heads)
        shape->kv_heads = shape->heads;
    if (!shape->head_dim_k && shape->heads && shape->width / shape->heads <= 1 << 16)
        shape->head_dim_k = shape->width / shape->heads;
    if (!shape->head_dim_v)
        shape->head_dim_v = shape->head_dim_k;
    const struct bt_gguf_key *tokens = bt_gguf_find_key(gguf, "tokenizer.ggml.tokens");
    if (tokens && tokens->type == BT_GGUF_ARRAY)
        shape->vocab = tokens->array.n_elements;
    return BT_OK;
}

static bool has(struct bt_gguf_string name, const char *part) {
    return name.n_bytes && memmem(name.text, name.n_bytes, part, strlen(part)) != NULL;
}

/* A decoded token reads all weights once, but one row of the embedding, unless that is the output
 * matrix too, and of the experts only those that are used. */
static void add_up(const struct bt_gguf *gguf, const struct shape *shape, struct totals *totals) {
    bool tied = !bt_gguf_find_tensor(gguf, "output.weight");
    for (uint32_t i = 0; i < bt_gguf_n_tensors(gguf); i++) {
        const struct bt_gguf_tensor *tensor = bt_gguf_tensor_at(gguf, i);
        uint64_t read = tensor->n_bytes;
        totals->parameters += tensor->n_elements;
        totals->bytes += tensor->n_bytes;
        if (tensor->type < TYPES_MAX) {
            totals->types[tensor->type].n++;
            totals->types[tensor->type].bytes += tensor->n_bytes;
        }
        if (bt_gguf_string_is(tensor->name, "token_embd.weight") && !tied && tensor->dims[1])
            read /= tensor->dims[1];
        if (has(tensor->name, "_exps.") && shape->experts) {
            totals->expert_bytes += read;
            read = read / shape->experts * shape->experts_used;
        }
        totals->read_bytes += read;
    }
}

static void print_number(const char *label, uint64_t value, const char *unit) {
    if (value)
        printf("  %-22s%" PRIu64 "%s\n", label, value, unit);
}

static void print_shape(const struct bt_gguf *gguf, const struct shape *shape) {
    struct bt_gguf_string name;
    struct bt_error ignored; /* a model without a name is shown without one */
    char text[32];
    if (bt_gguf_get_string(gguf, "general.name", &name, &ignored) == BT_OK) {
        printf("  %-22s", "name");
        for (size_t i = 0; i < name.n_bytes && i < 120; i++)
            putchar((unsigned char)name.text[i] < 0x20 ? ' ' : name.text[i]);
        printf("\n");
    }
    printf("  %-22s%s\n", "architecture", shape->architecture);
    printf("  %-22s%s\n", "file", bt_size_text((double)bt_gguf_file_bytes(gguf), text));
    print_number("layers", shape->layers, "");
    print_number("width", shape->width, "");
    print_number("feed-forward width", shape->feed_forward, "");
    print_number("attention heads", shape->heads, "");
    print_number("KV heads", shape->kv_heads, "");
    print_number("head size", shape->head_dim_k, "");
    print_number("experts", shape->experts, "");
    print_number("experts per token", shape->experts_used, "");
    print_number("vocabulary", shape->vocab, " tokens");
    print_number("context", shape->context, " tokens");
    print_number("sliding window", shape->window, " tokens");
}

static void print_weights(const struct totals *totals) {
    char text[32], parameters[32];
    printf("\nWeights\n  %-22s%s\n", "parameters", count_text(totals->parameters, parameters));
    printf("  %-22s%s, %.2f bits per parameter\n", "size",
           bt_size_text((double)totals->bytes, text),
           totals->parameters ? 8.0 * (double)totals->bytes / (double)totals->parameters : 0);
    for (uint32_t type = 0; type < TYPES_MAX; type++) {
        const char *name = bt_gguf_tensor_type_name(type);
        if (totals->types[type].n)
            printf("    %-20s%" PRIu64 " tensors, %s\n", name ? name : "?", totals->types[type].n,
                   bt_size_text((double)totals->types[type].bytes, text));
    }
}

static struct bt_kv_shape kv_shape(const struct shape *shape) {
    return (struct bt_kv_shape){.layers = shape->layers,
                                .kv_heads = shape->kv_heads,
                                .head_dim_k = shape->head_dim_k,
                                .head_dim_v = shape->head_dim_v,
                                .heads = shape->heads,
                                .context = shape->context};
}

static void print_costs(const struct shape *shape, const struct totals *totals) {
    char text[32], at_context[32];
    static const struct {
        const char *name;
        uint64_t bytes, scale; /* of a value; beside a head's K or V */
    } types[] = {{"bf16", 2, 0}, {"int8", 1, 4}, {"f32 (exact)", 4, 0}};
    printf("\nCosts\n  %-22s%s per token of one sequence, once for a whole batch\n", "weights read",
           bt_size_text((double)totals->read_bytes, text));
    const struct bt_kv_shape heads = kv_shape(shape);
    if (!bt_kv_token_bytes(&heads, 1, 0)) {
        printf("  %-22s%s\n", "KV cache", "the file does not say its heads");
        return;
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        uint64_t bytes = bt_kv_token_bytes(&heads, types[i].bytes, types[i].scale);
        char label[32];
        snprintf(label, sizeof label, "KV cache, %s", types[i].name);
        printf("  %-22s%" PRIu64 " bytes per token, %s at %d tokens\n", label, bytes,
               bt_size_text((double)bytes * CONTEXT_SHOWN, at_context), CONTEXT_SHOWN);
    }
    if (shape->window)
        printf("  %-22s%s\n", "", "kept whole: what the sliding window no longer sees too");
}

/* The cache's growth, where the file says its heads. */
static void print_growth(const struct shape *shape, uint64_t memory_bytes) {
    if (!shape->layers || !shape->kv_heads || !shape->head_dim_k || !shape->head_dim_v)
        return;
    const struct bt_kv_growth growth = {
        .shape = kv_shape(shape),
        .types = {{"bf16", 2, 0}, {"int8", 1, 4}, {"f32", 4, 0}},
        .n_types = 3,
        .memory_bytes = memory_bytes,
    };
    bt_kv_growth_print(&growth);
}

static bt_status inspect_file(const char *path, uint64_t memory_bytes, struct bt_error *err) {
    struct bt_gguf *gguf = NULL;
    struct shape shape = {0};
    struct totals totals = {0};
    BT_TRY(bt_gguf_open(path, &gguf, err)); /* its sentences have the path */
    bt_status status = read_shape(gguf, &shape, err);
    if (status == BT_OK) {
        printf("%s\n", path);
        add_up(gguf, &shape, &totals);
        print_shape(gguf, &shape);
        print_weights(&totals);
        print_costs(&shape, &totals);
        print_growth(&shape, memory_bytes);
    } else {
        struct bt_error why = *err;
        bt_fail(err, status, "%.100s: %.150s", path, why.text);
    }
    bt_gguf_close(gguf);
    return status;
}

static bt_status inspect_shape(const char *text, uint64_t memory_bytes, struct bt_error *err) {
    struct bt_kv_growth growth = {.n_types = 1, .memory_bytes = memory_bytes};
    static const char *const names[] = {[1] = "8 bit", [2] = "16 bit", [4] = "32 bit"};
    uint64_t bytes = 0;
    BT_TRY(bt_kv_shape_parse(text, &growth.shape, &bytes, err));
    growth.types[0].name = bytes < 5 && names[bytes] ? names[bytes] : "size";
    growth.types[0].bytes = bytes;
    bt_kv_growth_print(&growth);
    return BT_OK;
}

int bt_inspect_main(int argc, char **argv) {
    const char *words[1], *shape = NULL;
    uint64_t memory_bytes = 0;
    size_t n_words = 0;
    const struct bt_option options[] = {
        {"shape", BT_OPTION_STRING, &shape, .argument = "SHAPE",
         .help = "No file, but a shape: layers=L,heads=H,kv-heads=K,head-dim=D,bytes=B,context=N. "
                 "bytes: of one value in the cache (2); heads and context may be left out."},
        {"memory", BT_OPTION_BYTES, &memory_bytes, NULL, 1, UINT64_MAX / 2, .argument = "BYTES",
         .help = "Also say how many sequences have room in so much KV cache (16g)."},
    };
    const struct bt_command command = {
        .name = "inspect",
        .usage = "baton inspect FILE | baton inspect --shape SHAPE",
        .summary =
            "Shows what a model file is and what it costs to run: sizes, weights read per token, "
            "KV cache per token\n"
            "and its growth with the text. Reads the file's header only.\n\n"
            "The KV cache holds a K and a V of each layer and KV head for each token so far. It "
            "grows in proportion\n"
            "to the text, all of it is read for each new token, and it is what a prefill worker "
            "sends to a decode worker.",
        .example = "  baton inspect --memory 16g model.gguf\n"
                   "  baton inspect --shape layers=40,heads=40,kv-heads=40,head-dim=128,bytes=2",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .words = words,
        .n_words_max = 1,
        .n_words = &n_words,
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status == BT_OK && !n_words == !shape)
        status = bt_fail(&err, BT_E_INVALID,
                         shape ? "both a file and --shape are given; it takes one of them"
                               : "no file given; \"baton inspect --help\" shows the usage");
    if (status == BT_OK)
        status = shape ? inspect_shape(shape, memory_bytes, &err)
                       : inspect_file(words[0], memory_bytes, &err);
    if (status < 0)
        fprintf(stderr, "baton inspect: %s\n", err.text);
    return status == BT_OK ? 0 : EXIT_REFUSED;
}
