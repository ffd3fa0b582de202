/* The constants of the contract's single-precision exp, in hexadecimal; a change is a new version.
 */
#pragma once

#define EXP_LOW (-87.0f)
#define EXP_HIGH 88.0f
#define EXP_LOG2E 0x1.715476p+0f
/* ln 2 in two parts; the first has few bits, so that n * EXP_LN2_HIGH is exact. */
#define EXP_LN2_HIGH 0x1.63p-1f
#define EXP_LN2_LOW -0x1.bd0106p-13f
/* e^r on [-ln2/2, ln2/2], highest power first (Cephes' expf). */
#define EXP_P0 0x1.a0d2cep-13f
#define EXP_P1 0x1.6e879cp-10f
#define EXP_P2 0x1.11121p-7f
#define EXP_P3 0x1.555382p-5f
#define EXP_P4 0x1.555554p-3f
#define EXP_P5 0x1p-1f
/* Added and taken away again, it rounds to the nearest integer, ties to even. */
#define EXP_ROUNDER 0x1.8p+23f
