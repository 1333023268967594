/* What the C tests share: a check that says where, reproducible random numbers, memory between canaries. */
#ifndef TMAC_TESTS_CHECK_H
#define TMAC_TESTS_CHECK_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CHECK(condition, format, values..): the format tells the parameters of the case. */
#define CHECK(condition, ...)                                                    \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: failed: %s; ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                        \
            fprintf(stderr, "\n");                                               \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

static uint64_t random_state = 0x2545f4914f6cdd1du;

static inline uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static inline int32_t random_below(int32_t n) { return (int32_t)(random_bits() % (uint32_t)n); }

/* Sum of four uniform numbers: near enough to a normal distribution of standard deviation 1.15. */
static inline float random_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)random_bits() / 2147483648.0f - 1.0f;
    return sum;
}

enum { CANARY_BYTES = 64, CANARY = 0x5a };

/* bytes of memory, 64-byte aligned, between canaries; filled with `fill`. */
static inline void *canary_alloc(size_t bytes, int fill)
{
    char *base = aligned_alloc(64, (bytes + 2 * CANARY_BYTES + 63) / 64 * 64);
    if (!base) abort();
    memset(base, CANARY, bytes + 2 * CANARY_BYTES);
    memset(base + CANARY_BYTES, fill, bytes);
    return base + CANARY_BYTES;
}

static inline int canary_intact(const void *data, size_t bytes)
{
    const char *before = (const char *)data - CANARY_BYTES, *after = (const char *)data + bytes;
    for (int i = 0; i < CANARY_BYTES; i++)
        if (before[i] != CANARY || after[i] != CANARY) return 0;
    return 1;
}

static inline void canary_free(void *data) { free((char *)data - CANARY_BYTES); }
#endif
