/* Checks at start that vdpbf16ps rounds as the contract says: two fused multiply-adds, denormals
 * flushed, on corners that tell one way of rounding from another. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/avx512.h"

struct corner {
    float odd_a, odd_b, even_a, even_b, c;
};

static const struct corner CORNERS[] = {
    {0x1.8p-75f, 0x1p-76f, 0.0f, 0.0f, -0x1p-126f},        /* tiny only after rounding */
    {0.0f, 0.0f, 0x1.8p-75f, 0x1p-76f, -0x1p-126f},        /* the same by the even element */
    {0x1p+20f, 0x1p+20f, -0x1p+20f, 0x1p+20f, 1.0f},       /* c is lost before it cancels */
    {-0x1p+20f, 0x1p+20f, 0x1p+20f, 0x1p+20f, 0x1.8p+16f}, /* order matters */
    {0x1.02p+0f, 0x1.02p+0f, 0x1.fep-13f, 0x1.fep-12f, 0x1p+24f},
    {0x1.02p+0f, 0x1.06p+0f, -0x1.02p+0f, 0x1.06p+0f, 0x1.000002p+0f},
    {0x1.fep+0f, 0x1.fep+0f, 0x1.fep+0f, 0x1.fep+0f, 0x1.fffffep+23f},
    {0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f, 1.0f}, /* two halves of an ulp: tie, tie */
    {0x1p-12f, 0x1p-12f, 0x1p-40f, 0x1p-40f, 0x1.000002p+0f},
    {0x1p-40f, 0x1p-40f, 0x1p-12f, 0x1p-12f, 1.0f},
    {0x1p+64f, 0x1p+63f, -0x1p+64f, 0x1p+63f, 0.0f},    /* just below overflow */
    {0x1p+64f, 0x1p+64f, -0x1p+64f, 0x1p+63f, 0.0f},    /* overflows to infinity, stays */
    {0x1p-64f, 0x1p-63f, 0.0f, 0.0f, 0.0f},             /* denormal product */
    {0x1p-63f, 0x1p-63f, -0x1.02p-63f, 0x1p-63f, 0.0f}, /* denormal difference */
    {0x1p-130f, 0x1p+100f, 1.0f, 1.0f, 0.0f},           /* denormal factor counts as zero */
    {-1.0f, 0.0f, 0.0f, 1.0f, -0.0f},                   /* signs of zero */
    {-0.0f, 1.0f, -0.0f, 1.0f, -0.0f},
    {1.0f, 1.0f, -1.0f, 1.0f, 0x1p-127f}, /* denormal accumulator */
};

static uint32_t bf16_pair(float odd, float even) {
    uint32_t high, low;
    memcpy(&high, &odd, 4);
    memcpy(&low, &even, 4);
    return (high & 0xffff0000u) | low >> 16;
}

static int same(float a, float b) {
    uint32_t a_bits, b_bits;
    memcpy(&a_bits, &a, 4);
    memcpy(&b_bits, &b, 4);
    return a_bits == b_bits || (a != a && b != b);
}

/* One lane, by the instruction and by its definition in FTZ and DAZ. */
static int is_exact(const struct corner *corner) {
    const volatile struct corner *x = corner; /* computed here, not by the compiler */
    __m512bh a = (__m512bh)_mm512_set1_epi32((int)bf16_pair(x->odd_a, x->even_a));
    __m512bh b = (__m512bh)_mm512_set1_epi32((int)bf16_pair(x->odd_b, x->even_b));
    float got = _mm512_cvtss_f32(_mm512_dpbf16_ps(_mm512_set1_ps(x->c), a, b));
    __m128 sum = _mm_set_ss(x->c);
    sum = _mm_fmadd_ss(_mm_set_ss(x->odd_a), _mm_set_ss(x->odd_b), sum);
    sum = _mm_fmadd_ss(_mm_set_ss(x->even_a), _mm_set_ss(x->even_b), sum);
    return same(got, _mm_cvtss_f32(sum));
}

int bt_avx512_dot_is_exact(void) {
    unsigned mode = _mm_getcsr();
    bt_kernels_thread_init();
    int exact = 1;
    for (size_t i = 0; i < sizeof CORNERS / sizeof CORNERS[0]; i++)
        exact &= is_exact(&CORNERS[i]);
    /* Random pairs with exponents close enough to interact; the generator is xorshift. */
    uint64_t state = 88172645463325252u;
    for (int i = 0; i < 4096; i++) {
        float v[5];
        for (int j = 0; j < 5; j++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            uint32_t u = (uint32_t)(state >> 32 & 0x807fffffu) | (120u + (uint32_t)state % 16)
                                                                     << 23;
            u &= j < 4 ? 0xffff0000u : 0xffffffffu;
            memcpy(&v[j], &u, 4);
        }
        struct corner random = {v[0], v[1], v[2], v[3], v[4]};
        exact &= is_exact(&random);
    }
    _mm_setcsr(mode);
    return exact;
}
