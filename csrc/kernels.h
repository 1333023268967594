/* The contract between api.c (threads, memory, panels) and the kernels of each instruction set.
 *
 * Kernels are pure: no allocation, globals, threads or dispatch. Pointers do not alias. `weights` is 64-byte aligned,
 * tables are 64-byte aligned, activations and y have their natural alignment only. Integers accumulate exactly;
 * floats enter once per segment in the order given here with explicit fused multiply-adds, so that every instruction
 * set returns the same bits.
 *
 * With segment s, acc = sum over planes p of 2^p * sum of looked-up entries (int32), h = half_scales[s][t]
 * (half the table scale; TMAC_TABLES_EXACT: 0.5), S = sums[s][t], and c = (2^bits - 1)/2 - zero:
 *   group_size > 0:  y = fma(scale, fma((float)acc, h, c * S), y)             from y = 0, s = 0, 1, ..
 *   group_size = 0:  T = fma((float)acc, h, T) from T = 0 ; at the end y = scale * fma(c, totals[t], T)
 *   TMAC_TABLES_EXACT finally multiplies: y = y * token_scales[t].
 * TMAC_TABLES_FAST (after T-MAC, arXiv 2407.00088, section 4): acc is estimated by rounding averages, avg(a, b) =
 * (a + b + 1) >> 1. Of the entries e[0..7] that a plane looks up in the 8 k-groups of a step, A = avg(avg(e[0], e[4]),
 * avg(e[2], e[6])) and B = avg(avg(e[1], e[5]), avg(e[3], e[7])). Each of the two levels rounds up by a quarter on
 * average, so acc = sum over planes p of 2^p * sum over steps of (4 * (A + B) - 4).
 * Ternary matrices (always exact): acc = sum of t * x (int32), y = (scale * (float)acc) * token_scales[t]. These are
 * the bits of two planes with exact tables, whose T and totals are exact too (k <= 43690: T < 2^23 in halves).
 * int32 bounds: |entry| <= 127 in int8 tables, <= 508 = 4*127 exact; sum over 32 k-groups and planes <= 508*32*255 < 2^23,
 * so (float)acc is exact. */
#ifndef TMAC_KERNELS_H
#define TMAC_KERNELS_H
#include "layout.h"

/* Below it 127 / a would overflow; such a segment (activations under 1e-36) gets tables of zeros. */
#define TMAC_TABLE_AMAX_MIN 0x1p-119f

/* A gemv gets a multiple of so many row blocks where it can: it may read them side by side. */
enum { GEMV_BLOCKS = 4 };

/* Tables of n tokens, made by lut_build / lut_build_exact. */
typedef struct {
    int32_t n;               /* tokens */
    int32_t segment_columns; /* columns per scale: 32, 64 or 128 */
    int32_t exact;           /* TMAC_TABLES_EXACT */
    int8_t *tables;          /* [k_padded/16][n][1 + exact][64]; ternary: as the instruction set wants them */
    float *half_scales;      /* [n_segments][n] half the table scale; 0.5 where exact */
    float *sums;             /* [n_segments][n] sum of the segment's activations (exact: of the int8 ones) */
    float *totals;           /* [n] sum of `sums` over the segments, in order */
    float *token_scales;     /* [n] exact: what one int8 unit is worth; 1 otherwise */
    int32_t fast;            /* TMAC_TABLES_FAST: entries are stored as unsigned bytes, 128 added */
    int32_t prefetch;        /* tmac_tuning: bytes ahead that gemv asks for, if it asks; 0: its own choice, -1: none */
} tmac_lut;

/* How an instruction set holds ternary matrices in memory (layout.h), and what it makes of activations. */
typedef struct {
    int32_t step_columns;
    int32_t step_bytes;    /* of a step and row block */
    int32_t table_bytes;   /* of a step and token; `tables` has room for all, in an order of its own */
    int32_t scratch_bytes; /* of ternary_gemm */
} tmac_ternary_order;

