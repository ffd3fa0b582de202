/* The whole contract between the engine and the kernels of a device: one table of functions.
 *
 * Every table gives the same bits for the same inputs, whatever the instruction set, the number of
 * rows or the way in which ranges are cut; two NaN count as the same bits. What each function
 * computes is the numerics contract, version 1, restated beside it.
 *
 * Called on any thread that has called bt_kernels_thread_init() first (denormals are flushed).
 * Nothing here allocates, locks, or keeps state. Sizes are counted in elements unless the name
 * says bytes. Pointers may have any alignment; 64 bytes is fastest. Preconditions are the
 * caller's: shapes are checked when the model is loaded, not here. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    BT_KERNELS_TILE = 16,  /* outputs of one packed column tile: ranges of columns start here */
    BT_KERNELS_ROWS = 4,   /* ranges of rows given to `linear` start at a multiple of this */
    BT_KERNELS_GROUP = 32, /* inputs that share a scale */
    BT_KERNELS_PAGE_TOKENS = 16,   /* tokens in one page of the cache */
    BT_KERNELS_PIECE_TOKENS = 256, /* keys that share one maximum in attention */
    BT_KERNELS_HEAD_DIM_MAX = 256  /* head_dim is a multiple of 16, at most this */
};

/* Room for one packed row's results of one piece in `partials`; a multiple of 64 bytes. */
#define BT_KERNELS_PARTIAL_FLOATS(head_dim) ((size_t)(head_dim) + 16)

/* How a tensor is stored in the file; the values are ggml's type ids. */
enum bt_tensor_type {
    BT_TENSOR_F32 = 0,
    BT_TENSOR_F16 = 1,
    BT_TENSOR_Q4_0 = 2, /* 32 weights: f16 d, 16 bytes; w = d * (nibble - 8) */
    BT_TENSOR_Q4_1 = 3, /* 32 weights: f16 d, f16 m, 16 bytes; w = d * nibble + m */
    BT_TENSOR_Q8_0 = 8, /* 32 weights: f16 d, 32 int8; w = d * q */
    BT_TENSOR_BF16 = 30,
};

/* How a weight matrix is packed in memory, and with it the rule by which `linear` computes. */
enum bt_pack {
    BT_PACK_Q4_1, /* int8 rule, 0.625 bytes a weight */
    BT_PACK_Q4_0, /* int8 rule, 0.5625 bytes a weight */
    BT_PACK_Q8_0, /* int8 rule, 1.0625 bytes a weight */
    BT_PACK_BF16, /* bf16 rule */
    BT_PACK_F32,  /* exact rule */
    BT_PACK_COUNT
};

/* How rows of activations are prepared for `linear`; one form for each rule. */
enum bt_prepared {
    BT_PREPARED_INT8, /* for BT_PACK_Q4_1, Q4_0, Q8_0; n_in a multiple of 32 */
    BT_PREPARED_BF16, /* for BT_PACK_BF16; n_in even */
    BT_PREPARED_F32,  /* for BT_PACK_F32 */
    BT_PREPARED_COUNT
};

/* What the cache holds. Inside one page, for each kv head: K, then V, heads ascending.
 * BF16: K is [head_dim / 2][16 tokens][2], V is [8][head_dim][2] (2 = two neighbouring tokens).
 * F32:  K is [head_dim][16 tokens],        V is [16 tokens][head_dim].
 * INT8: K and V as BF16, but integers of one byte; then the scales of K, f32 [16 tokens], and those
 *       of V. A token's K (and its V) in one head: s = max|x| / 127, q = RNE(x / s); q = 0 where s
 *       is 0 or not finite. A token's scale is its own: writing it changes no other. */
enum bt_cache_type { BT_CACHE_BF16, BT_CACHE_F32, BT_CACHE_INT8, BT_CACHE_COUNT };

/* y[row][col] = sum over k of x[row][k] * w[col][k], then + bias[col], then y_old + that.
 * int8 rule: per group of 32 ascending, acc = fma((float)I, s_w * s, acc), then, unless Q8_0,
 *   acc = fma(m_w, t, acc); m_w is m (Q4_1) or -8 d (Q4_0).
 * bf16 rule: k in pairs ascending, odd element first, by fma.
 * exact rule: acc = acc + w * x, k ascending, two roundings. */
