// A pool of threads that sleep between calls. Not OpenMP: PyTorch brings its own copy, and two of them fight for cores.
#pragma once
#include <cstdint>

// Calls run(context, item, scratch) for every item below `items`, on at most `threads` threads, in no fixed order.
// `scratch` belongs to the thread, is aligned for any lane and holds scratch_bytes. Runs on the threads that there are
// when no more can be started, and throws nothing. False: memory ran out, and nothing was done.
bool run_in_parallel(int threads, int64_t items, int64_t scratch_bytes, void (*run)(const void*, int64_t, void*),
                     const void* context);
