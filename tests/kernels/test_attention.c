/* Attention over pages: every path gives portable's bits for any tile of rows, whole and by pieces;
 * one row at a time equals a tile; portable is near plain double arithmetic. */
#include <math.h>

#include "tests/kernels/paths.h"

/* A cache of one layer written by portable, with queries. */
struct scene {
    enum bt_cache_type cache;
    uint32_t n_kv_heads, n_group, head_dim, n_tokens, n_pages;
    uint8_t *memory;
    const void **pages;
    float *q, *k, *v;
    size_t q_stride;
};

/* K and V into the pages; the last one's tail is zeroed. */
static void scene_write(struct scene *s) {
    const struct bt_kernels *kernels = portable_path();
    size_t page = kernels->page_bytes(s->cache, s->n_kv_heads, s->head_dim);
    size_t stride = s->n_kv_heads * s->head_dim;
    for (uint32_t i = 0; i < s->n_pages; i++) {
        uint8_t *at = s->memory + (s->n_pages - 1 - i) * page; /* not in order */
        uint32_t n = s->n_tokens - i * 16 < 16 ? s->n_tokens - i * 16 : 16;
        s->pages[i] = at;
        struct bt_cache_write args = {.cache = s->cache,
                                      .page = at,
                                      .slot = 0,
                                      .n_tokens = n,
                                      .n_kv_heads = s->n_kv_heads,
                                      .head_dim = s->head_dim,
                                      .k = s->k + i * 16 * stride,
                                      .v = s->v + i * 16 * stride,
                                      .stride = stride};
        kernels->cache_write(&args);
        kernels->zero_tail(s->cache, at, n, s->n_kv_heads, s->head_dim);
    }
}

static void scene_init(struct scene *s, enum bt_cache_type cache, uint32_t n_kv_heads,
                       uint32_t n_group, uint32_t head_dim, uint32_t n_tokens) {
    const struct bt_kernels *kernels = portable_path();
    *s = (struct scene){cache,    n_kv_heads, n_group,
                        head_dim, n_tokens,   .n_pages = (n_tokens + 15) / 16};
    size_t page = kernels->page_bytes(cache, n_kv_heads, head_dim), stride = n_kv_heads * head_dim;
    s->memory = aligned_bytes(page * s->n_pages);
    memset(s->memory, 0xff, page * s->n_pages); /* what nobody wrote is NaN */
    s->pages = calloc(s->n_pages, sizeof *s->pages);
    s->q_stride = (size_t)n_kv_heads * n_group * head_dim + 5;
    s->q = aligned_bytes(s->q_stride * n_tokens * 4);
    s->k = aligned_bytes(stride * n_tokens * 4);
    s->v = aligned_bytes(stride * n_tokens * 4);
    fill(s->q, s->q_stride * n_tokens, 3.0f);
    fill(s->k, stride * n_tokens, 2.0f);
    fill(s->v, stride * n_tokens, 1.0f);
    scene_write(s);
}

static void scene_fini(struct scene *s) {
    free(s->memory);
    free(s->pages);
    free(s->q);
    free(s->k);
    free(s->v);
}

static void attend(const struct scene *s, const struct bt_kernels *k, uint32_t first, uint32_t end,
                   uint32_t rows, uint32_t window, float *out) {
    for (uint32_t head = 0; head < s->n_kv_heads; head++)
        for (uint32_t r = first; r < end; r += rows) {
            struct bt_attention args = {.cache = s->cache,
                                        .pages = s->pages,
                                        .kv_head = head,
                                        .n_group = s->n_group,
                                        .head_dim = s->head_dim,
                                        .position = r,
                                        .n_rows = end - r < rows ? end - r : rows,
                                        .window = window,
                                        .scale = 1.0f / sqrtf((float)s->head_dim),
                                        .q = s->q + r * s->q_stride,
                                        .q_stride = s->q_stride,
                                        .out = out + (r - first) * s->q_stride,
                                        .out_stride = s->q_stride};
            k->attention(&args);
        }
}

