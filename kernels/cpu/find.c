/* Chooses the kernel table by CPUID or by name, checks vdpbf16ps at start, sets a thread's mode. */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>
#include <xmmintrin.h>

#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/portable.h"

enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x0040 };

void bt_kernels_thread_init(void) {
    _mm_setcsr(_mm_getcsr() | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
}

static int has_avx2(void) {
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static const char *lacks_avx512(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return "AVX-512";
    if (!__builtin_cpu_supports("avx512vnni"))
        return "AVX-512 VNNI";
    if (!__builtin_cpu_supports("avx512bf16"))
        return "AVX-512 BF16";
    return NULL;
}

static const struct bt_kernels *find_avx512(char *why, size_t why_bytes) {
    if (bt_avx512_dot_is_exact())
        return &bt_avx512_kernels;
    snprintf(
        why, why_bytes,
        "this CPU's vdpbf16ps does not round as two fused multiply-adds; bf16 products use FMA");
    return &bt_avx512_fma_kernels;
}

const struct bt_kernels *bt_kernels_find(const char *name, char *why, size_t why_bytes) {
    const char *lacking = lacks_avx512();
    why[0] = '\0';
    if (!name || !name[0]) {
        if (!lacking && has_avx2())
            return find_avx512(why, why_bytes);
        return has_avx2() ? &bt_avx2_kernels : &bt_portable_kernels;
    }
    if (strcmp(name, "portable") == 0)
        return &bt_portable_kernels;
    int is_fma = strcmp(name, "fma") == 0, is_avx2 = strcmp(name, "avx2") == 0;
    if ((is_fma || is_avx2) && has_avx2())
        return is_fma ? &bt_fma_kernels : &bt_avx2_kernels;
    if (strcmp(name, "avx512") == 0 && !lacking && has_avx2())
        return find_avx512(why, why_bytes);
    if (is_fma || is_avx2)
        lacking = "AVX2, FMA or F16C";
    if (is_fma || is_avx2 || strcmp(name, "avx512") == 0)
        snprintf(why, why_bytes, "kernels path \"%.32s\" needs %s, which this CPU lacks", name,
                 lacking ? lacking : "AVX2");
    else
        snprintf(why, why_bytes,
                 "kernels path is \"%.32s\", expected portable, fma, avx2 or avx512", name);
    return NULL;
}
