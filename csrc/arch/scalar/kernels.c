/* The table of scalar kernels: any CPU runs them, and every other instruction set must return the same bits. */
#include "scalar.h"

const tmac_kernels tmac_kernels_scalar = {
    .name = "scalar",
    .requires = "any CPU",
    .features = 0,
    .fast_aggregation = 1,
    .quantize_row = tmac_quantize_row_scalar,
    .lut_build = tmac_lut_build_scalar,
    .lut_build_exact = tmac_lut_build_exact_scalar,
    .reorder = NULL,
    .gemv = tmac_lut_gemv_scalar,
    .gemm = tmac_lut_gemm_scalar,
    .ternary = {TERNARY_COLUMNS, TERNARY_STEP_BYTES, TERNARY_STEP_TABLES, 0},
    .ternary_reorder = tmac_ternary_reorder_scalar,
    .ternary_build = tmac_ternary_build_scalar,
    .ternary_gemv = tmac_ternary_gemv_scalar,
    .ternary_gemm = tmac_ternary_gemm_scalar,
};