/* The same by pieces: `cut` at a time, the last ones first, merged `rows` rows at a time. */
static void attend_split(const struct scene *s, const struct bt_kernels *k, uint32_t first,
                         uint32_t end, uint32_t cut, uint32_t rows, uint32_t window, float *out) {
    uint32_t n_pieces = (end + BT_KERNELS_PIECE_TOKENS - 1) / BT_KERNELS_PIECE_TOKENS;
    size_t row_floats = s->n_group * BT_KERNELS_PARTIAL_FLOATS(s->head_dim);
    size_t stride = (end - first) * row_floats;
    float *partials = aligned_bytes(n_pieces * stride * 4);
    memset(partials, 0xff, n_pieces * stride * 4); /* what nobody wrote is NaN */
    for (uint32_t head = 0; head < s->n_kv_heads; head++) {
        struct bt_attention args = {.cache = s->cache,
                                    .kv_head = head,
                                    .n_group = s->n_group,
                                    .head_dim = s->head_dim,
                                    .position = first,
                                    .n_rows = end - first,
                                    .window = window,
                                    .scale = 1.0f / sqrtf((float)s->head_dim),
                                    .q = s->q + first * s->q_stride,
                                    .q_stride = s->q_stride,
                                    .out_stride = s->q_stride,
                                    .partials_stride = stride};
        for (uint32_t at = (n_pieces - 1) / cut * cut + cut; at; at -= cut) {
            const void **pages = calloc(s->n_pages, sizeof *pages); /* other pieces' are NULL */
            args.pages = pages;
            args.piece_first = at - cut;
            args.piece_end = at < n_pieces ? at : n_pieces;
            args.partials = partials + args.piece_first * stride;
            for (uint32_t i = args.piece_first * 16; i < args.piece_end * 16 && i < s->n_pages; i++)
                pages[i] = s->pages[i];
            k->attention(&args);
            free(pages);
        }
        args.pages = NULL;
        args.piece_first = 0;
        args.piece_end = n_pieces;
        for (uint32_t r = first; r < end; r += rows) {
            args.position = r;
            args.n_rows = end - r < rows ? end - r : rows;
            args.partials = partials + (r - first) * row_floats;
            args.out = out + (r - first) * s->q_stride;
            k->attention_merge(&args);
        }
    }
    free(partials);
}

static void compare(const struct scene *s, const struct bt_kernels *k, uint32_t first, uint32_t end,
                    uint32_t rows, uint32_t window) {
    size_t n = (end - first) * s->q_stride;
    float *want = aligned_bytes(n * 4), *got = aligned_bytes(n * 4);
    char what[160];
    memset(want, 0, n * 4);
    memset(got, 0, n * 4);
    attend(s, portable_path(), first, end, 1, window, want);
    attend(s, k, first, end, rows, window, got);
    snprintf(what, sizeof what, "cache %d, dim %u, group %u, rows %u..%u by %u, window %u",
             s->cache, s->head_dim, s->n_group, first, end, rows, window);
    assert_same(what, k->name, want, got, n);
    for (uint32_t cut = 1; cut <= 2; cut++) {
        memset(got, 0, n * 4);
        attend_split(s, k, first, end, cut, rows, window, got);
        assert_same(what, k->name, want, got, n);
    }
    free(want);
    free(got);
}

static void compare_shapes(const struct scene *s, const struct bt_kernels *k) {
    uint32_t n = s->n_tokens;
    static const uint32_t WINDOWS[] = {0, 1, 15, 24, 300};
    for (int w = 0; w < 5; w++) {
        compare(s, k, n - 1, n, 1, WINDOWS[w]); /* decode */
        compare(s, k, n > 40 ? n - 40 : 0, n, 33, WINDOWS[w]);
        compare(s, k, n > 21 ? n - 21 : 0, n, 5, WINDOWS[w]);
    }
}

