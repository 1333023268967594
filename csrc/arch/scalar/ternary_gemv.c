/* y = W x for one token and a ternary slab: the product of several tokens. */
#include "scalar.h"

void tmac_ternary_gemv_scalar(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y)
{
    tmac_ternary_gemm_scalar(shape, slab, scales, lut, block_begin, block_end, NULL, y, 0);
}
