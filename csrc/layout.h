/* The packed layout: geometry and addresses. Stated once here; tmac_llm/packed/tiles.py states it again and a test
 * compares the two.
 *
 * A matrix is a sequence of row blocks of 64 rows; each block is one forward stream:
 *
 *   block  = segment[0] .. segment[S-1] | row tail          S = k_padded / segment_columns
 *   segment (segment_columns = group_size, or 128 where group_size is 0)
 *          = step[0] .. step[segment_columns/32 - 1] | group tail
 *   step   (32 columns) = vector[0] .. vector[bits-1], each 4 tiles x 64 bytes = 256 bytes
 *   tile   (16 rows x 4 k-groups of 4 columns, 64 bytes): byte r*4 + g belongs to row r of the tile, k-group g
 *
 *   A step has two quads of 16 columns (4 k-groups each): quad 0 = columns 0..15, quad 1 = columns 16..31.
 *   vector 2p     quad 0: low nibble = plane 2p, high nibble = plane 2p+1        p = 0 .. bits/2 - 1
 *   vector 2p + 1 quad 1: low nibble = plane 2p, high nibble = plane 2p+1
 *   last vector of odd bits: plane bits-1, low nibble = quad 0, high nibble = quad 1
 *
 *   nibble: bit j is the plane's bit of column 4*g + j of the quad (first column in the least significant bit).
 *
 *   group tail (group_size > 0): float16 scales[64], then float16 zeros[64] where has_zeros
 *   row tail   (group_size = 0): float32 scales[64], then float32 zeros[64] where has_zeros
 *
 * k is padded to a multiple of 128, m to a multiple of 64; padding has code 0 and scale 0. An instruction set may
 * re-order bytes and nibbles within one step in memory (its `reorder` operation); nothing else moves.
 *
 * TMAC_TERNARY: five weights t = code - 1 of a row in one byte, the same blocks of 64 rows:
 *
 *   block = step[0] .. step[S-1] | float32 scales[64]        S = ceil(k / 30)
 *   step  (30 columns) = group[0] .. group[5], each 64 bytes: byte r belongs to row r, columns 5 g .. 5 g + 4
 *   byte  bit 7: sign of v; bits 0..6: |v|, v = sum over j of 3^j * t[j], first column j = 0; padding is byte 0
 *         |v| <= 121; a byte with |v| of 122 .. 127 stands for v = 0
 *
 * In memory row blocks are cut into slabs, one or more per thread, so that a thread reads one forward stream while the
 * tables of a panel of columns stay in the L1 cache:
 *
 *   matrix = slab[0] .. slab[n-1] | float32 scales[n_blocks * 64] ;  slab = panel[0] .. (the last one shorter)
 *
 * and within a slab an instruction set has one of two orders (its `ternary_reorder`):
 *
 * Five weights in a byte (1.6 bits per weight), where a table of 128 entries is one lookup; steps as in the file:
 *
 *   panel (4 steps) = chunk[0] .. ;  chunk (4 row blocks, the last fewer) = step, in it group, in it block: 64 bytes
 *
 *   Tables: for step s and token t, [6 groups][lo, hi][128] int8: lo[v] + 32 * hi[v] = sum over j of t[j] * x[j],
 *   -16 <= lo <= 15, for v = 0 .. 121, then zeros. At [s][t] of [S][n][6][2][128].
 *
 * Three weights in five bits (1.67 bits per weight), where a table has 16 entries:
 *
 *   panel (10 steps) = row block[0] .. ;  row block = step[0] .. ;  S = ceil(k / 24)
 *   step (24 columns) = vector[0] .. vector[4], each 64 bytes: byte r belongs to row r
 *   triple g of a step: columns 3 g .. 3 g + 2, v = t[0] + 3 t[1] + 9 t[2], |v| <= 13                g = 0 .. 7
 *
 *   vector 0..3, vector i:  bits 0..3 = |v| of triple 2 i        bits 4..7 = |v| of triple 2 i + 1
 *   vector 4:               bit 7 - g = sign of triple g         (of a zero: 0)
 *
 * Tables of planes (the same bytes on every instruction set): for token t and quad Q (16 columns) one 64-byte row of
 * four 16-entry tables, entry v of k-group g = sum over j of (bit j of v ? +x : -x)[16 Q + 4 g + j], at g*16 + v.
 *   TMAC_TABLES_INT8:  [k_padded/16][n][64]     int8, rounded to the segment's scale
 *   TMAC_TABLES_FAST:  the same, 128 added
 *   TMAC_TABLES_EXACT: [k_padded/16][n][2][64]  int8 pair lo, hi with sum = 32*hi + lo, -16 <= lo <= 15
 */
#ifndef TMAC_LAYOUT_H
#define TMAC_LAYOUT_H
#include "tmac.h"

