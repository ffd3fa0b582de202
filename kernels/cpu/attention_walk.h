/* Walks the pieces of a paged cache for a tile of query rows: which rows see what, and in which
 * order pieces are merged, at once or, where tasks share the pieces of a row, afterwards. Each path
 * includes it and brings the arithmetic of one piece and of the merge.
 *
 * Query rows and the query heads of one kv head are packed together (packed row = row * n_group +
 * head), so that K and V are read once for all heads that share them. */
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/layout.h"
#include "kernels/cpu/scalar.h"

enum {
    WALK_ROWS_MAX = 8, /* packed rows that a path computes at once */
    WALK_TILE_MAX = 48 /* packed rows whose running sums are kept while K and V pass by */
};

/* One piece for 1 .. WALK_ROWS_MAX packed rows. */
struct piece {
    const uint8_t *k[PIECE_PAGES]; /* this head's K in each page; NULL outside page_first .. end */
    const uint8_t *v[PIECE_PAGES];
    const uint8_t *ahead[PIECE_PAGES]; /* K of the next piece, or of this one: worth prefetching */
    uint32_t page_first, page_end;
    uint32_t n_rows, head_dim;
    uint32_t low[WALK_ROWS_MAX],
        high[WALK_ROWS_MAX]; /* visible keys of the piece; low == high: none */
    const float *scale;      /* of row r's scores: scale[r] */
    const uint32_t *q;       /* row r from q[r * HEAD_DIM_MAX]: bf16 pairs, int16 pairs or f32 */
    /* Out; what a row gets that sees no key means nothing. */
    float m[WALK_ROWS_MAX], l[WALK_ROWS_MAX];
    float *o[WALK_ROWS_MAX]; /* where each row's o goes */
};

struct walk_path {
    uint32_t rows_max;
    void (*piece_bf16)(struct piece *p);
    void (*piece_f32)(struct piece *p);
    void (*piece_int8)(struct piece *p);
    void (*merge)(float *sum, const float *o, uint32_t n, float a,
                  float b);                        /* sum = fma(sum, a, o * b) */
    void (*divide)(float *x, uint32_t n, float l); /* x = x / l */
};

/* What the pieces so far have given one packed row; its O stands in the row of `out`. */
struct walk_sum {
    float m, l;
    uint32_t seen; /* a piece has been merged */
};

struct walk {
    const struct bt_attention *args;
    const struct walk_path *path;
    uint32_t first, n; /* packed rows of this tile */
    struct walk_sum sum[WALK_TILE_MAX];
    uint32_t q[WALK_TILE_MAX][HEAD_DIM_MAX] __attribute__((aligned(64)));
    float scale[WALK_TILE_MAX]; /* what a dot is multiplied with */
    float spare[WALK_ROWS_MAX][HEAD_DIM_MAX] __attribute__((aligned(64)));
};

static inline uint32_t walk_low(const struct bt_attention *args, uint32_t packed) {
    uint32_t at = args->position + packed / args->n_group;
    return args->window && at + 1 > args->window ? at + 1 - args->window : 0;
}

static inline uint32_t walk_high(const struct bt_attention *args, uint32_t packed) {
    return args->position + packed / args->n_group + 1;
}

static inline const float *walk_q(const struct bt_attention *args, uint32_t packed) {
    uint32_t head = args->kv_head * args->n_group + packed % args->n_group;
    return args->q + packed / args->n_group * args->q_stride + (size_t)head * args->head_dim;
}

static inline float *walk_out(const struct bt_attention *args, uint32_t packed) {
    uint32_t head = args->kv_head * args->n_group + packed % args->n_group;
    return args->out + packed / args->n_group * args->out_stride + (size_t)head * args->head_dim;
}

/* Where a packed row's results of a piece wait for the merge: o, then m and l. */
static inline float *walk_partial(const struct bt_attention *args, uint32_t piece_i,
                                  uint32_t packed) {
    return args->partials + (piece_i - args->piece_first) * args->partials_stride +
           (size_t)packed * BT_KERNELS_PARTIAL_FLOATS(args->head_dim);
}

/* Int16 of one query head; returns their scale. */
static inline float walk_quantise_q(const float *q, uint32_t head_dim, int16_t *out) {
    float s = symmetric_scale(q, head_dim, 32767.0f);
    int usable = scale_is_usable(s);
    for (uint32_t d = 0; d < head_dim; d++)
        out[d] = (int16_t)(usable ? round_f32(q[d] / s) : 0);
    return s;
}

/* Lays out the queries as the pieces want them: rounded to what the cache's type is computed with.
 */
static inline void walk_prepare_q(struct walk *w) {
    uint32_t head_dim = w->args->head_dim;
    for (uint32_t r = 0; r < w->n; r++) {
        const float *q = walk_q(w->args, w->first + r);
        uint16_t *half = (uint16_t *)w->q[r];
        w->scale[r] = w->args->scale;
        if (w->args->cache == BT_CACHE_F32)
            memcpy(w->q[r], q, head_dim * sizeof(float));
        else if (w->args->cache == BT_CACHE_INT8)
            w->scale[r] *= walk_quantise_q(q, head_dim, (int16_t *)w->q[r]);
        else
            for (uint32_t d = 0; d < head_dim; d++)
                half[d] = f32_to_bf16(q[d]);
    }
}

