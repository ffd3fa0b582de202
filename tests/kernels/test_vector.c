/* Norms, rotation, activation, logits helpers and tables: equal bits on all paths, and near libm.
 */
#include <math.h>

#include "tests/kernels/paths.h"

enum { N_MAX = 700 };
static const uint32_t SIZES[] = {1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 576, 577, 688};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0] };

/* Runs every element-wise entry on one input; outs is [8][N_MAX]. */
static void run_all(const struct bt_kernels *k, const float *x, const float *w, uint32_t n,
                    float (*outs)[N_MAX]) {
    uint16_t half[N_MAX];
    memset(outs, 0, sizeof(float[8][N_MAX]));
    k->rmsnorm(x, w, n, 1e-5f, outs[0]);
    k->silu_mul(x, w, n, outs[1]);
    memcpy(outs[2], x, n * 4);
    k->add(outs[2], w, n);
    k->exp(x, 0.25f, n, outs[3]);
    memcpy(outs[4], x, n * 4);
    k->scale(outs[4], n, 0.3f);
    memcpy(outs[5], x, n * 4);
    k->divide(outs[5], n, 0.7f);
    k->to_bf16(x, n, half);
    for (uint32_t i = 0; i < n; i++)
        outs[6][i] = (float)half[i];
    memcpy(outs[7], x, n * 4);
    uint32_t n_rot = n / 2 & ~1u;
    k->rope(outs[7], 2, n / 2, n_rot, w, w + n_rot / 2, n % 2 == 0);
}

static void compare_all(const struct bt_kernels *k, const float *x, const float *w, uint32_t n) {
    static const char *const NAMES[] = {"rmsnorm", "silu_mul", "add",     "exp",
                                        "scale",   "divide",   "to_bf16", "rope"};
    static float want[8][N_MAX], got[8][N_MAX];
    run_all(portable_path(), x, w, n, want);
    run_all(k, x, w, n, got);
    for (int i = 0; i < 8; i++)
        assert_same(NAMES[i], k->name, want[i], got[i], N_MAX);
    const struct bt_kernels *portable = portable_path();
    assert_int_equal(k->all_finite(x, n), portable->all_finite(x, n));
    if (portable->all_finite(x, n)) {
        float a = portable->max(x, n), b = k->max(x, n);
        assert_same("max", k->name, &a, &b, 1);
        assert_int_equal(k->argmax(x, n), portable->argmax(x, n));
    }
}

static void test_paths_agree(void **state) {
    (void)state;
    float x[N_MAX], w[N_MAX];
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int i = 0; k && i < N_SIZES; i++)
            for (int round = 0; round < 30; round++) {
                fill(x, N_MAX, round % 3 == 0 ? 100.0f : 2.0f);
                fill(w, N_MAX, 1.0f);
                for (uint32_t j = 0; round >= 10 && j < SIZES[i]; j++) {
                    if (random_u64() % 4 == 0)
                        x[j] = corner_f32(round < 20);
                    if (random_u64() % 8 == 0)
                        w[j] = corner_f32(round < 20);
                }
                if (round == 5) /* many equal maxima */
                    for (uint32_t j = 0; j < SIZES[i]; j++)
                        x[j] = (float)(j % 5);
                compare_all(k, x, w, SIZES[i]);
            }
    }
}

/* Both orders of the rotation, all of a head or part of it. */
static void test_rope_agrees(void **state) {
    (void)state;
    float table[2][64], want[5 * 128], got[5 * 128];
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (int round = 0; k && round < 40; round++) {
            static const uint32_t ROTS[] = {128, 64, 32, 16, 24};
            fill(table[0], 64, 1.0f);
            fill(table[1], 64, 1.0f);
            fill(want, 5 * 128, 50.0f);
            memcpy(got, want, sizeof got);
            uint32_t n_rot = ROTS[round % 5];
            portable_path()->rope(want, 5, 128, n_rot, table[0], table[1], round % 2);
            k->rope(got, 5, 128, n_rot, table[0], table[1], round % 2);
            assert_same("rope", k->name, want, got, 5 * 128);
        }
    }
}

