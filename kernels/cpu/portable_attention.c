/* Portable attention: one packed row at a time over the pieces of a paged cache. */
#include "kernels/cpu/attention_walk.h"
#include "kernels/cpu/portable.h"

/* Scores of one page by the bf16 rule over dims, K [head_dim / 2][16][2]. */
static void scores_bf16(const uint16_t *k, const uint32_t *q, uint32_t head_dim, float s[PAGE]) {
    for (int t = 0; t < PAGE; t++)
        s[t] = 0.0f;
    for (uint32_t d = 0; d < head_dim / 2; d++, k += PAGE * 2) {
        float even = bf16_to_f32((uint16_t)q[d]), odd = bf16_to_f32((uint16_t)(q[d] >> 16));
        for (int t = 0; t < PAGE; t++) {
            s[t] = fused_bf16(bf16_to_f32(k[2 * t + 1]), odd, s[t]);
            s[t] = fused_bf16(bf16_to_f32(k[2 * t]), even, s[t]);
        }
    }
}

/* Scores of one page by the exact rule, K [head_dim][16]. */
static void scores_f32(const float *k, const float *q, uint32_t head_dim, float s[PAGE]) {
    for (int t = 0; t < PAGE; t++)
        s[t] = 0.0f;
    for (uint32_t d = 0; d < head_dim; d++, k += PAGE)
        for (int t = 0; t < PAGE; t++)
            s[t] = s[t] + k[t] * q[d];
}

/* From scores to e = exp(score - m), m and l; a masked key's e is exactly 0. */
static void soften(struct piece *p, float e[PIECE]) {
    float m = -__builtin_inff(), lanes[16] = {0};
    uint32_t from = p->page_first * PAGE, to = p->page_end * PAGE;
    for (uint32_t t = from; t < to; t++) {
        e[t] = e[t] * p->scale[0];
        if (t >= p->low[0] && t < p->high[0])
            m = e[t] > m ? e[t] : m;
    }
    for (uint32_t t = from; t < to; t++) {
        e[t] = t >= p->low[0] && t < p->high[0] ? exp_f32(e[t] - m) : 0.0f;
        lanes[t % 16] += e[t];
    }
    p->m[0] = m;
    p->l[0] = tree_f32(lanes);
}

static void piece_bf16(struct piece *p) {
    float e[PIECE], *o = p->o[0];
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        scores_bf16((const uint16_t *)(const void *)p->k[i], p->q, p->head_dim, e + i * PAGE);
    soften(p, e);
    for (uint32_t d = 0; d < p->head_dim; d++)
        o[d] = 0.0f;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const uint16_t *v = (const uint16_t *)(const void *)p->v[i];
        for (uint32_t t = 0; t < PAGE; t += 2, v += (size_t)p->head_dim * 2) {
            float even = bf16_to_f32(f32_to_bf16(e[i * PAGE + t]));
            float odd = bf16_to_f32(f32_to_bf16(e[i * PAGE + t + 1]));
            for (uint32_t d = 0; d < p->head_dim; d++) {
                o[d] = fused_bf16(bf16_to_f32(v[2 * d + 1]), odd, o[d]);
                o[d] = fused_bf16(bf16_to_f32(v[2 * d]), even, o[d]);
            }
        }
    }
    /* How many masked pages were read must not show in the sign of a zero. */
    for (uint32_t d = 0; d < p->head_dim; d++)
        o[d] = o[d] + 0.0f;
}

static void piece_f32(struct piece *p) {
    float e[PIECE], *o = p->o[0];
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        scores_f32((const float *)(const void *)p->k[i], (const float *)(const void *)p->q,
                   p->head_dim, e + i * PAGE);
    soften(p, e);
    for (uint32_t d = 0; d < p->head_dim; d++)
        o[d] = 0.0f;
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const float *v = (const float *)(const void *)p->v[i];
        for (uint32_t t = 0; t < PAGE; t++, v += p->head_dim)
            for (uint32_t d = 0; d < p->head_dim; d++)
                o[d] = o[d] + v[d] * e[i * PAGE + t];
    }
    for (uint32_t d = 0; d < p->head_dim; d++)
        o[d] = o[d] + 0.0f;
}

/* Exact dots of one page, K [head_dim / 2][16][2], each times its key's scale. */
static void scores_int8(const uint8_t *page, const uint32_t *q, uint32_t head_dim, float s[PAGE]) {
    const struct int8_scales *scales = int8_scales_of(page, head_dim);
    const int8_t *k = (const int8_t *)page;
    int32_t dot[PAGE] = {0};
    for (uint32_t d = 0; d < head_dim / 2; d++, k += PAGE * 2) {
        int32_t even = (int16_t)q[d], odd = (int16_t)(q[d] >> 16);
        for (int t = 0; t < PAGE; t++)
            dot[t] += k[2 * t] * even + k[2 * t + 1] * odd;
    }
    for (int t = 0; t < PAGE; t++)
        s[t] = (float)dot[t] * scales->k[t];
}

/* From e to the integers of e * s_v; returns their scale. */
static float scale_probabilities(const struct piece *p, const float *e, int32_t *out) {
    float scaled[PIECE];
    uint32_t from = p->page_first * PAGE, n = p->page_end * PAGE - from;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t t = from + i;
        const struct int8_scales *scales = int8_scales_of(p->k[t / PAGE], p->head_dim);
        scaled[i] = t >= p->low[0] && t < p->high[0] ? e[t] * scales->v[t % PAGE] : 0.0f;
    }
    float s = symmetric_scale(scaled, n, 32767.0f), inverse = 1.0f / s;
    int usable = scale_is_usable(s);
    for (uint32_t i = 0; i < n; i++)
        out[from + i] = usable ? round_f32(scaled[i] * inverse) : 0;
    return s;
}

static void piece_int8(struct piece *p) {
    float e[PIECE];
    int32_t probability[PIECE], o[HEAD_DIM_MAX] = {0};
    for (uint32_t i = p->page_first; i < p->page_end; i++)
        scores_int8(p->k[i], p->q, p->head_dim, e + i * PAGE);
    soften(p, e);
    float s = scale_probabilities(p, e, probability);
    for (uint32_t i = p->page_first; i < p->page_end; i++) {
        const int8_t *v = (const int8_t *)p->v[i];
        for (uint32_t t = i * PAGE; t < (i + 1) * PAGE; t += 2, v += (size_t)p->head_dim * 2)
            for (uint32_t d = 0; d < p->head_dim; d++)
                o[d] += v[2 * d] * probability[t] + v[2 * d + 1] * probability[t + 1];
    }
    /* Of a product that was flushed to -0 the merge wants +0, as of every o. */
    for (uint32_t d = 0; d < p->head_dim; d++)
        p->o[0][d] = (float)o[d] * s + 0.0f;
}

static void merge(float *sum, const float *o, uint32_t n, float a, float b) {
    for (uint32_t d = 0; d < n; d++)
        sum[d] = fused(sum[d], a, o[d] * b);
}

static void divide(float *x, uint32_t n, float l) {
    for (uint32_t d = 0; d < n; d++)
        x[d] = x[d] / l;
}

static const struct walk_path path = {1, piece_bf16, piece_f32, piece_int8, merge, divide};

void NAME(attention)(const struct bt_attention *args) {
    walk_attention(args, &path);
}

void NAME(attention_merge)(const struct bt_attention *args) {
    walk_attention_merge(args, &path);
}
