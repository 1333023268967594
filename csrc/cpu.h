/* What this CPU and operating system can run, as bundles of features. Knows no kernels. */
#ifndef TMAC_CPU_H
#define TMAC_CPU_H
#include <stdint.h>

/* A bit means: every instruction of the bundle, and registers that the operating system saves. */
enum {
    TMAC_CPU_AVX2 = 1 << 0,     /* AVX2, FMA, F16C */
    TMAC_CPU_AVX512 = 1 << 1,   /* AVX-512 F, BW, VL, VBMI, VNNI, with FMA and F16C */
    TMAC_CPU_AVX_VNNI = 1 << 2, /* vpdpbusd on ymm without AVX-512 */
    TMAC_CPU_NEON = 1 << 3,     /* the AArch64 baseline */
    TMAC_CPU_DOTPROD = 1 << 4   /* AArch64 sdot, udot */
};

uint32_t tmac_cpu_features(void);
#endif
