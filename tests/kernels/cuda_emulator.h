// Runs CUDA kernels on the CPU, one thread of a block after the other: just enough of the language for csrc/gpu_*.cu.
#pragma once
#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() emulator::suspend()

struct Dimensions {
    int x = 0, y = 0, z = 0;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// A context is only made to give each thread a stack: swapcontext asks the operating system, jumps do not.
struct Thread {
    jmp_buf here;
    char* stack;
    bool finished;
};
static jmp_buf scheduler;
static Thread* threads;
static int made;
static void (*body)();

static void suspend() {
    if (!_setjmp(threads[threadIdx.x].here)) _longjmp(scheduler, 1);
}
static void live() {
    for (;;) {
        suspend();
        body();
        threads[threadIdx.x].finished = true;
    }
}
static void resume(int i) {
    threadIdx.x = i;
    if (!_setjmp(scheduler)) _longjmp(threads[i].here, 1);
}

static void make_thread() {
    const size_t bytes = 1 << 17;
    threads = (Thread*)realloc(threads, (made + 1) * sizeof(Thread));
    Thread& thread = threads[made];
    thread.stack = (char*)malloc(bytes);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread.stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    threadIdx.x = made++;
    if (!_setjmp(scheduler)) setcontext(&context);
}

// Every thread runs to the next __syncthreads() before any goes on.
static void run_block() {
    for (int i = 0; i < blockDim.x; ++i) threads[i].finished = false;
    for (bool running = true; running;) {
        running = false;
        for (int i = 0; i < blockDim.x; ++i)
            if (!threads[i].finished) {
                resume(i);
                running |= !threads[i].finished;
            }
    }
}

static void run(void (*kernel)(), int grid_x, int grid_y, int grid_z, int block) {
    body = kernel;
    gridDim = {grid_x, grid_y, grid_z};
    blockDim = {block, 1, 1};
    while (made < block) make_thread();
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