static void test_paths_agree(void **state) {
    (void)state;
    static const uint32_t TOKENS[] = {1, 2, 15, 16, 17, 33, 255, 256, 257, 272, 513, 530};
    static const uint32_t DIMS[] = {64, 16, 32, 80, 128, 256};
    static const uint32_t GROUPS[] = {3, 4, 1, 9, 2, 5};
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int i = 0; k && i < 12; i++)
            for (int cache = 0; cache < BT_CACHE_COUNT; cache++) {
                struct scene s;
                scene_init(&s, cache, 2, GROUPS[i % 6], DIMS[i % 6], TOKENS[i]);
                compare_shapes(&s, k);
                scene_fini(&s);
                scene_init(&s, cache, 1, 3, 64, TOKENS[i]);
                compare_shapes(&s, k);
                scene_fini(&s);
            }
    }
}

/* A tile of any size gives each row the bits it has alone, on portable too. */
static void test_tile_is_row_by_row(void **state) {
    (void)state;
    for (int cache = 0; cache < BT_CACHE_COUNT; cache++) {
        struct scene s;
        scene_init(&s, cache, 2, 3, 64, 290);
        compare(&s, portable_path(), 230, 290, 60, 0);
        compare(&s, portable_path(), 230, 290, 7, 100);
        scene_fini(&s);
    }
}

/* Pages that no row sees are not touched: their pointers are NULL here. */
static void test_pages_left_of_window_are_not_read(void **state) {
    (void)state;
    struct scene s;
    scene_init(&s, BT_CACHE_BF16, 1, 3, 64, 600);
    for (uint32_t i = 0; i < (597 - 100 + 1) / 16; i++)
        s.pages[i] = NULL;
    compare(&s, portable_path(), 597, 600, 3, 100);
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        if (k)
            compare(&s, k, 597, 600, 3, 100);
    }
    scene_fini(&s);
}

/* Huge and equal scores, queries of zeros, denormals and a NaN: the same bits, NaN where NaN is
 * due. */
static void test_corners_agree(void **state) {
    (void)state;
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int cache = 0; k && cache < BT_CACHE_COUNT; cache++) {
            struct scene s;
            scene_init(&s, cache, 1, 3, 64, 300);
            for (size_t i = 0; i < s.q_stride * 300; i++) {
                size_t row = i / s.q_stride % 5;
                s.q[i] = row == 0   ? 0.0f
                         : row == 1 ? s.q[i] * 1000.0f
                         : row == 2 ? s.q[i] * 0x1p-126f
                         : row == 3 ? corner_f32(1)
                                    : s.q[i];
            }
            s.q[299 * s.q_stride] = __builtin_nanf("");
            compare(&s, k, 240, 300, 32, 0);
            scene_fini(&s);
        }
    }
}

/* Keys and values that are zero, tiny, huge or not finite: what sees them is NaN, nobody else is.
 */
static void test_corners_in_cache_agree(void **state) {
    (void)state;
    static const float CORNERS[] = {0.0f, 0x1p-126f, 0x1p-110f, 0x1p100f};
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int cache = 0; k && cache < BT_CACHE_COUNT; cache++)
            for (int i = 0; i < 5; i++) {
                struct scene s;
                scene_init(&s, cache, 1, 3, 64, 300);
                for (uint32_t at = 64 * 250; i < 4 && at < 64 * 270; at++) {
                    s.k[at] *= CORNERS[i];
                    s.v[at] *= CORNERS[i];
                }
                if (i == 4)
                    s.v[64 * 280 + 7] = __builtin_inff();
                scene_write(&s);
                compare(&s, k, 240, 300, 32, 0);
                compare(&s, k, 299, 300, 1, 40);
                scene_fini(&s);
            }
    }
}

/* A masked key's scale plays no part: rows before a token that is not finite stay finite. */
static void test_int8_ignores_masked_scales(void **state) {
    (void)state;
    struct scene s;
    float out[2 * 3 * 64 + 10] = {0};
    scene_init(&s, BT_CACHE_INT8, 1, 3, 64, 20);
    s.v[64 * 19 + 7] = __builtin_nanf("");
    s.k[64 * 19 + 9] = __builtin_inff();
    scene_write(&s);
    assert_int_equal(s.q_stride, 3 * 64 + 5);
    attend(&s, portable_path(), 18, 20, 2, 0, out);
    for (uint32_t i = 0; i < 3 * 64; i++) {
        assert_true(out[i] - out[i] == 0.0f);
        assert_true(out[s.q_stride + i] != out[s.q_stride + i]);
    }
    scene_fini(&s);
}

