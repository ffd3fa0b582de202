/* Exact dots of a tile's group of 32 weights with up to 4 rows of activations, in 256 bits: by
 * vpdpbusd where the file is compiled for it, as AVX-VNNI or in AVX-512's encoding, else by the
 * products of AVX2. dot[r][h] has the dots of row r with the outputs 8 h .. 8 h + 7. */
#pragma once
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/compiler.h"
#include "kernels/cpu/layout.h"

ALWAYS_INLINE __m256i load_256(const void *p) {
    return _mm256_loadu_si256(p);
}

ALWAYS_INLINE __m256i four_inputs(const struct int8_group *x, int step, int row) {
    int32_t q;
    memcpy(&q, x->q[step][row], 4);
    return _mm256_set1_epi32(q);
}

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))

ALWAYS_INLINE __m256i dot_bytes(__m256i sum, __m256i w, __m256i x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    return _mm256_dpbusd_epi32(sum, w, x);
#endif
}

ALWAYS_INLINE __m256i dot_nibbles(__m256i sum, __m256i w, __m256i x) {
    return dot_bytes(sum, w, x);
}

ALWAYS_INLINE __m256i finish_nibbles(__m256i sum) {
    return sum;
}

/* The bytes are 128 too high; `offset` takes 128 times the sum of x away again. */
ALWAYS_INLINE void dot_q8(const uint8_t *w, const struct int8_group *x, __m256i dot[][2],
                          const int R) {
    UNROLL for (int r = 0; r < R; r++) dot[r][0] = dot[r][1] = _mm256_set1_epi32(x->offset[r]);
    UNROLL for (int i = 0; i < 8; i++) {
        __m256i a = load_256(w + i * 64), b = load_256(w + i * 64 + 32);
        UNROLL for (int r = 0; r < R; r++) {
            __m256i inputs = four_inputs(x, i, r);
            dot[r][0] = dot_bytes(dot[r][0], a, inputs);
            dot[r][1] = dot_bytes(dot[r][1], b, inputs);
        }
    }
}

#else

/* vpmaddubsw saturates at 32767: a group's eight sums of two products are at most
 * 8 * 2 * 15 * 127 = 30480, so they may be added up in 16 bits, and in 32 at its end. */
ALWAYS_INLINE __m256i dot_nibbles(__m256i sum, __m256i w, __m256i x) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
    COMPUTE_NOW(sum);
    return sum;
}

ALWAYS_INLINE __m256i finish_nibbles(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

/* Exact dots with signed bytes: |w| times x with w's sign; 2 * 128 * 127 = 32512 fits 16 bits. */
ALWAYS_INLINE void dot_q8(const uint8_t *w, const struct int8_group *x, __m256i dot[][2],
                          const int R) {
    const __m256i top_bits = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    UNROLL for (int half = 0; half < 2; half++) {
        UNROLL for (int r = 0; r < R; r++) dot[r][half] = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < 8; i++) {
            __m256i q = _mm256_xor_si256(load_256(w + i * 64 + half * 32), top_bits);
            __m256i size = _mm256_abs_epi8(q);
            UNROLL for (int r = 0; r < R; r++) {
                __m256i signs = _mm256_sign_epi8(four_inputs(x, i, r), q);
                __m256i pairs = _mm256_maddubs_epi16(size, signs);
                dot[r][half] = _mm256_add_epi32(dot[r][half], _mm256_madd_epi16(pairs, ones));
                COMPUTE_NOW(dot[r][half]);
            }
        }
    }
}

#endif

ALWAYS_INLINE void dot_q4(const uint8_t *w, const struct int8_group *x, __m256i dot[][2],
                          const int R) {
    const __m256i low_bits = _mm256_set1_epi8(15);
    UNROLL for (int r = 0; r < R; r++) dot[r][0] = dot[r][1] = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 4; i++) {
        __m256i first = load_256(w + i * 64), second = load_256(w + i * 64 + 32);
        UNROLL for (int part = 0; part < 2; part++) {
            __m256i a = _mm256_and_si256(first, low_bits);
            __m256i b = _mm256_and_si256(second, low_bits);
            UNROLL for (int r = 0; r < R; r++) {
                __m256i inputs = four_inputs(x, i + 4 * part, r);
                dot[r][0] = dot_nibbles(dot[r][0], a, inputs);
                dot[r][1] = dot_nibbles(dot[r][1], b, inputs);
            }
            first = _mm256_srli_epi16(first, 4);
            second = _mm256_srli_epi16(second, 4);
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        dot[r][0] = finish_nibbles(dot[r][0]);
        dot[r][1] = finish_nibbles(dot[r][1]);
    }
}
