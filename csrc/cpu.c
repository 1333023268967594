#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0: which register files the operating system saves (bits 1, 2: xmm, ymm; bits 5, 6, 7: opmask, zmm). */
static uint64_t saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int all(uint32_t reg, uint32_t bits) { return (reg & bits) == bits; }

uint32_t tmac_cpu_features(void)
{
    enum { YMM_STATE = 0x06, ZMM_STATE = 0xe6 };
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, f16c = 1u << 29;                     /* leaf 1, ecx */
    const uint32_t avx2 = 1u << 5, avx512f = 1u << 16, avx512bw = 1u << 30, avx512vl = 1u << 31; /* leaf 7, ebx */
    const uint32_t avx512vbmi = 1u << 1, avx512vnni = 1u << 11;                             /* leaf 7, ecx */
    const uint32_t avx_vnni = 1u << 4;                                                      /* leaf 7.1, eax */
    uint32_t a, b, c, d, features = 0;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, osxsave | fma | f16c)) return 0;
    const uint64_t saved = saved_registers();
    if ((saved & YMM_STATE) != YMM_STATE || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all(b, avx2)) return 0;
    features |= TMAC_CPU_AVX2;
    if ((saved & ZMM_STATE) == ZMM_STATE && all(b, avx512f | avx512bw | avx512vl) && all(c, avx512vbmi | avx512vnni))
        features |= TMAC_CPU_AVX512;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && all(a, avx_vnni)) features |= TMAC_CPU_AVX_VNNI;
    return features;
}

#elif defined(__aarch64__)
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

uint32_t tmac_cpu_features(void)
{
    uint32_t features = TMAC_CPU_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) features |= TMAC_CPU_DOTPROD;
#endif
    return features;
}

#else
uint32_t tmac_cpu_features(void) { return 0; }
#endif
