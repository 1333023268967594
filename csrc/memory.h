/* Large blocks of memory, on huge pages where the system has them. Knows nothing of what is stored. */
#ifndef TMAC_MEMORY_H
#define TMAC_MEMORY_H
#include <stddef.h>

typedef struct {
    void *data;        /* 64-byte aligned; 2 MiB aligned where huge_bytes > 0 */
    size_t bytes;      /* asked for */
    size_t huge_bytes; /* how many of them lie in whole 2 MiB pages that the system may back with huge pages */
    size_t mapped;     /* length of the mapping; 0: data belongs to somebody else */
} tmac_memory;

/* Zero-filled; data is NULL when there is no memory. */
tmac_memory tmac_memory_alloc(size_t bytes);
void tmac_memory_free(tmac_memory *memory);
#endif
