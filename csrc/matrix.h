/* A matrix in memory; shared by api.c, which loads it, and matmul.c, which multiplies with it. */
#ifndef TMAC_MATRIX_H
#define TMAC_MATRIX_H
#include "kernels.h"
#include "memory.h"

struct tmac_matrix {
    tmac_shape shape; /* as multiplied: a ternary matrix may have become two planes */
    int exact;        /* ternary: tables are TMAC_TABLES_EXACT, whatever was asked for */
    int32_t n_slabs;  /* TMAC_TERNARY */
    const tmac_kernels *kernels; /* whose order `memory` has */
    tmac_memory memory;
};

/* First row block of slab i of a ternary matrix, and of i = n_slabs the end. */
static inline int32_t tmac_slab_block(const struct tmac_matrix *m, int32_t i)
{
    return (int32_t)((int64_t)tmac_n_blocks(&m->shape) * i / m->n_slabs);
}

/* 1 if every field is within its contract. */
int tmac_shape_valid(const tmac_shape *shape);
#endif
