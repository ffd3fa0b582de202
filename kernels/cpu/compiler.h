/* What the vector kernels ask of the compiler: functions inlined with constant row counts, loops
 * over rows laid out flat, so that sums live in registers. */
#pragma once

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
