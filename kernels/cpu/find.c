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

static int has_avx_vnni(void) {
    unsigned a = 0, b, c, d;
    enum { BIT_AVX_VNNI = 1 << 4 };
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & BIT_AVX_VNNI);
}

static int has_avx512_vnni(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

static const struct bt_kernels *find_avx512(char *why, size_t why_bytes) {
    if (bt_avx512_dot_is_exact())
        return &bt_avx512_kernels;
    snprintf(
        why, why_bytes,
        "this CPU's vdpbf16ps does not round as two fused multiply-adds; bf16 products use FMA");
    return &bt_avx512_fma_kernels;
}

/* The paths by name, slowest first; a NULL table: the CPU lacks what `needs` says. */
enum { PORTABLE, FMA, AVX2, AVX2VNNI, AVX512, N_NAMES };

struct path {
    const char *name, *needs;
    const struct bt_kernels *table;
};

static void list_paths(struct path paths[N_NAMES], char *why, size_t why_bytes) {
    const char *avx2 = "AVX2, FMA or F16C", *lacking = lacks_avx512();
    paths[PORTABLE] = (struct path){"portable", "", &bt_portable_kernels};
    paths[FMA] = (struct path){"fma", avx2, has_avx2() ? &bt_fma_kernels : NULL};
    paths[AVX2] = (struct path){"avx2", avx2, has_avx2() ? &bt_avx2_kernels : NULL};
    paths[AVX2VNNI] = (struct path){"avx2vnni", "AVX-VNNI, or AVX-512 VNNI and VL",
                                    has_avx_vnni()      ? &bt_avx2vnni_kernels
                                    : has_avx512_vnni() ? &bt_avx2vnni_evex_kernels
                                                        : NULL};
    paths[AVX512] = (struct path){"avx512", lacking ? lacking : avx2, NULL};
    if (!lacking && has_avx2())
        paths[AVX512].table = find_avx512(why, why_bytes);
}

const struct bt_kernels *bt_kernels_find(const char *name, char *why, size_t why_bytes) {
    struct path paths[N_NAMES];
    char remark[128] = "";
    list_paths(paths, remark, sizeof remark);
    int is_any = !name || !name[0];
    why[0] = '\0';
    for (int i = N_NAMES - 1; i >= 0; i--) {
        if (is_any ? !paths[i].table : strcmp(name, paths[i].name) != 0)
            continue;
        if (!paths[i].table)
            snprintf(why, why_bytes, "kernels path \"%s\" needs %s, which this CPU lacks",
                     paths[i].name, paths[i].needs);
        else if (i == AVX512)
            snprintf(why, why_bytes, "%s", remark);
        return paths[i].table;
    }
    snprintf(why, why_bytes,
             "kernels path is \"%.32s\", expected portable, fma, avx2, avx2vnni or avx512", name);
    return NULL;
}
