/* Which instruction sets are compiled in, which run here, which one is chosen. Knows no operation. */
#ifndef TMAC_DISPATCH_H
#define TMAC_DISPATCH_H
#include "kernels.h"

/* Compiled-in instruction set i, best first; NULL past the end. */
const tmac_kernels *tmac_isa(int i);
/* The one of that name, or the best supported for NULL; NULL if unknown or unsupported. */
const tmac_kernels *tmac_isa_find(const char *name);
#endif
