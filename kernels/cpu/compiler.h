/* What the vector kernels ask of the compiler: functions inlined with constant row counts, loops
 * over rows laid out flat, so that sums live in registers. */
#pragma once

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* With a check at each access, unrolled, one file took four minutes to compile. */
#ifdef __SANITIZE_ADDRESS__
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* The vector x is computed here and stands in a register. GCC puts a chain of sums off until its
 * last one is used; by then what it adds up has long been spilled. */
#define COMPUTE_NOW(x) __asm__("" : "+x"(x))
