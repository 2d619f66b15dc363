// Runs CUDA kernels on the CPU, one thread of a block after the other: just enough of the language for csrc/gpu_*.cu.
#pragma once
#include <ucontext.h>

#include <vector>

#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() emulator::suspend()

struct Dimensions {
    int x = 0, y = 0, z = 0;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool finished;
};
static ucontext_t scheduler;
static std::vector<Thread> threads;
static void (*body)();

static void suspend() { swapcontext(&threads[threadIdx.x].context, &scheduler); }
static void enter() {
    body();
    threads[threadIdx.x].finished = true;
}

// Every thread runs to the next __syncthreads() before any goes on.
static void run_block() {
    for (Thread& thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        thread.finished = false;
        makecontext(&thread.context, enter, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (int i = 0; i < (int)threads.size(); ++i)
            if (!threads[i].finished) {
                threadIdx.x = i;
                swapcontext(&scheduler, &threads[i].context);
                running |= !threads[i].finished;
            }
    }
}

static void run(void (*kernel)(), int grid_x, int grid_y, int grid_z, int block) {
    body = kernel;
    gridDim = {grid_x, grid_y, grid_z};
    blockDim = {block, 1, 1};
    threads.resize(block);
    for (Thread& thread : threads) thread.stack.resize(1 << 17);
    for (blockIdx.z = 0; blockIdx.z < grid_z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x) run_block();
}

}  // namespace emulator

// Kernels take one structure by value: defines `emulate(kernel, arguments, grid, block)` for it.
#define EMULATE(Args)                                                                                 \
    static void (*emulated_kernel)(Args);                                                             \
    static Args emulated_args;                                                                        \
    extern "C" void emulate(void (*kernel)(Args), const Args* args, int x, int y, int z, int block) { \
        emulated_kernel = kernel;                                                                     \
        emulated_args = *args;                                                                        \
        emulator::run([] { emulated_kernel(emulated_args); }, x, y, z, block);                        \
    }
