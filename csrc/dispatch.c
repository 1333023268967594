#include "dispatch.h"

#include <string.h>

#include "cpu.h"

/* The one ordered table, best first. Each entry lives in arch/<name>/kernels.c. */
static const tmac_kernels *const isas[] = {
#ifdef TMAC_HAVE_AVX512
    &tmac_kernels_avx512,
#endif
#ifdef TMAC_HAVE_AVX2
    &tmac_kernels_avx2,
#endif
#ifdef TMAC_HAVE_NEON
    &tmac_kernels_neon,
#endif
    &tmac_kernels_scalar,
};

enum { N_ISAS = sizeof isas / sizeof isas[0] };

const tmac_kernels *tmac_isa(int i) { return i >= 0 && i < N_ISAS ? isas[i] : NULL; }

const tmac_kernels *tmac_isa_find(const char *name)
{
    for (int i = 0; i < N_ISAS; i++)
        if (tmac_isa_supported(i) && (!name || !strcmp(name, isas[i]->name))) return isas[i];
    return NULL;
}

const char *tmac_isa_name(int i) { return tmac_isa(i) ? isas[i]->name : NULL; }

int tmac_isa_supported(int i)
{
    return tmac_isa(i) && (isas[i]->features & tmac_cpu_features()) == isas[i]->features;
}

const char *tmac_isa_requires(int i) { return tmac_isa(i) ? isas[i]->requires : NULL; }
