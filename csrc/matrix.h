/* A matrix in memory; shared by api.c, which loads it, and matmul.c, which multiplies with it. */
#ifndef TMAC_MATRIX_H
#define TMAC_MATRIX_H
#include "kernels.h"
#include "memory.h"

struct tmac_matrix {
    tmac_shape shape;
    int32_t n_slabs;             /* TMAC_TERNARY */
    const tmac_kernels *kernels; /* whose order `memory` has */
    tmac_memory memory;          /* row blocks; ternary: slabs, then the scales; mapped 0: the caller's */
    tmac_tuning tuning;
};

/* Steps of a ternary matrix in an instruction set's memory. */
static inline int32_t tmac_memory_steps(const tmac_kernels *isa, const tmac_shape *shape)
{
    return (shape->k - 1) / isa->ternary.step_columns + 1;
}

/* Bytes of the codes of a row block of a ternary matrix in memory. */
static inline int64_t tmac_memory_codes(const tmac_kernels *isa, const tmac_shape *shape)
{
    return tmac_memory_steps(isa, shape) * (int64_t)isa->ternary.step_bytes;
}

/* Bytes of a row block in memory, scales included. */
static inline int64_t tmac_memory_block(const tmac_kernels *isa, const tmac_shape *shape)
{
    if (shape->encoding != TMAC_TERNARY) return tmac_block_bytes(shape);
    return tmac_memory_codes(isa, shape) + TMAC_ROWS_PER_BLOCK * (int64_t)sizeof(float);
}

/* First row block of slab i of a ternary matrix, and of i = n_slabs the end. */
static inline int32_t tmac_slab_block(const struct tmac_matrix *m, int32_t i)
{
    return (int32_t)((int64_t)tmac_n_blocks(&m->shape) * i / m->n_slabs);
}

/* 1 if every field is within its contract. */
int tmac_shape_valid(const tmac_shape *shape);
#endif