typedef struct {
    const char *name;     /* "avx512" */
    const char *requires; /* for people */
    uint32_t features;    /* bits of cpu.h, all of which must be present */
    int fast_aggregation; /* whether gemv and gemm know TMAC_TABLES_FAST */

    /* Per-token absmax quantisation (BitNet): q = clamp(rint(x * (127 / amax)), -128, 127), amax = max(max|x|, 1e-5).
     * Returns amax / 127, or NaN when x holds a NaN or infinity. q[0..k) is written. */
    float (*quantize_row)(const float *x, int32_t k, int8_t *q);

    /* Tables of token t for segments [segment_begin, segment_end): x points at column 0, columns >= k count as 0.
     * Per segment: a = max over its k-groups of (|x0|+|x1|)+(|x2|+|x3|); half_scale = 0.5f * (a / 127); inverse =
     * a >= TMAC_TABLE_AMAX_MIN ? 127 / a : 0; entry = rint((((s0 x0) + (s1 x1)) + ((s2 x2) + (s3 x3))) * inverse);
     * sums: 16 float lanes, lane j adds the columns congruent j mod 16 in order, then lanes are added pairwise
     * (j with j+8, then j+4, j+2, j+1). Returns 0, or 1 if a segment's a is not finite. */
    int (*lut_build)(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                     const tmac_lut *lut);
    /* The same from int8 activations, exact. Fills tables and sums (half_scales are 0.5). */
    void (*lut_build_exact)(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                            const tmac_lut *lut);

    /* Re-order one step (bits * 256 bytes) from the file's order into this instruction set's; in != out. NULL: as is. */
    void (*reorder)(int32_t bits, const uint8_t *in, uint8_t *out);

    /* One token (lut->n == 1), row blocks [block_begin, block_end). weights: the matrix's first block.
     * y: float32 (m); only rows < m are written. */
    void (*gemv)(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, float *y);
    /* n tokens, row blocks [block_begin, block_end), segments [segment_begin, segment_end) of one K panel.
     * y: float32 (n, ldy). segment_begin = 0 starts from zero, otherwise y holds the partial sums (group_size = 0: the
     * partial T) of the segments before; segment_end = n_segments finishes rows as above. */
    void (*gemm)(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy);

    /* Ternary matrices. Codes of n_blocks row blocks, as they lie in the file, into one slab of memory. */
    tmac_ternary_order ternary;
    void (*ternary_reorder)(const tmac_shape *shape, const uint8_t *blocks, int32_t n_blocks, uint8_t *slab);
    /* Tables of token t for steps [step_begin, step_end), or the activations that a kernel makes its own from; columns
     * >= k count as 0. */
    void (*ternary_build)(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                          const tmac_lut *lut);
    /* One token, the slab of row blocks [block_begin, block_end), at most TERNARY_SLAB_BLOCKS. slab: its first byte.
     * scales: of row 0. */
    void (*ternary_gemv)(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                         int32_t block_begin, int32_t block_end, float *y);
    /* The same for n tokens. y: float32 (n, ldy). scratch: ternary.scratch_bytes, 64-byte aligned. */
    void (*ternary_gemm)(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                         int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy);
} tmac_kernels;

/* `ternary_reorder` of five weights in a byte, and of three in five bits. */
void tmac_ternary_reorder_scalar(const tmac_shape *shape, const uint8_t *blocks, int32_t n_blocks, uint8_t *slab);
void tmac_ternary_reorder_triples_scalar(const tmac_shape *shape, const uint8_t *blocks, int32_t n_blocks,
                                         uint8_t *slab);

extern const tmac_kernels tmac_kernels_scalar;
extern const tmac_kernels tmac_kernels_avx2;
extern const tmac_kernels tmac_kernels_avx512;
extern const tmac_kernels tmac_kernels_neon;
#endif
