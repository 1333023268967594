/* One step (32 columns) from the file's order (layout.h) into the order that vpshufb wants.
 *
 *   step = tile[0] .. tile[3] ; tile = vector[0] .. vector[bits-1] ; vector = quad[0], quad[1], 32 bytes each:
 *     vectors 2p, 2p+1:  planes 2p and 2p+1 of octet 0 and of octet 1 (8 rows x 2 planes x 4 k-groups);
 *                        octet 0 has rows 0-3 and 8-11 of the tile, octet 1 rows 4-7 and 12-15
 *     last of odd bits:  its plane of the whole tile (16 rows x 4 k-groups)
 *
 *   octet byte:      0        1        2        3     ..    15   |  16       17    ..   31
 *     row, plane   0, 2p   0, 2p+1   1, 2p   1, 2p+1  .. 11,2p+1 | 0, 2p   0,2p+1 .. 11,2p+1   (octet 0)
 *     low nibble   k-group 0 ..                                  | k-group 1 ..
 *     high nibble  k-group 2 ..                                  | k-group 3 ..
 *   last plane:   lane i holds the rows of octet 0, then of octet 1; low nibble k-group i, high nibble k-group 2 + i */
#include "avx2.h"

/* The 8 rows of octet o. in: a tile of the file, byte r*4 + g. */
static inline __m256i load_octet(const uint8_t *in, int o)
{
    return _mm256_loadu2_m128i((const __m128i *)in + 2 + o, (const __m128i *)in + o);
}

/* 8 rows x 4 k-groups (byte r*4 + g) to lane i = k-group i, rows 0..7, then k-group 2 + i, rows 0..7. */
static inline __m256i gather_groups(__m256i x)
{
    const __m256i by_group = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x, by_group), _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
}

/* Indices in the low nibbles of a and b: a stays, b moves into the high nibbles. */
static inline __m256i join_nibbles(__m256i a, __m256i b) { return _mm256_or_si256(a, _mm256_slli_epi16(b, 4)); }

static void reorder_pair(const uint8_t *in, uint8_t *out, int o)
{
    const __m256i x = load_octet(in, o);
    const __m256i even = gather_groups(low_index(x)), odd = gather_groups(high_index(x));
    _mm256_storeu_si256((__m256i *)out, join_nibbles(_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd)));
}

/* One tile of the vector that holds quad 0 in its low nibbles and quad 1 in its high ones. */
static void reorder_last(const uint8_t *in, uint8_t *out, int quad)
{
    __m256i rows[OCTETS_PER_TILE];
    for (int o = 0; o < OCTETS_PER_TILE; o++) {
        const __m256i x = load_octet(in, o);
        rows[o] = gather_groups(quad ? high_index(x) : low_index(x));
    }
    _mm256_storeu_si256((__m256i *)out, join_nibbles(_mm256_unpacklo_epi64(rows[0], rows[1]),
                                                     _mm256_unpackhi_epi64(rows[0], rows[1])));
}

void tmac_reorder_avx2(int32_t bits, const uint8_t *in, uint8_t *out)
{
    for (int32_t tile = 0; tile < TILES_PER_BLOCK; tile++)
        for (int32_t v = 0; v < bits; v++)
            for (int32_t quad = 0; quad < 2; quad++, out += INDEX_BYTES) {
                const uint8_t *from = in + tile * TILE_BYTES;
                if (bits % 2 && v == bits - 1) reorder_last(from + v * VECTOR_BYTES, out, quad);
                else reorder_pair(from + (v / 2 * 2 + quad) * VECTOR_BYTES, out, v % 2);
            }
}
