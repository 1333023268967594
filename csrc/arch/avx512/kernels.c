/* The table of AVX-512 kernels (F, BW, VL, VBMI, VNNI). */
#include "../../cpu.h"
#include "ternary_groups.h"

const tmac_kernels tmac_kernels_avx512 = {
    .name = "avx512",
    .requires = "AVX-512 F, BW, VL, VBMI, VNNI",
    .features = TMAC_CPU_AVX512,
    .quantize_row = tmac_quantize_row_avx512,
    .lut_build = tmac_lut_build_avx512,
    .lut_build_exact = tmac_lut_build_exact_avx512,
    .reorder = NULL,
    .gemv = tmac_lut_gemv_avx512,
    .gemm = tmac_lut_gemm_avx512,
    .ternary = {TERNARY_COLUMNS, TERNARY_STEP_BYTES, TERNARY_STEP_TABLES, TERNARY_SCRATCH_BYTES},
    .ternary_reorder = tmac_ternary_reorder_scalar,
    .ternary_build = tmac_ternary_build_avx512,
    .ternary_gemv = tmac_ternary_gemv_avx512,
    .ternary_gemm = tmac_ternary_gemm_avx512,
};
