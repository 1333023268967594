/* The table of NEON kernels (the AArch64 baseline). */
#include "../../cpu.h"
#include "ternary.h"

const tmac_kernels tmac_kernels_neon = {
    .name = "neon",
    .requires = "AArch64 NEON",
    .features = TMAC_CPU_NEON,
    .fast_aggregation = 1,
    .quantize_row = tmac_quantize_row_neon,
    .lut_build = tmac_lut_build_neon,
    .lut_build_exact = tmac_lut_build_exact_neon,
    .reorder = tmac_reorder_neon,
    .gemv = tmac_lut_gemv_neon,
    .gemm = tmac_lut_gemm_neon,
    .ternary = {TRIPLE_STEP_COLUMNS, TRIPLE_STEP_BYTES, TRIPLE_STEP_TABLES, 0},
    .ternary_reorder = tmac_ternary_reorder_triples_scalar,
    .ternary_build = tmac_ternary_build_neon,
    .ternary_gemv = tmac_ternary_gemv_neon,
    .ternary_gemm = tmac_ternary_gemm_neon,
};
