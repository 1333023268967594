#include "memory.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20 };

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* madvise says yes even where transparent huge pages are switched off, so ask the switch itself. */
static int huge_pages_enabled(void)
{
    char text[64] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!file) return 0;
    const size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    return length > 0 && !strstr(text, "[never]");
}

static void *map(size_t bytes)
{
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

/* A 2 MiB aligned mapping, cut out of a larger one. */
static void *map_aligned(size_t bytes)
{
    char *data = map(bytes + HUGE_PAGE);
    if (!data) return NULL;
    const size_t before = round_up((uintptr_t)data, HUGE_PAGE) - (uintptr_t)data;
    if (before) munmap(data, before);
    if (HUGE_PAGE - before) munmap(data + before + bytes, HUGE_PAGE - before);
    return data + before;
}

tmac_memory tmac_memory_alloc(size_t bytes)
{
    tmac_memory memory = {0};
    if (bytes > SIZE_MAX / 2) return memory;
    memory.bytes = bytes;
    memory.mapped = round_up(bytes ? bytes : 1, PAGE);
    if (bytes < HUGE_PAGE) {
        memory.data = map(memory.mapped);
        return memory;
    }
    memory.data = map_aligned(memory.mapped);
#ifdef MADV_HUGEPAGE
    if (memory.data && !madvise(memory.data, memory.mapped, MADV_HUGEPAGE) && huge_pages_enabled())
        memory.huge_bytes = bytes / HUGE_PAGE * HUGE_PAGE;
#endif
    return memory;
}

void tmac_memory_free(tmac_memory *memory)
{
    if (memory->data && memory->mapped) munmap(memory->data, memory->mapped);
    *memory = (tmac_memory){0};
}
