/* The AVX2 table. */
#include "kernels/cpu/avx2.h"

#include "kernels/cpu/pack.h"
#include "kernels/cpu/portable.h"

const struct bt_kernels bt_avx2_kernels = {
    .name = "avx2",
    BT_PACK_ENTRIES,
    .prepare = bt_fma_prepare,
    .linear = bt_fma_linear,
    .rmsnorm = bt_fma_rmsnorm,
    .rope = bt_fma_rope,
    .silu_mul = bt_fma_silu_mul,
    .add = bt_fma_add,
    .attention = bt_fma_attention,
    .all_finite = bt_fma_all_finite,
    .argmax = bt_fma_argmax,
    .max = bt_fma_max,
    .exp = bt_fma_exp,
    .scale = bt_fma_scale,
    .divide = bt_fma_divide,
    .to_bf16 = bt_fma_to_bf16,
};
