#include "cpu_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
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

thread_local Scratch caller_scratch;

struct Job {
    const int64_t items, scratch_bytes;
    void (*const run)(const void*, int64_t, void*);
    const void* const context;
    std::atomic<int> helpers;  // that may still join
    std::atomic<int64_t> finished{0};

    Job(int64_t count, int64_t bytes, void (*function)(const void*, int64_t, void*), const void* argument, int others)
        : items(count),
          scratch_bytes(bytes),
          run(function),
          context(argument),
          helpers(others),
          parts_(others + 1 < MOST_PARTS ? others + 1 : MOST_PARTS) {
        for (int part = 0; part < parts_; ++part) next_[part] = begin(part);
    }

    // Take items until none is left: first those of a part of one's own, then what others have left of theirs. Items
    // next to each other are neighbours in memory, and a core fetches ahead what another one is writing: two that took
    // them in turns would be slower than one. A thread that comes too late takes none and touches nothing of the
    // caller's.
    void work(void* scratch, int first_part) {
        for (int i = 0; i < parts_; ++i) {
            const int part = (first_part + i) % parts_;
            int64_t item;
            while ((item = next_[part].fetch_add(1)) < begin(part + 1)) {
                run(context, item, scratch);
                finished.fetch_add(1, std::memory_order_release);
            }
        }
    }

private:
    enum { MOST_PARTS = 64 };
    const int parts_;
    std::atomic<int64_t> next_[MOST_PARTS];

    int64_t begin(int part) const { return items * part / parts_; }
};

class Pool {
public:
    void run(const std::shared_ptr<Job>& job, int threads, void* scratch) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (workers_ < threads - 1 && start()) ++workers_;
            job_ = job;
        }
        if (threads == 2) wake_.notify_one();
        else wake_.notify_all();
        job->work(scratch, 0);
        while (job->finished.load(std::memory_order_acquire) < job->items) std::this_thread::yield();
        std::lock_guard<std::mutex> lock(mutex_);
        job_.reset();
    }

    std::mutex busy;  // one job at a time
    const pid_t process = getpid();

private:
    // False where the system gives no more threads, or memory for them.
    bool start() {
        try {
            std::thread([this] { loop(); }).detach();
        } catch (const std::exception&) {
            return false;
        }
        return true;
    }

    void loop() {
        Scratch own;
        std::shared_ptr<Job> seen;
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return job_ && job_ != seen; });
                seen = job_;
            }
            const int helper = seen->helpers.fetch_sub(1);
            if (helper <= 0) continue;
            if (void* scratch = own.at_least(seen->scratch_bytes)) seen->work(scratch, helper);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::shared_ptr<Job> job_;
    int workers_ = 0;
};

// Never destroyed, for its threads live as long as the process. A forked child has none of them, and its copy of a lock
// may be held by one of them: it needs a pool of its own. Null: memory ran out.
Pool* pool() {
    static std::atomic<Pool*> instance{nullptr};
    Pool* seen = instance.load();
    if (seen && seen->process == getpid()) return seen;
    Pool* const fresh = new (std::nothrow) Pool;
    if (!fresh || instance.compare_exchange_strong(seen, fresh)) return fresh;
    delete fresh;  // another thread was faster
    return seen;
}

// False, with nothing done: there is no memory for it, or another thread's call has the pool.
bool run_in_pool(int threads, int64_t items, int64_t scratch_bytes, void (*run)(const void*, int64_t, void*),
                 const void* context, void* scratch) {
    Pool* const shared = pool();
    if (!shared) return false;
    std::unique_lock<std::mutex> lock(shared->busy, std::try_to_lock);
    if (!lock) return false;
    std::shared_ptr<Job> job;
    try {
        job = std::make_shared<Job>(items, scratch_bytes, run, context, threads - 1);
    } catch (const std::bad_alloc&) {
        return false;
    }
    shared->run(job, threads, scratch);
    return true;
}

}  // namespace

bool run_in_parallel(int threads, int64_t items, int64_t scratch_bytes, void (*run)(const void*, int64_t, void*),
                     const void* context) {
    void* const scratch = caller_scratch.at_least(scratch_bytes);
    if (!scratch) return false;
    if (threads > items) threads = int(items);
    if (threads > 1 && run_in_pool(threads, items, scratch_bytes, run, context, scratch)) return true;
    for (int64_t item = 0; item < items; ++item) run(context, item, scratch);
    return true;
}
