/* exp, log, sin, cos in double and the rotation tables made of them, in plain arithmetic: no libm,
 * no FMA, so that every machine and compiler gives the same bits. */
#include <string.h>

#include "kernels/kernels.h"

#define ROUNDER 0x1.8p+52
/* ln 2 and pi / 2 in parts; a small integer times a first part is exact (values as in fdlibm). */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define PIO2_1 1.57079632673412561417e+00
#define PIO2_2 6.07710050630396597660e-11
#define PIO2_2T 2.02226624879595063154e-21

static double power_of_two(int64_t n) {
    uint64_t u = (uint64_t)(n + 1023) << 52;
    double d;
    memcpy(&d, &u, 8);
    return d;
}

double bt_kernels_exp(double x) {
    if (x < -700.0)
        x = -700.0;
    if (x > 700.0)
        x = 700.0;
    double n = x * 1.44269504088896338700e+00 + ROUNDER - ROUNDER;
    double r = (x - n * LN2_HIGH) - n * LN2_LOW;
    double sum = 1.0;
    for (int i = 14; i >= 1; i--) /* Horner's form of the series; r^15 / 15! is below 2^-60 */
        sum = 1.0 + sum * r / (double)i;
    return x == x ? sum * power_of_two((int64_t)n) : x;
}

double bt_kernels_log(double x) {
    if (!(x > 0.0))
        return x == 0.0 ? -__builtin_inf() : __builtin_nan("");
    if (x > 0x1.fffffffffffffp+1023)
        return x;
    uint64_t u;
    memcpy(&u, &x, 8);
    int64_t exponent = (int64_t)(u >> 52) - 1023;
    u = (u & 0xfffffffffffffULL) | 0x3ff0000000000000ULL;
    double m;
    memcpy(&m, &u, 8);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent++;
    }
    /* log m = 2 atanh z; |z| < 0.172, z^2 < 0.0295, 12 terms reach 2^-60. */
    double z = (m - 1.0) / (m + 1.0), z2 = z * z, sum = 0.0;
    for (int i = 12; i >= 1; i--)
        sum = (sum + 1.0 / (double)(2 * i + 1)) * z2;
    double tail = 2.0 * z * sum + (double)exponent * LN2_LOW;
    return (double)exponent * LN2_HIGH + (2.0 * z + tail);
}

/* sin and cos of |x| up to about 1.6 million: beyond, n * PIO2_1 is no longer exact. */
static void sin_cos(double x, double *sin_out, double *cos_out) {
    double n = x * 6.36619772367581382433e-01 + ROUNDER - ROUNDER;
    double r = ((x - n * PIO2_1) - n * PIO2_2) - n * PIO2_2T, r2 = r * r;
    double s = 1.0, c = 1.0;
    for (int i = 9; i >= 1; i--) {
        s = 1.0 - s * r2 / (double)(2 * i * (2 * i + 1));
        c = 1.0 - c * r2 / (double)((2 * i - 1) * 2 * i);
    }
    s *= r;
    switch ((int64_t)n & 3) {
    case 0:
        *sin_out = s, *cos_out = c;
        break;
    case 1:
        *sin_out = c, *cos_out = -s;
        break;
    case 2:
        *sin_out = -s, *cos_out = -c;
        break;
    default:
        *sin_out = -c, *cos_out = s;
        break;
    }
}

void bt_kernels_rope_table(const struct bt_rope_params *params, uint32_t first, uint32_t n,
                           float *cos_out, float *sin_out) {
    uint32_t half = params->n_rot / 2;
    double log_base = bt_kernels_log(params->base);
    for (uint32_t i = 0; i < half; i++) {
        double power = -(double)(2 * i) / (double)params->n_rot;
        double frequency = bt_kernels_exp(power * log_base);
        if (params->freq_factors)
            frequency /= (double)params->freq_factors[i];
        for (uint32_t p = 0; p < n; p++) {
            double s, c;
            sin_cos((double)(first + p) * params->scale * frequency, &s, &c);
            cos_out[(size_t)p * half + i] = (float)c;
            sin_out[(size_t)p * half + i] = (float)s;
        }
    }
}
