/* y = W x for one token and a ternary slab with AVX2: one forward stream of weights, tables in the L1 cache. */
#include "ternary.h"

void tmac_ternary_gemv_avx2(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, float *y)
{
    few_slab(shape, slab, scales, lut, block_begin, block_end, 0, y, 0, 1);
}
