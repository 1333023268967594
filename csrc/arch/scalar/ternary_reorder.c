/* Ternary codes from the file's order into the two orders of memory that layout.h draws, in plain C for compilers to
 * vectorise: loading costs no time worth a kernel of each instruction set. */
#include "scalar.h"

enum {
    ROWS = TMAC_ROWS_PER_BLOCK,
    UNIT_COLUMNS = 120, /* whole steps of both orders */
    UNIT_BYTES = UNIT_COLUMNS / TRITS,
    UNIT_TRIPLES = UNIT_COLUMNS / TRIPLE_COLUMNS,
    UNIT_STEPS = UNIT_COLUMNS / TRIPLE_STEP_COLUMNS
};

void tmac_ternary_reorder_scalar(const tmac_shape *shape, const uint8_t *blocks, int32_t n_blocks, uint8_t *slab)
{
    const int32_t steps = tmac_ternary_steps(shape);
    for (int32_t b = 0; b < n_blocks; b++) {
        const uint8_t *in = blocks + b * tmac_block_bytes(shape);
        for (int32_t s = 0; s < steps; s++)
            for (int32_t g = 0; g < TERNARY_GROUPS; g++, in += ROWS)
                memcpy(slab + tmac_ternary_offset(n_blocks, steps, b, s, g), in, ROWS);
    }
}

/* round(v / divisor) for odd divisors and |v| <= 121; what is left has the trits below, at most divisor / 2. */
static inline int16_t rounded(int16_t v, int16_t divisor)
{
    return (int16_t)((v * (32768 / divisor + 1) + 16384) >> 15);
}

static inline int16_t value_of(uint8_t byte)
{
    const int16_t magnitude = (byte & 0x7f) > MAX_TRITS ? 0 : byte & 0x7f;
    return (int16_t)(byte & 0x80 ? -magnitude : magnitude);
}

/* 15 columns: three bytes a, b, c of each row to five triples a0 a1 a2, a3 a4 b0, b1 b2 b3, b4 c0 c1, c2 c3 c4. */
static void split_bytes(const uint8_t *restrict in, int8_t *restrict out)
{
    for (int32_t r = 0; r < ROWS; r++) {
        const int16_t a = value_of(in[r]), b = value_of(in[ROWS + r]), c = value_of(in[2 * ROWS + r]);
        const int16_t a34 = rounded(a, 27), b4 = rounded(b, 81), b0123 = (int16_t)(b - 81 * b4);
        const int16_t b123 = rounded(b0123, 3), c234 = rounded(c, 9);
        out[r] = (int8_t)(a - 27 * a34);
        out[ROWS + r] = (int8_t)(a34 + 9 * (b0123 - 3 * b123));
        out[2 * ROWS + r] = (int8_t)b123;
        out[3 * ROWS + r] = (int8_t)(b4 + 3 * (c - 9 * c234));
        out[4 * ROWS + r] = (int8_t)c234;
    }
}

static inline uint8_t magnitude(int8_t v) { return (uint8_t)(v < 0 ? -v : v); }

/* The triples of a step to its vectors. */
static void join_triples(const int8_t *restrict in, uint8_t *restrict out)
{
    for (int32_t g = 0; g < TRIPLES; g += 2, out += ROWS)
        for (int32_t r = 0; r < ROWS; r++)
            out[r] = (uint8_t)(magnitude(in[g * ROWS + r]) | magnitude(in[(g + 1) * ROWS + r]) << 4);
    for (int32_t r = 0; r < ROWS; r++) {
        uint8_t signs = 0;
        for (int32_t g = 0; g < TRIPLES; g++) signs = (uint8_t)(signs << 1 | (in[g * ROWS + r] < 0));
        out[r] = signs;
    }
}

void tmac_ternary_reorder_triples_scalar(const tmac_shape *shape, const uint8_t *blocks, int32_t n_blocks,
                                         uint8_t *slab)
{
    const int32_t steps = tmac_triple_steps(shape), bytes = tmac_ternary_steps(shape) * TERNARY_GROUPS;
    for (int32_t b = 0; b < n_blocks; b++) {
        const uint8_t *in = blocks + b * tmac_block_bytes(shape);
        for (int32_t s = 0, at = 0; s < steps; s += UNIT_STEPS, at += UNIT_BYTES) {
            const int32_t there = bytes - at < UNIT_BYTES ? bytes - at : UNIT_BYTES;
            uint8_t codes[UNIT_BYTES * ROWS] = {0};
            int8_t triples[UNIT_TRIPLES * ROWS];
            memcpy(codes, in + at * ROWS, (size_t)(there * ROWS));
            for (int32_t i = 0; i < UNIT_BYTES / 3; i++) split_bytes(codes + 3 * i * ROWS, triples + 5 * i * ROWS);
            for (int32_t i = 0; i < UNIT_STEPS && s + i < steps; i++)
                join_triples(triples + TRIPLES * i * ROWS, slab + tmac_triple_offset(n_blocks, steps, b, s + i));
        }
    }
}
