/* A matrix in memory; shared by api.c, which loads it, and matmul.c, which multiplies with it. */
#ifndef TMAC_MATRIX_H
#define TMAC_MATRIX_H
#include "kernels.h"
#include "memory.h"

struct tmac_matrix {
    tmac_shape shape;
    const tmac_kernels *kernels; /* whose order `memory` has */
    tmac_memory memory;
};

/* 1 if every field is within its contract. */
int tmac_shape_valid(const tmac_shape *shape);
#endif
