/* One step (32 columns) from the file's order (layout.h) into the order that tbl and sadalp want.
 *
 *   step = plane[0] .. plane[bits-1] ; plane = quad[0], quad[1] ; quad = octet[0] .. octet[7], 16 bytes each
 *
 *   octet byte:       0           1           2           3       ..      14          15
 *     row             0           0           1           1       ..       7           7
 *     low nibble   k-group 0   k-group 1   k-group 0   k-group 1  ..   k-group 0   k-group 1
 *     high nibble  k-group 2   k-group 3   k-group 2   k-group 3  ..   k-group 2   k-group 3 */
#include "neon.h"

/* One octet, plane and quad. in: 8 rows x 4 k-groups, byte r*4 + g, the index in the low or the high nibble. */
static void reorder_octet(const uint8_t *in, int high, uint8_t *out)
{
    uint8x16_t first = vld1q_u8(in), second = vld1q_u8(in + 16);
    if (high) first = vshrq_n_u8(first, 4), second = vshrq_n_u8(second, 4);
    const uint16x8_t a = vreinterpretq_u16_u8(first), b = vreinterpretq_u16_u8(second);
    const uint8x16_t groups_01 = vreinterpretq_u8_u16(vuzp1q_u16(a, b));
    const uint8x16_t groups_23 = vreinterpretq_u8_u16(vuzp2q_u16(a, b));
    vst1q_u8(out, vsliq_n_u8(vandq_u8(groups_01, vdupq_n_u8(0x0f)), groups_23, 4));
}

void tmac_reorder_neon(int32_t bits, const uint8_t *in, uint8_t *out)
{
    for (int32_t plane = 0; plane < bits; plane++)
        for (int32_t quad = 0; quad < 2; quad++) {
            const int shared = plane == bits - 1 && bits % 2; /* the last plane of odd bits: one vector, both quads */
            const uint8_t *vector = in + (shared ? plane : plane / 2 * 2 + quad) * VECTOR_BYTES;
            const int high = shared ? quad : plane % 2;
            for (int32_t o = 0; o < OCTETS; o++, out += INDEX_BYTES)
                reorder_octet(vector + o * 2 * INDEX_BYTES, high, out);
        }
}