struct bt_linear {
    enum bt_pack pack;
    const void *weights; /* packed by `repack`, all of n_out x n_in */
    uint32_t n_in, n_out;
    const void *x;               /* prepared rows, from row 0 */
    uint32_t row_first, row_end; /* row_first a multiple of BT_KERNELS_ROWS */
    uint32_t col_first, col_end; /* col_first a multiple of BT_KERNELS_TILE, col_end too or n_out */
    float *y;                    /* y[row * y_stride + col], row and col absolute */
    size_t y_stride;
    const float *bias; /* [n_out] or NULL */
    int add;           /* 1: y = y + result (the residual stream), 0: y = result */
};

/* One sequence's query rows against one kv head of a paged cache. Row r stands at position
 * position + r and sees the keys max(0, position + r - window + 1) .. position + r (window 0: all
 * from 0). Keys are taken in pieces of 256 at absolute positions and merged in ascending order.
 * INT8: a query head is made int16: s_q = max|x| / 32767, q = RNE(x / s_q); the score of a key is
 * ((float)I * s_k) * (s_q * scale), I the exact int32 dot. In a piece p = e * s_v (0 for a masked
 * key), s_p = max p / 32767, P = RNE(p * (1 / s_p)), o = (float)I * s_p, I the exact int32 sum of
 * P * v over its keys. Where s_q or s_p is 0 or not finite, the integers are 0. */
struct bt_attention {
    enum bt_cache_type cache;
    const void *const *pages; /* pages[i]: the whole page (this layer, all kv heads) of positions
                                 16 i .. 16 i + 15; up to the last row's. Pages that no row sees
                                 are not read and may be NULL. */
    uint32_t kv_head;         /* which kv head */
    uint32_t n_group;         /* query heads that share it: heads kv_head * n_group .. + n_group */
    uint32_t head_dim;
    uint32_t position; /* of row 0 */
    uint32_t n_rows;   /* any number; 16 to 32 rows of a prefill make a good task */
    uint32_t window;   /* 0: full attention */
    float scale;
    const float *q; /* q[r * q_stride + head * head_dim + d], after RoPE; rounded to bf16 inside
                       (cache bf16) or to int16 (int8) */
    size_t q_stride;
    float *out; /* out[r * out_stride + head * head_dim + d] */
    size_t out_stride;
    /* NULL: `out` is filled. Else only the pieces piece_first .. piece_end are computed, and their
     * results left here, one piece every partials_stride floats; of a piece, those of its packed
     * rows (row * n_group + head), each BT_KERNELS_PARTIAL_FLOATS. */
    float *partials;
    size_t partials_stride;
    uint32_t piece_first, piece_end; /* positions 256 piece_first .. 256 piece_end - 1 */
};

/* n_tokens rows into one page of one layer, all kv heads. */
struct bt_cache_write {
    enum bt_cache_type cache;
    void *page;    /* start of (this layer, this page) */
    uint32_t slot; /* of the first token in the page; slot + n_tokens <= 16 */
    uint32_t n_tokens;
    uint32_t n_kv_heads, head_dim;
    const float *k; /* k[t * stride + kv_head * head_dim + d], after RoPE */
    const float *v; /* the same stride */
    size_t stride;
};

struct bt_kernels {
    const char *name; /* portable, fma, avx2, avx2vnni, avx512 */

    /* Weights. packed_bytes: room for n_out x n_in (a multiple of 64). repack: file rows row_first
     * .. row_end of a tensor of n_out rows into their place; row_first a multiple of
     * BT_KERNELS_TILE, row_end too or n_out; disjoint ranges may be packed by several threads at
     * once. Returns 0, or -1 if this type cannot be packed so (int8 packs take only their own
     * type; BF16 and F32 take every type, as bf16(fma(d, q, m)) and fma(d, q, m)) or n_in does not
     * suit it. dequantise: n values (whole blocks) as f32, for one row of the embedding; -1 if the
     * type is unknown or n is not whole blocks. row_bytes: one row of the file, 0 if unknown. */
    size_t (*packed_bytes)(enum bt_pack pack, uint32_t n_out, uint32_t n_in);
    int (*repack)(enum bt_pack pack, enum bt_tensor_type type, const void *tensor, uint32_t n_out,
                  uint32_t n_in, uint32_t row_first, uint32_t row_end, void *packed);
    size_t (*row_bytes)(enum bt_tensor_type type, uint32_t n);
    int (*dequantise)(enum bt_tensor_type type, const void *row, uint32_t n, float *out);

