/* The table of AVX2 kernels (with FMA and F16C). */
#include "../../cpu.h"
#include "ternary.h"

const tmac_kernels tmac_kernels_avx2 = {
    .name = "avx2",
    .requires = "AVX2, FMA, F16C",
    .features = TMAC_CPU_AVX2,
    .fast_aggregation = 1,
    .quantize_row = tmac_quantize_row_avx2,
    .lut_build = tmac_lut_build_avx2,
    .lut_build_exact = tmac_lut_build_exact_avx2,
    .reorder = tmac_reorder_avx2,
    .gemv = tmac_lut_gemv_avx2,
    .gemm = tmac_lut_gemm_avx2,
    .ternary = {TRIPLE_STEP_COLUMNS, TRIPLE_STEP_BYTES, TRIPLE_STEP_TABLES, TERNARY_SCRATCH_BYTES},
    .ternary_reorder = tmac_ternary_reorder_triples_scalar,
    .ternary_build = tmac_ternary_build_avx2,
    .ternary_gemv = tmac_ternary_gemv_avx2,
    .ternary_gemm = tmac_ternary_gemm_avx2,
};
