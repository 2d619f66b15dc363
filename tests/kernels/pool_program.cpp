// Calls cpu_pool.h while memory and threads run out, or while the process forks; see test_threads.py.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "cpu_pool.h"

// Which allocation, aligned allocation and thread (counted from 1) are the first to fail, and how many in a row.
static int failing[3], row;
static std::atomic<int> count[3];
static std::atomic<bool> armed;
static bool fails(int kind) {
    if (!armed) return false;
    const int number = ++count[kind];
    return failing[kind] && number >= failing[kind] && number < failing[kind] + row;
}

void* operator new(std::size_t bytes) {
    if (fails(0)) throw std::bad_alloc();
    return std::malloc(bytes);
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    return fails(0) ? nullptr : std::malloc(bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
    return fails(1) ? ENOMEM : (*memory = aligned_alloc(alignment, bytes)) ? 0 : ENOMEM;
}
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* data) {
    static const auto real = (decltype(&pthread_create))dlsym(RTLD_NEXT, "pthread_create");
    return fails(2) ? EAGAIN : real(thread, attributes, run, data);
}

static bool calls_are_right(int calls) {
    for (int call = 0; call < calls; ++call) {
        std::vector<int> done(8);
        run_in_parallel(2, 8, 64, [](const void* c, int64_t item, void*) { ++((int*)c)[item]; }, done.data());
        for (int times : done)
            if (times != 1) return false;
    }
    return true;
}

// Fork while another thread calls: the child, too, can call.
static int fork_and_call(int forks) {
    std::atomic<bool> stop{false};
    std::thread other([&] {
        while (!stop) calls_are_right(1);
    });
    bool right = true;
    for (int i = 0; right && i < forks; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(10);  // kills it
            _exit(calls_are_right(3) ? 0 : 1);
        }
        int status = 0;
        right = waitpid(child, &status, 0) == child && status == 0;
    }
    stop = true;
    other.join();
    return right ? 0 : 1;
}

int main(int number, char** arguments) {
    if (number == 2) return fork_and_call(std::atoi(arguments[1]));
    for (int kind = 0; kind < 3; ++kind) failing[kind] = std::atoi(arguments[1 + kind]);
    row = std::atoi(arguments[4]);
    for (int call = 0; call < 20; ++call) {
        std::vector<int> done(1000);
        armed = true;
        const bool finished = run_in_parallel(
            4, 1000, 64 * (1 + call),
            [](const void* context, int64_t item, void* scratch) {
                *(int64_t*)scratch = item;  // every thread has its own
                ++((int*)context)[*(volatile int64_t*)scratch];
            },
            done.data());
        armed = false;
        for (int times : done)
            if (times != finished) return std::printf("an item was run %d times\n", times), 1;
        std::putchar(finished ? '1' : '0');
    }
}
