/* y = W x for n tokens and a ternary slab with NEON: indices are made once for four tokens. */
#include "ternary.h"

void tmac_ternary_gemm_neon(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy)
{
    (void)scratch;
    for (int32_t token = 0; token < lut->n; token += FEW_AT_ONCE)
        switch (at_most(FEW_AT_ONCE, lut->n - token)) {
        case 1: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 1); break;
        case 2: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 2); break;
        case 3: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 3); break;
        default: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 4);
        }
}
