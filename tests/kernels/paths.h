/* What the kernel tests share: the list of paths, reproducible numbers, comparison bit by bit. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx512.h"
#include "kernels/kernels.h"

/* Two of them no name finds on a CPU that has better: vpdpbusd in AVX-512's encoding, and what a
 * CPU gets whose vdpbf16ps rounds otherwise. */
static const char *const PATHS[] = {
    "fma", "avx2", "avx2vnni", "avx2vnni of AVX-512", "avx512", "avx512 without vdpbf16ps"};
enum { N_PATHS = 6, AVX_VNNI = 2, AVX512_VNNI = 3, WITHOUT_DPBF16 = 5 };

static inline const struct bt_kernels *portable_path(void) {
    char why[256];
    bt_kernels_thread_init();
    const struct bt_kernels *k = bt_kernels_find("portable", why, sizeof why);
    assert_non_null(k);
    return k;
}

static inline const struct bt_kernels *find_path(const char *name, char *why, size_t why_bytes) {
    if (strcmp(name, PATHS[AVX_VNNI]) == 0) {
        const struct bt_kernels *k = bt_kernels_find(name, why, why_bytes);
        if (k == &bt_avx2vnni_evex_kernels)
            snprintf(why, why_bytes, "only AVX-512's form of it");
        return k == &bt_avx2vnni_evex_kernels ? NULL : k;
    }
    if (strcmp(name, PATHS[AVX512_VNNI]) == 0) {
        int has = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
        snprintf(why, why_bytes, "%s", has ? "" : "no AVX-512 VNNI");
        return has ? &bt_avx2vnni_evex_kernels : NULL;
    }
    if (strcmp(name, PATHS[WITHOUT_DPBF16]) == 0)
        return bt_kernels_find("avx512", why, why_bytes) ? &bt_avx512_fma_kernels : NULL;
    return bt_kernels_find(name, why, why_bytes);
}

/* The path, or NULL with a line that says that it did not run. */
static inline const struct bt_kernels *path_or_note(const char *name) {
    char why[256];
    const struct bt_kernels *k = find_path(name, why, sizeof why);
    const char *part = strcmp(name, PATHS[AVX_VNNI]) == 0      ? "AVX-VNNI"
                       : strcmp(name, PATHS[AVX512_VNNI]) == 0 ? "AVX-512 VNNI"
                       : strncmp(name, "avx512", 6) == 0       ? "AVX-512"
                                                               : "AVX2";
    if (!k)
        printf("not run: no %s (%s)\n", part, why);
    else if (why[0])
        printf("%s\n", why);
    return k;
}

static uint64_t random_state = 88172645463325252u;

static inline uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* In [-1, 1). */
static inline float random_f32(void) {
    return (float)(int32_t)(random_u64() >> 32) * 0x1p-31f;
}

static inline void fill(float *x, size_t n, float scale) {
    for (size_t i = 0; i < n; i++)
        x[i] = random_f32() * scale;
}

/* Numbers on which rounding, flushing and comparing differ: zeros, denormals, ties, huge,
 * non-finite. */
static inline float corner_f32(int finite) {
    static const uint32_t BITS[] = {0,          0x80000000, 1,          0x80000001, 0x007fffff,
                                    0x00800000, 0x80800000, 0x3f808000, 0x3f818000, 0x3f800001,
                                    0x4b000001, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000,
                                    0x7fc00000, 0x7f800001, 0xffffffff};
    uint32_t n = sizeof BITS / sizeof BITS[0], u = BITS[random_u64() % (finite ? 11 : n)];
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline void *aligned_bytes(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    assert_non_null(p);
    return p;
}

static inline int same_bits(float a, float b) {
    return memcmp(&a, &b, 4) == 0 || (a != a && b != b);
}

static inline void assert_same(const char *what, const char *path, const float *want,
                               const float *got, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!same_bits(want[i], got[i]))
            fail_msg("%s, path %s: element %zu of %zu is %a, portable says %a", what, path, i, n,
                     (double)got[i], (double)want[i]);
}

/* Random blocks of a file format, scales within reason. */
static inline void fill_tensor(enum bt_tensor_type type, uint8_t *tensor, size_t n_values) {
    if (type == BT_TENSOR_F32 || type == BT_TENSOR_F16 || type == BT_TENSOR_BF16) {
        for (size_t i = 0; i < n_values; i++) {
            float f = random_f32();
            uint16_t half = (uint16_t)(random_u64() & 0xbfff); /* an f16 below 2 */
            uint32_t u;
            memcpy(&u, &f, 4);
            if (type == BT_TENSOR_F32)
                memcpy(tensor + i * 4, &f, 4);
            else if (type == BT_TENSOR_F16)
                memcpy(tensor + i * 2, &half, 2);
            else
                memcpy(tensor + i * 2, (uint8_t *)&u + 2, 2);
        }
        return;
    }
    size_t bytes = type == BT_TENSOR_Q4_0 ? 18 : type == BT_TENSOR_Q4_1 ? 20 : 34;
    for (size_t b = 0; b < n_values / 32; b++, tensor += bytes) {
        for (size_t i = 0; i < bytes; i++)
            tensor[i] = (uint8_t)(random_u64() >> 40);
        uint16_t d = (uint16_t)(random_u64() & 0xafff); /* below 0.125, sometimes denormal */
        memcpy(tensor, &d, 2);
        d = (uint16_t)(random_u64() & 0xb7ff);
        if (type == BT_TENSOR_Q4_1)
            memcpy(tensor + 2, &d, 2);
    }
}
