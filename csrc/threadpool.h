/* One fork-join thread pool. Knows nothing of what runs on it.
 *
 * tmac_parallel_for cuts [0, n) into one contiguous range per thread; a thread walks its own range forward in chunks of
 * `grain`, so that it reads memory as one stream, and when done takes chunks from the far end of another's. */
#ifndef TMAC_THREADPOOL_H
#define TMAC_THREADPOOL_H
#include <stdint.h>

enum { TMAC_MAX_THREADS = 256 };

/* Items [begin, end). thread: 0 .. n_threads - 1, the one that runs it (for scratch memory). */
typedef void (*tmac_task)(void *context, int32_t begin, int32_t end, int thread);

/* Run with n_threads, the caller being one of them. 0, or -1 if threads could not be started (then fewer run). */
int tmac_pool_start(int n_threads);
int tmac_pool_size(void);
/* Returns when every item is done; concurrent callers take turns. Not from inside a task. In the child of a fork the
 * threads are started again. */
void tmac_parallel_for(int32_t n, int32_t grain, tmac_task task, void *context);
#endif