static double key_score(const struct scene *s, uint32_t row, uint32_t head, uint32_t key) {
    const float *q = s->q + row * s->q_stride + head * s->head_dim;
    const float *k = s->k + ((size_t)key * s->n_kv_heads + head / s->n_group) * s->head_dim;
    double sum = 0;
    for (uint32_t d = 0; d < s->head_dim; d++)
        sum += (double)q[d] * (double)k[d];
    return sum / sqrt((double)s->head_dim);
}

static void test_portable_is_near_double(void **state) {
    (void)state;
    for (int cache = 0; cache < BT_CACHE_COUNT; cache++)
        for (uint32_t window = 0; window <= 280; window += 280) {
            struct scene s;
            scene_init(&s, cache, 2, 3, 32, 300);
            float *out = aligned_bytes(s.q_stride * 4);
            attend(&s, portable_path(), 299, 300, 1, window, out);
            for (uint32_t head = 0; head < 6; head++) {
                double top = -1e300, total = 0, o[32] = {0};
                uint32_t first = window ? 300 - window : 0;
                for (uint32_t t = first; t < 300; t++)
                    top = fmax(top, key_score(&s, 299, head, t));
                for (uint32_t t = first; t < 300; t++) {
                    double e = exp(key_score(&s, 299, head, t) - top);
                    total += e;
                    for (uint32_t d = 0; d < 32; d++)
                        o[d] += e * (double)s.v[((size_t)t * 2 + head / 3) * 32 + d];
                }
                double bound = cache == BT_CACHE_F32 ? 1e-5 : 0.03;
                for (uint32_t d = 0; d < 32; d++)
                    assert_true(fabs((double)out[head * 32 + d] - o[d] / total) < bound);
            }
            free(out);
            scene_fini(&s);
        }
}

/* Writing token by token, in any cut, leaves the same page, and a zeroed tail is all zero. */
static void test_cache_write_any_cut(void **state) {
    (void)state;
    const struct bt_kernels *kernels = portable_path();
    assert_int_equal(kernels->page_bytes(BT_CACHE_BF16, 3, 48), 3 * 16 * 48 * 4);
    assert_int_equal(kernels->page_bytes(BT_CACHE_F32, 3, 48), 3 * 16 * 48 * 8);
    assert_int_equal(kernels->page_bytes(BT_CACHE_INT8, 3, 48), 3 * 16 * (48 * 2 + 8));
    for (int cache = 0; cache < BT_CACHE_COUNT; cache++) {
        size_t bytes = kernels->page_bytes(cache, 3, 48);
        uint8_t *one = aligned_bytes(bytes), *other = aligned_bytes(bytes);
        float k[16 * 144], v[16 * 144];
        fill(k, 16 * 144, 1.0f);
        fill(v, 16 * 144, 1.0f);
        k[5] = __builtin_nanf("");
        k[150] = 0x1p-130f;
        for (uint32_t n = 1; n <= 16; n++) {
            memset(one, 0xff, bytes);
            memset(other, 0, bytes);
            struct bt_cache_write args = {.cache = cache,
                                          .page = one,
                                          .n_tokens = n,
                                          .n_kv_heads = 3,
                                          .head_dim = 48,
                                          .k = k,
                                          .v = v,
                                          .stride = 144};
            kernels->cache_write(&args);
            kernels->zero_tail(cache, one, n, 3, 48);
            args.page = other;
            args.n_tokens = 1;
            for (args.slot = 0; args.slot < n; args.slot++) {
                args.k = k + args.slot * 144;
                args.v = v + args.slot * 144;
                kernels->cache_write(&args);
            }
            assert_memory_equal(one, other, bytes);
        }
        free(one);
        free(other);
    }
}

