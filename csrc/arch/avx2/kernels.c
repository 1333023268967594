/* The table of AVX2 kernels (with FMA and F16C). */
#include "../../cpu.h"
#include "avx2.h"

const tmac_kernels tmac_kernels_avx2 = {
    .name = "avx2",
    .requires = "AVX2, FMA, F16C",
    .features = TMAC_CPU_AVX2,
    .quantize_row = tmac_quantize_row_avx2,
    .lut_build = tmac_lut_build_avx2,
    .lut_build_exact = tmac_lut_build_exact_avx2,
    .reorder = tmac_reorder_avx2,
    .gemv = tmac_lut_gemv_avx2,
    .gemm = tmac_lut_gemm_avx2,
    /* Ternary matrices become two planes when they are loaded: the exact kernels above, the same integers. */
    .ternary_build = NULL,
    .ternary_gemv = NULL,
    .ternary_gemm = NULL,
};