/* Cuts the visible range of each row to this piece; 0 if no row sees any of it. */
static inline int walk_cut(const struct walk *w, uint32_t piece_i, uint32_t at, struct piece *p) {
    uint32_t start = piece_i * PIECE, low = PIECE, high = 0;
    uint32_t n_pages = (walk_high(w->args, w->first + w->n - 1) + PAGE - 1) / PAGE;
    if (w->args->partials && n_pages > w->args->piece_end * PIECE_PAGES)
        n_pages = w->args->piece_end * PIECE_PAGES;
    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint32_t from = walk_low(w->args, w->first + at + r);
        uint32_t to = walk_high(w->args, w->first + at + r);
        from = from < start ? 0 : from - start < PIECE ? from - start : PIECE;
        to = to < start ? 0 : to - start < PIECE ? to - start : PIECE;
        p->low[r] = from < to ? from : 0;
        p->high[r] = from < to ? to : 0;
        if (from < to) {
            low = from < low ? from : low;
            high = to > high ? to : high;
        }
    }
    if (low >= high)
        return 0;
    p->page_first = low / PAGE;
    p->page_end = (high + PAGE - 1) / PAGE;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        size_t bytes = head_bytes(w->args->cache, p->head_dim);
        p->k[i] =
            (const uint8_t *)w->args->pages[piece_i * PIECE_PAGES + i] + w->args->kv_head * bytes;
        p->v[i] = p->k[i] + half_bytes(w->args->cache, p->head_dim);
        p->ahead[i] = p->k[i];
        if ((piece_i + 1) * PIECE_PAGES + i < n_pages)
            p->ahead[i] = (const uint8_t *)w->args->pages[(piece_i + 1) * PIECE_PAGES + i] +
                          w->args->kv_head * bytes;
    }
    return 1;
}

/* O and L of one more piece. The first needs no arithmetic: a is 0, b is exp(0) = 1, and o has no
 * -0. (Where m is not finite, l and o are NaN already.) */
static inline void walk_merge(const struct walk_path *path, struct walk_sum *sum, float *out,
                              const float *o, uint32_t head_dim, float m, float l) {
    if (!sum->seen) {
        *sum = (struct walk_sum){m, l, 1};
        if (o != out)
            memcpy(out, o, head_dim * sizeof(float));
        return;
    }
    float top = sum->m > m ? sum->m : m;
    float a = exp_f32(sum->m - top), b = exp_f32(m - top);
    sum->l = fused(sum->l, a, l * b);
    sum->m = top;
    path->merge(out, o, head_dim, a, b);
}

/* One piece for the rows of the tile from `at`: merged, or put into the partials. */
static inline void walk_piece(struct walk *w, uint32_t piece_i, uint32_t at, struct piece *p) {
    const struct bt_attention *args = w->args;
    if (!walk_cut(w, piece_i, at, p))
        return;
    for (uint32_t r = 0; r < p->n_rows; r++) {
        uint32_t packed = w->first + at + r;
        if (args->partials)
            p->o[r] = walk_partial(args, piece_i, packed);
        else
            p->o[r] = w->sum[at + r].seen || p->low[r] >= p->high[r] ? w->spare[r]
                                                                     : walk_out(args, packed);
    }
    p->q = w->q[at];
    p->scale = w->scale + at;
    if (args->cache == BT_CACHE_BF16)
        w->path->piece_bf16(p);
    else if (args->cache == BT_CACHE_INT8)
        w->path->piece_int8(p);
    else
        w->path->piece_f32(p);
    for (uint32_t r = 0; r < p->n_rows; r++) {
        if (args->partials) {
            p->o[r][args->head_dim] = p->m[r];
            p->o[r][args->head_dim + 1] = p->l[r];
        } else if (p->low[r] < p->high[r]) {
            walk_merge(w->path, &w->sum[at + r], walk_out(args, w->first + at + r), p->o[r],
                       args->head_dim, p->m[r], p->l[r]);
        }
    }
}

static inline void walk_tile(struct walk *w, uint32_t piece_first, uint32_t piece_end) {
    uint32_t step = w->path->rows_max;
    struct piece p;
    p.head_dim = w->args->head_dim;
    walk_prepare_q(w);
    for (uint32_t piece_i = piece_first; piece_i < piece_end; piece_i++)
        for (uint32_t at = 0; at < w->n; at += step) {
            p.n_rows = w->n - at < step ? w->n - at : step;
            walk_piece(w, piece_i, at, &p);
        }
}

/* args->partials: the pieces that args names, unmerged; else attention whole. */
static inline void walk_attention(const struct bt_attention *args, const struct walk_path *path) {
    struct walk w;
    uint32_t n = args->n_rows * args->n_group;
    uint32_t tile = WALK_TILE_MAX / path->rows_max * path->rows_max;
    w.args = args;
    w.path = path;
    for (w.first = 0; w.first < n; w.first += tile) {
        w.n = n - w.first < tile ? n - w.first : tile;
        memset(w.sum, 0, w.n * sizeof *w.sum);
        if (args->partials) {
            walk_tile(&w, args->piece_first, args->piece_end);
            continue;
        }
        walk_tile(&w, walk_low(args, w.first) / PIECE,
                  (walk_high(args, w.first + w.n - 1) - 1) / PIECE + 1);
        for (uint32_t row = 0; row < w.n; row++)
            path->divide(walk_out(args, w.first + row), args->head_dim, w.sum[row].l);
    }
}

/* Merges what waits in the partials. */
static inline void walk_attention_merge(const struct bt_attention *args,
                                        const struct walk_path *path) {
    for (uint32_t packed = 0; packed < args->n_rows * args->n_group; packed++) {
        struct walk_sum sum = {0};
        float *out = walk_out(args, packed);
        uint32_t first = walk_low(args, packed) / PIECE;
        uint32_t last = (walk_high(args, packed) - 1) / PIECE;
        for (uint32_t piece_i = first; piece_i <= last; piece_i++) {
            const float *o = walk_partial(args, piece_i, packed);
            walk_merge(path, &sum, out, o, args->head_dim, o[args->head_dim],
                       o[args->head_dim + 1]);
        }
        path->divide(out, args->head_dim, sum.l);
    }
}