    /* Activations. prepared_bytes: room for n_rows (a multiple of 64). prepare: rows row_first ..
     * row_end of x (x[row * x_stride + k]) into their place; any ranges, several threads at once.
     * prepared_for: the form that a pack eats. */
    enum bt_prepared (*prepared_for)(enum bt_pack pack);
    size_t (*prepared_bytes)(enum bt_prepared form, uint32_t n_rows, uint32_t n_in);
    void (*prepare)(enum bt_prepared form, const float *x, size_t x_stride, uint32_t row_first,
                    uint32_t row_end, uint32_t n_in, void *prepared);
    void (*linear)(const struct bt_linear *args);

    /* y[i] = x[i] * r * w[i], r = 1 / sqrt(sum / n + eps). x and y may be the same. */
    void (*rmsnorm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    /* Rotates n_heads heads in place: pairs (2i, 2i+1), or (i, i + n_rot/2) if `halves`; the rest
     * of a head beyond n_rot stays. cos_row and sin_row are one position's row of the table, [n_rot
     * / 2].
     */
    void (*rope)(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                 const float *cos_row, const float *sin_row, int halves);
    /* out[i] = (gate[i] / (1 + exp(-gate[i]))) * up[i]; out may be gate or up. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);
    void (*add)(float *x, const float *y, size_t n); /* x[i] = x[i] + y[i] */

    /* Cache. page_bytes: of one layer's page. zero_tail: clears tokens slot .. 15 of the page in
     * K and V of all heads; what lies behind the last token must be zero before attention reads
     * the page. */
    size_t (*page_bytes)(enum bt_cache_type cache, uint32_t n_kv_heads, uint32_t head_dim);
    void (*cache_write)(const struct bt_cache_write *args);
    void (*zero_tail)(enum bt_cache_type cache, void *page, uint32_t slot, uint32_t n_kv_heads,
                      uint32_t head_dim);
    /* Whole, or with partials in two steps, so that tasks may share the pieces of a row: then it
     * reads no page of other pieces and does not touch out; attention_merge reads no page, needs
     * every piece that a row of args sees within piece_first .. piece_end, and fills out. A merge
     * of fewer rows than were computed starts at its first row's partials. */
    void (*attention)(const struct bt_attention *args);
    void (*attention_merge)(const struct bt_attention *args);

    /* Logits. all_finite: 1 or 0. argmax: the lowest index of the highest value, n >= 1, no NaN
     * among them. max: the highest value. exp: out[i] = exp(x[i] - shift), out may be x. scale:
     * x[i] = x[i] * f. divide: x[i] = x[i] / f. */
    int (*all_finite)(const float *x, size_t n);
    uint32_t (*argmax)(const float *x, size_t n);
    float (*max)(const float *x, size_t n);
    void (*exp)(const float *x, float shift, size_t n, float *out);
    void (*scale)(float *x, size_t n, float f);
    void (*divide)(float *x, size_t n, float f);

    void (*to_bf16)(const float *x, size_t n, uint16_t *out);
};

/* Flushes denormals on this thread (FTZ and DAZ in MXCSR); cheap, may be called again. Threads
 * started by this one inherit it. */
void bt_kernels_thread_init(void);

/* The table called `name` (portable, fma, avx2, avx2vnni, avx512), or the fastest this CPU has if
 * name is NULL or "". On refusal NULL, and a sentence in why (which otherwise is "" or a remark
 * worth a log line, for instance that this CPU's vdpbf16ps differs and is not used). */
const struct bt_kernels *bt_kernels_find(const char *name, char *why, size_t why_bytes);

/* What the rotation of each pair is made of. */
struct bt_rope_params {
    double base;    /* theta, such as 10000 */
    double scale;   /* positions are multiplied by this; 1 unless linear scaling is used */
    uint32_t n_rot; /* rotated dims of a head, even */
    const float *freq_factors; /* [n_rot / 2] divisors of the frequencies, or NULL */
};

/* cos and sin of positions first .. first + n, each [n][n_rot / 2]: computed in double by our own
 * functions, rounded once. The same on every table. */
void bt_kernels_rope_table(const struct bt_rope_params *params, uint32_t first, uint32_t n,
                           float *cos_out, float *sin_out);

/* exp and log of the contract in double, for log-probabilities and bias; the same bits on every
 * table. Not for numbers that only double's denormals can hold. */
double bt_kernels_exp(double x);
double bt_kernels_log(double x);