/* Every 997th bit pattern of the whole range, on every path. */
static void test_exp_over_the_range(void **state) {
    (void)state;
    enum { N = 4096 };
    static float x[N], want[N], got[N];
    portable_path();
    for (int p = 0; p < N_PATHS; p++) {
        const struct bt_kernels *k = path_or_note(PATHS[p]);
        for (uint64_t u = 0; k && u < 1ULL << 32;) {
            for (int i = 0; i < N; i++, u += 997) {
                uint32_t bits = (uint32_t)u;
                memcpy(&x[i], &bits, 4);
            }
            portable_path()->exp(x, 0.0f, N, want);
            k->exp(x, 0.0f, N, got);
            assert_same("exp", k->name, want, got, N);
        }
    }
    for (double v = -87.0; v <= 88.0; v += 0.00137) {
        float in = (float)v, out;
        portable_path()->exp(&in, 0.0f, 1, &out);
        assert_true(fabs((double)out / exp((double)in) - 1.0) < 2.5e-7);
    }
}

static void test_double_functions_are_near_libm(void **state) {
    (void)state;
    for (double x = -600; x < 600; x += 0.377)
        assert_true(fabs(bt_kernels_exp(x) / exp(x) - 1.0) < 1e-15 * 4);
    for (double x = 1e-30; x < 1e30; x *= 1.37)
        assert_true(fabs(bt_kernels_log(x) - log(x)) <= 3e-16 * (1.0 + fabs(log(x))));
    assert_true(isinf(bt_kernels_log(0.0)) && isnan(bt_kernels_log(-1.0)));
    assert_true(isnan(bt_kernels_exp((double)NAN)));
}

/* Tables against libm: within one rounding to f32 of the true value, also far out. */
static void test_rope_table_is_near_libm(void **state) {
    (void)state;
    static const uint32_t POSITIONS[] = {0, 1, 17, 4095, 131071};
    float factors[32], c[32], s[32];
    for (int i = 0; i < 32; i++)
        factors[i] = 1.0f + (float)i;
    for (int with = 0; with < 2; with++)
        for (int i = 0; i < 5; i++) {
            struct bt_rope_params params = {100000.0, with ? 0.25 : 1.0, 64, with ? factors : NULL};
            bt_kernels_rope_table(&params, POSITIONS[i], 1, c, s);
            for (int j = 0; j < 32; j++) {
                double angle = POSITIONS[i] * params.scale * pow(100000.0, -2.0 * j / 64.0) /
                               (with ? (double)factors[j] : 1.0);
                assert_true(fabs((double)c[j] - cos(angle)) < 6.1e-8);
                assert_true(fabs((double)s[j] - sin(angle)) < 6.1e-8);
            }
        }
}

static void test_rmsnorm_and_silu_are_near_double(void **state) {
    (void)state;
    float x[576], w[576], y[576];
    const struct bt_kernels *k = portable_path();
    fill(x, 576, 20.0f);
    fill(w, 576, 1.0f);
    double sum = 0;
    for (int i = 0; i < 576; i++)
        sum += (double)x[i] * (double)x[i];
    k->rmsnorm(x, w, 576, 1e-5f, y);
    for (int i = 0; i < 576; i++) {
        double want = (double)x[i] / sqrt(sum / 576 + 1e-5) * (double)w[i];
        assert_true(fabs((double)y[i] - want) <= 1e-6 * fabs(want));
    }
    k->silu_mul(x, w, 576, y);
    for (int i = 0; i < 576; i++) {
        double want = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
        assert_true(fabs((double)y[i] - want) <= 1e-6 * fabs(want));
    }
}

static void test_names_are_checked(void **state) {
    (void)state;
    char why[256];
    assert_null(bt_kernels_find("mmx", why, sizeof why));
    assert_string_equal(
        why, "kernels path is \"mmx\", expected portable, fma, avx2, avx2vnni or avx512");
    const struct bt_kernels *k = bt_kernels_find(NULL, why, sizeof why);
    assert_non_null(k);
    printf("the fastest path here: %s %s\n", k->name, why);
    assert_non_null(bt_kernels_find("", why, sizeof why));
    assert_string_equal(bt_kernels_find("portable", why, sizeof why)->name, "portable");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths_agree),
        cmocka_unit_test(test_rope_agrees),
        cmocka_unit_test(test_exp_over_the_range),
        cmocka_unit_test(test_double_functions_are_near_libm),
        cmocka_unit_test(test_rope_table_is_near_libm),
        cmocka_unit_test(test_rmsnorm_and_silu_are_near_double),
        cmocka_unit_test(test_names_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
