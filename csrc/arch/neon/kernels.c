/* The table of NEON kernels (the AArch64 baseline). */
#include "../../cpu.h"
#include "neon.h"

const tmac_kernels tmac_kernels_neon = {
    .name = "neon",
    .requires = "AArch64 NEON",
    .features = TMAC_CPU_NEON,
    .quantize_row = tmac_quantize_row_neon,
    .lut_build = tmac_lut_build_neon,
    .lut_build_exact = tmac_lut_build_exact_neon,
    .reorder = tmac_reorder_neon,
    .gemv = tmac_lut_gemv_neon,
    .gemm = tmac_lut_gemm_neon,
    /* Ternary matrices become two planes when they are loaded: the exact kernels above, the same integers. */
    .ternary_build = NULL,
    .ternary_gemv = NULL,
    .ternary_gemm = NULL,
};