enum {
    TILE_BYTES = 64,
    TILES_PER_BLOCK = 4,
    VECTOR_BYTES = TILE_BYTES * TILES_PER_BLOCK, /* one vector of a step, all four tiles */
    QUAD_COLUMNS = 16,
    TABLE_BYTES = 64, /* tables of one quad, one token */
    EXACT_SPLIT = 32, /* sum = EXACT_SPLIT * hi + lo */

    TRITS = 5, /* ternary weights in a byte */
    MAX_TRITS = 121,
    TERNARY_GROUPS = 6, /* of a step: six entries of a byte table add up within int8 */
    TERNARY_COLUMNS = TRITS * TERNARY_GROUPS,
    TERNARY_STEP_BYTES = TERNARY_GROUPS * TMAC_ROWS_PER_BLOCK,
    TERNARY_TABLE_BYTES = 128, /* lo or hi of one group */
    TERNARY_STEP_TABLES = TERNARY_GROUPS * 2 * TERNARY_TABLE_BYTES,
    TERNARY_PANEL_STEPS = 4,
    TERNARY_CHUNK_BLOCKS = 4,
    TERNARY_SLAB_BLOCKS = 40, /* at most */

    TRIPLES = 8, /* of a step */
    TRIPLE_COLUMNS = 3,
    TRIPLE_STEP_COLUMNS = TRIPLES * TRIPLE_COLUMNS,
    TRIPLE_STEP_BYTES = (TRIPLES / 2 + 1) * TMAC_ROWS_PER_BLOCK,
    TRIPLE_PANEL_STEPS = 10 /* 240 columns of int8 activations: sums within int16 */
};

static inline int32_t tmac_segment_columns(const tmac_shape *s) { return s->group_size ? s->group_size : 128; }
static inline int32_t tmac_padded_k(const tmac_shape *s) { return (s->k + 127) / 128 * 128; }
static inline int32_t tmac_n_blocks(const tmac_shape *s) { return (s->m - 1) / 64 + 1; }
static inline int32_t tmac_n_segments(const tmac_shape *s) { return tmac_padded_k(s) / tmac_segment_columns(s); }
static inline int32_t tmac_steps_per_segment(const tmac_shape *s) { return tmac_segment_columns(s) / 32; }
static inline int32_t tmac_triple_steps(const tmac_shape *s) { return (s->k - 1) / TRIPLE_STEP_COLUMNS + 1; }
static inline int32_t tmac_ternary_steps(const tmac_shape *s) { return (s->k - 1) / TERNARY_COLUMNS + 1; }
static inline int64_t tmac_segment_bytes(const tmac_shape *s)
{
    int64_t tail = s->group_size ? 64 * 2 * (1 + s->has_zeros) : 0;
    return (int64_t)tmac_steps_per_segment(s) * s->bits * VECTOR_BYTES + tail;
}
static inline int64_t tmac_block_bytes(const tmac_shape *s)
{
    int64_t tail = s->group_size ? 0 : 64 * 4 * (1 + s->has_zeros);
    if (s->encoding == TMAC_TERNARY) return tmac_ternary_steps(s) * (int64_t)TERNARY_STEP_BYTES + tail;
    return tmac_n_segments(s) * tmac_segment_bytes(s) + tail;
}

/* Where the 64 bytes of a group lie in memory: offset in a slab of `blocks` row blocks, `block` being one of them. */
static inline int64_t tmac_ternary_offset(int32_t blocks, int32_t steps, int32_t block, int32_t step, int32_t group)
{
    const int32_t panel = step / TERNARY_PANEL_STEPS * TERNARY_PANEL_STEPS;
    const int32_t chunk = block / TERNARY_CHUNK_BLOCKS * TERNARY_CHUNK_BLOCKS;
    const int32_t panel_steps = steps - panel < TERNARY_PANEL_STEPS ? steps - panel : TERNARY_PANEL_STEPS;
    const int32_t chunk_blocks = blocks - chunk < TERNARY_CHUNK_BLOCKS ? blocks - chunk : TERNARY_CHUNK_BLOCKS;
    const int64_t before = ((int64_t)panel * blocks + (int64_t)chunk * panel_steps) * TERNARY_GROUPS;
    return (before + ((step - panel) * TERNARY_GROUPS + group) * chunk_blocks + block - chunk) * TMAC_ROWS_PER_BLOCK;
}

/* Where a step of triples lies in memory: offset in a slab of `blocks` row blocks. */
static inline int64_t tmac_triple_offset(int32_t blocks, int32_t steps, int32_t block, int32_t step)
{
    const int32_t panel = step / TRIPLE_PANEL_STEPS * TRIPLE_PANEL_STEPS;
    const int32_t panel_steps = steps - panel < TRIPLE_PANEL_STEPS ? steps - panel : TRIPLE_PANEL_STEPS;
    return ((int64_t)panel * blocks + (int64_t)block * panel_steps + step - panel) * TRIPLE_STEP_BYTES;
}
#endif
