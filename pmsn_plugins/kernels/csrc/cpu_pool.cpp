#include "cpu_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

#include <unistd.h>

namespace {

struct Scratch {
    void* memory = nullptr;
    int64_t bytes = 0;
    ~Scratch() { std::free(memory); }

    void* at_least(int64_t wanted) {
        if (bytes < wanted) {
            std::free(memory);
            bytes = 0;
            if (posix_memalign(&memory, 64, wanted) != 0) return memory = nullptr;
            bytes = wanted;
        }
        return memory;
    }
};

thread_local Scratch thread_scratch;

struct Job {
    int64_t items, scratch_bytes;
    void (*run)(const void*, int64_t, void*);
    const void* context;
    std::atomic<int64_t> next{0}, finished{0};
    std::atomic<int> helpers;  // that may still join
    std::atomic<bool> failed{false};

    // Take items until none is left. A thread that comes too late takes none and touches nothing of the caller's.
    void work() {
        int64_t item;
        while ((item = next.fetch_add(1)) < items) {
            void* scratch = thread_scratch.at_least(scratch_bytes);
            if (scratch) run(context, item, scratch);
            else failed = true;
            finished.fetch_add(1, std::memory_order_release);
        }
    }
};

class Pool {
public:
    void run(const std::shared_ptr<Job>& job, int threads) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (; workers_ < threads - 1; ++workers_) std::thread([this] { loop(); }).detach();
            job_ = job;
        }
        job->helpers = threads - 1;
        if (threads == 2) wake_.notify_one();
        else wake_.notify_all();
        job->work();
        while (job->finished.load(std::memory_order_acquire) < job->items) std::this_thread::yield();
        std::lock_guard<std::mutex> lock(mutex_);
        job_.reset();
    }

    std::mutex busy;  // one job at a time

private:
    void loop() {
        std::shared_ptr<Job> seen;
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return job_ && job_ != seen; });
                seen = job_;
            }
            if (seen->helpers.fetch_sub(1) > 0) seen->work();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    int workers_ = 0;
};

// Never destroyed, for its threads live as long as the process. A forked child has none of them and needs its own.
Pool& pool() {
    static std::mutex mutex;
    static Pool* instance = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        owner = getpid();
        instance = new Pool;
    }
    return *instance;
}

}  // namespace

bool run_in_parallel(int threads, int64_t items, int64_t scratch_bytes, void (*run)(const void*, int64_t, void*),
                     const void* context) {
    if (threads > items) threads = int(items);
    const auto job = std::make_shared<Job>();
    job->items = items;
    job->scratch_bytes = scratch_bytes;
    job->run = run;
    job->context = context;
    if (threads > 1) {
        Pool& shared = pool();
        std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
        if (lock) {
            shared.run(job, threads);
            return !job->failed;
        }
    }
    job->work();  // alone, or while another thread's call has the pool
    return !job->failed;
}