/* Every path fills a page as portable does, whole or token by token, whatever the numbers are. */
static void test_cache_write_agrees(void **state) {
    (void)state;
    static const uint32_t dims[] = {6, 16, 24, 44, 64, 256};
    const struct bt_kernels *portable = portable_path();
    float *k = aligned_bytes(16 * 512 * sizeof *k), *v = aligned_bytes(16 * 512 * sizeof *v);
    fill(k, 16 * 512, 3.0f);
    fill(v, 16 * 512, 3.0f);
    for (uint32_t i = 0; i < 16 * 512; i += 3)
        k[i] = v[i] = corner_f32(0);
    for (int path = 0; path < N_PATHS; path++) {
        const struct bt_kernels *kernels = path_or_note(PATHS[path]);
        for (uint32_t i = 0; kernels && i < sizeof dims / sizeof dims[0]; i++)
            for (int cache = 0; cache < BT_CACHE_COUNT; cache++)
                for (uint32_t slot = 0; slot < 16; slot++) {
                    size_t bytes = portable->page_bytes(cache, 2, dims[i]);
                    uint8_t *wanted = aligned_bytes(bytes), *got = aligned_bytes(bytes);
                    struct bt_cache_write args = {.cache = cache,
                                                  .slot = slot,
                                                  .n_kv_heads = 2,
                                                  .head_dim = dims[i],
                                                  .k = k,
                                                  .v = v,
                                                  .stride = 512};
                    memset(wanted, 0xa5, bytes); /* the other tokens stay as they are */
                    memset(got, 0xa5, bytes);
                    for (args.n_tokens = 1; slot + args.n_tokens <= 16; args.n_tokens += 4) {
                        args.page = wanted;
                        portable->cache_write(&args);
                        args.page = got;
                        kernels->cache_write(&args);
                        assert_memory_equal(wanted, got, bytes);
                    }
                    free(wanted);
                    free(got);
                }
    }
    free(k);
    free(v);
}

/* The integers and scales of an int8 page stand where the layout says, rounded as it says. */
static void test_int8_page(void **state) {
    (void)state;
    const struct bt_kernels *kernels = portable_path();
    static uint8_t page[32 * 32 + 128];
    float k[32] = {0}, v[32] = {0};
    k[3] = -15.875f; /* the scale is 1/8 */
    k[4] = 0.3125f;  /* 2.5 goes to even */
    k[5] = 15.75f;
    v[31] = 254.0f;
    v[0] = -3.0f; /* -1.5 */
    struct bt_cache_write args = {.cache = BT_CACHE_INT8,
                                  .page = page,
                                  .slot = 5,
                                  .n_tokens = 1,
                                  .n_kv_heads = 1,
                                  .head_dim = 32,
                                  .k = k,
                                  .v = v,
                                  .stride = 32};
    kernels->cache_write(&args);
    const int8_t *keys = (const int8_t *)page, *values = keys + 16 * 32;
    const float *scales = (const float *)(const void *)(page + 32 * 32);
    assert_int_equal(keys[1 * 32 + 5 * 2 + 1], -127);
    assert_int_equal(keys[2 * 32 + 5 * 2], 2);
    assert_int_equal(keys[2 * 32 + 5 * 2 + 1], 126);
    assert_int_equal(values[(2 * 32 + 31) * 2 + 1], 127);
    assert_int_equal(values[(2 * 32 + 0) * 2 + 1], -2);
    assert_true(scales[5] == 0.125f && scales[16 + 5] == 2.0f);
    kernels->zero_tail(BT_CACHE_INT8, page, 5, 1, 32);
    for (size_t i = 0; i < sizeof page; i++)
        assert_int_equal(page[i], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths_agree),
        cmocka_unit_test(test_tile_is_row_by_row),
        cmocka_unit_test(test_pages_left_of_window_are_not_read),
        cmocka_unit_test(test_corners_agree),
        cmocka_unit_test(test_corners_in_cache_agree),
        cmocka_unit_test(test_int8_ignores_masked_scales),
        cmocka_unit_test(test_portable_is_near_double),
        cmocka_unit_test(test_cache_write_any_cut),
        cmocka_unit_test(test_cache_write_agrees),
        cmocka_unit_test(test_int8_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
