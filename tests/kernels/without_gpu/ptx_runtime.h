// What a kernel translated by ptx.py runs on: every CUDA thread is a fiber, and every access to memory is checked.
// SHARED: bytes of shared memory that the kernel declares.
#include <ucontext.h>
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

struct Dim {
    unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;
enum State { READY, AT_BARRIER, AT_WARP, FINISHED };
struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    State state;
    unsigned mask, value, seen[32];
};
static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<uint64_t> warp_epoch;
static uint64_t epoch;  // counts barriers, over all blocks
static void (*kernel)(char*);
static char* params;
static int complaints, races_wanted;
static std::string messages;
static double longest;  // timed kernels: cycles of the slowest thread
static double issued;   // timed kernels: issue slots of the thread that took most

static void complain(const char* what, uint64_t address, int size) {
    if (complaints++ >= 5) return;
    char text[256];
    snprintf(text, sizeof text, "%s: address 0x%llx, %d bytes, block (%u, %u, %u), thread %u\n", what,
             (unsigned long long)address, size, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    messages += text;
}

// Memory: which bytes a kernel may touch, and who did since the last barrier.
struct Range {
    uint64_t low, high;
    bool constant;
};
static std::vector<Range> ranges;
struct Cell {  // two bytes
    uint64_t write_epoch = 0, read_epoch = 0, write_warp_epoch = 0, read_warp_epoch = 0, write_block = 0,
             read_block = 0;
    int writer = -1, reader = -1;  // reader: -1000 several warps, -2 - w several threads of warp w
    bool initialised = false;
};
static char shared_memory[SHARED + 256] __attribute__((aligned(256)));
static Cell shared_cells[SHARED / 2 + 128];
static std::unordered_map<uint64_t, Cell> global_cells;

static void touch(Cell& c, bool write, bool across_blocks, const char* what, uint64_t address, int size) {
    const int t = threadIdx.x, warp = t / 32;
    const uint64_t block = ((uint64_t)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x + 1;
    auto conflict = [&](uint64_t by_block, uint64_t at, uint64_t at_warp, int who) {
        if (who == -1 || !by_block) return false;
        if (by_block != block) return across_blocks;
        if (at != epoch || who == t) return false;
        const int their_warp = who >= 0 ? who / 32 : who == -1000 ? -1 : -2 - who;
        return their_warp != warp || at_warp == warp_epoch[warp];
    };
    if (conflict(c.write_block, c.write_epoch, c.write_warp_epoch, c.writer) ||
        (write && conflict(c.read_block, c.read_epoch, c.read_warp_epoch, c.reader)))
        complain(what, address, size);
    if (write) {
        c.write_epoch = epoch, c.write_warp_epoch = warp_epoch[warp], c.write_block = block, c.writer = t;
        c.initialised = true;
    } else {
        const bool fresh = c.read_block != block || c.read_epoch != epoch || c.reader == -1 || c.reader == t;
        const int their_warp = c.reader >= 0 ? c.reader / 32 : c.reader == -1000 ? -1 : -2 - c.reader;
        c.reader = fresh ? t : their_warp == warp ? -2 - warp : -1000;
        c.read_epoch = epoch, c.read_warp_epoch = warp_epoch[warp], c.read_block = block;
    }
}
static bool global_access(uint64_t a, int size, bool write, bool atomic = false) {
    if (a % size) complain("misaligned global access", a, size);
    static size_t last = 0;
    if (last >= ranges.size() || a < ranges[last].low || a + size > ranges[last].high)
        for (last = 0; last < ranges.size(); ++last)
            if (a >= ranges[last].low && a + size <= ranges[last].high) break;
    if (last == ranges.size()) {
        complain(write ? "write out of bounds" : "read out of bounds", a, size);
        return false;
    }
    if (write && ranges[last].constant) complain("write to an input", a, size);
    if (races_wanted && !atomic)
        for (int b = 0; b < size; b += 2)
            touch(global_cells[(a + b) / 2], write, true, "race in global memory", a, size);
    return true;
}
static char* shared_access(uint64_t a, int size, bool write, bool atomic = false) {
    if (a >= (uint64_t)shared_memory && a < (uint64_t)shared_memory + SHARED + 256) a -= (uint64_t)shared_memory;
    if (a % size) complain("misaligned shared access", a, size);
    if (a + size > SHARED) return complain("shared memory out of bounds", a, size), shared_memory;
    for (uint64_t cell = a / 2; cell < (a + size + 1) / 2; ++cell) {
        if (!write && !shared_cells[cell].initialised) {
            complain("shared memory read before it is written", a, size);
            break;
        }
        if (!atomic) touch(shared_cells[cell], write, false, "race in shared memory", a, size);
        shared_cells[cell].initialised |= write;
    }
    return shared_memory + a;
}
static bool is_shared(uint64_t a) { return a - (uint64_t)shared_memory < SHARED + 256; }
template <class T>
static T ld_param(uint64_t a) {
    T v;
    memcpy(&v, params + a, sizeof v);
    return v;
}
template <class T>
static T ld_global(uint64_t a) {
    T v = T();
    if (global_access(a, sizeof v, false)) memcpy(&v, (void*)a, sizeof v);
    return v;
}
template <class T>
static void st_global(uint64_t a, T v) {
    if (global_access(a, sizeof v, true)) memcpy((void*)a, &v, sizeof v);
}
template <class T>
static T ld_shared(uint64_t a) {
    T v;
    memcpy(&v, shared_access(a, sizeof v, false), sizeof v);
    return v;
}
template <class T>
static void st_shared(uint64_t a, T v) {
    memcpy(shared_access(a, sizeof v, true), &v, sizeof v);
}
struct Local {
    uint64_t low, high;
};  // a thread's own array: arrays inside it are not told apart
static bool inside(uint64_t a, int size, Local l) {
    const bool in = a >= l.low && a + size <= l.high;
    if (!in) complain("local memory out of bounds", a, size);
    return in;
}
template <class T>
static T ld_local(uint64_t a, Local l) {
    T v = T();
    if (inside(a, sizeof v, l)) memcpy(&v, (void*)a, sizeof v);
    return v;
}
template <class T>
static void st_local(uint64_t a, T v, Local l) {
    if (inside(a, sizeof v, l)) memcpy((void*)a, &v, sizeof v);
}
template <class T>
static T ld_generic(uint64_t a, Local l) {
    return is_shared(a) ? ld_shared<T>(a) : a >= l.low && a < l.high ? ld_local<T>(a, l) : ld_global<T>(a);
}
template <class T>
static void st_generic(uint64_t a, T v, Local l) {
    if (is_shared(a)) st_shared(a, v);
    else if (a >= l.low && a < l.high) st_local(a, v, l);
    else st_global(a, v);
}
template <class T, class F>
static T atomic(uint64_t a, bool in_shared, F f) {
    T old = T(), now;
    char* at = (char*)a;
    if (in_shared || is_shared(a)) at = shared_access(a, sizeof old, false, true);
    else if (!global_access(a, sizeof old, true, true)) return old;
    memcpy(&old, at, sizeof old), now = f(old), memcpy(at, &now, sizeof now);
    return old;
}

// Arithmetic
static float flush(float x) { return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x; }
template <class A, class B>
static A bits(B b) {
    static_assert(sizeof(A) == sizeof(B), "");
    A a;
    memcpy(&a, &b, sizeof a);
    return a;
}
template <class T, class F>
static T to_integer(F v) {  // saturates
    if (v != v) return 0;
    const F low = (F)(T(-1) < 0 ? -std::ldexp(1.0, 8 * sizeof(T) - 1) : 0),
            high = (F)std::ldexp(1.0, 8 * sizeof(T) - (T(-1) < 0));
    return v <= low    ? (T(-1) < 0 ? T(1) << (8 * sizeof(T) - 1) : T(0))
           : v >= high ? (T(-1) < 0 ? ~(T(1) << (8 * sizeof(T) - 1)) : T(-1))
                       : (T)v;
}
static float from_half(uint16_t h) { return (float)bits<_Float16>(h); }
static uint16_t to_half(float x) { return bits<uint16_t>((_Float16)x); }
static uint16_t to_bfloat16(float x) {
    const uint32_t b = bits<uint32_t>(x);
    return x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static uint32_t bfe(uint32_t a, unsigned at, unsigned n) {
    return n ? (at > 31 ? 0 : a >> at) & (n > 31 ? ~0u : (1u << n) - 1) : 0;
}
static uint32_t prmt(uint32_t a, uint32_t b, uint32_t s) {
    const uint64_t v = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned n = s >> 4 * i & 15, byte = v >> 8 * (n & 7) & 255;
        r |= (n & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}

// Threads: a barrier is a switch to the scheduler.
static void wait(State state, unsigned mask = 0) {
    Thread& t = threads[threadIdx.x];
    t.state = state, t.mask = mask;
    swapcontext(&t.context, &scheduler);
}
// The values of the lanes of `mask`, when all of them have come; of itself alone a lane knows it has.
static const unsigned* exchange(unsigned value, unsigned mask) {
    Thread& t = threads[threadIdx.x];
    t.value = t.seen[threadIdx.x % 32] = value;
    if (mask != 1u << threadIdx.x % 32) wait(AT_WARP, mask);
    return t.seen;
}
static void warp_barrier(unsigned mask) { exchange(0, mask); }
static uint32_t shuffle(char mode, uint32_t value, uint32_t b, uint32_t c, unsigned mask, bool* from_lane) {
    const int lane = threadIdx.x % 32, segment = c >> 8 & 31, low = lane & segment, top = low | (c & 31 & ~segment);
    const unsigned* values = exchange(value, mask);
    int from = mode == 'u'   ? lane - (int)b
               : mode == 'd' ? lane + (int)b
               : mode == 'b' ? lane ^ (int)b
                             : low | ((int)b & ~segment & 31);
    const bool in = mode == 'u' ? from >= top : from <= top;
    if (!in) from = lane;
    if (from_lane) *from_lane = in;
    if (!(mask >> from & 1)) complain("shuffle from a lane outside the mask", 0, 4);
    return values[from];
}
static uint32_t ballot(bool value, unsigned mask) {
    const unsigned* values = exchange(value, mask);
    uint32_t r = 0;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) r |= (values[i] & 1) << i;
    return r;
}
// Let the lanes of a warp go on whose masks are complete; `force`: and those of the others that wait.
static bool release(size_t first, bool force) {
    const size_t end = std::min(first + 32, threads.size());
    bool released = false;
    for (size_t i = first; i < end; ++i) {
        if (threads[i].state != AT_WARP) continue;
        const unsigned mask = threads[i].mask;
        unsigned here = 0;
        for (size_t j = first; j < end; ++j)
            here |= (threads[j].state == AT_WARP && threads[j].mask == mask) << (j - first);
        if (here != mask && !force) continue;
        threadIdx.x = i;
        if (here != mask) complain("not all lanes of the mask reach a warp-wide instruction", mask & ~here, 0);
        for (size_t j = first; j < end; ++j) {
            if (!(here >> (j - first) & 1)) continue;
            for (size_t l = first; l < end; ++l) threads[j].seen[l - first] = threads[l].value;
            threads[j].state = READY;
        }
        ++warp_epoch[first / 32], released = true;
    }
    return released;
}
static void enter() {
    kernel(params);
    threads[threadIdx.x].state = FINISHED;
}
static void run_block() {
    for (auto& t : threads) {
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data(), t.context.uc_stack.ss_size = t.stack.size(),
        t.context.uc_link = &scheduler;
        makecontext(&t.context, enter, 0);
        t.state = READY;
    }
    memset(shared_memory, 0xff, sizeof shared_memory);
    for (auto& c : shared_cells) c = Cell();
    for (++epoch;;) {
        for (size_t i = 0; i < threads.size(); ++i)
            if (threads[i].state == READY) threadIdx.x = i, swapcontext(&scheduler, &threads[i].context);
        bool released = false;
        for (bool force : {false, true})
            for (size_t first = 0; first < threads.size() && !(force && released); first += 32)
                released |= release(first, force);
        if (released) continue;
        size_t waiting = 0;
        for (auto& t : threads)
            if (t.state == AT_BARRIER) ++waiting, t.state = READY;
        if (!waiting) return;
        if (waiting != threads.size()) complain("not all threads reach a barrier", waiting, 0);
        ++epoch;
    }
}
// Run a grid (of it at most `blocks` blocks); returns how often a check fired, and what it said first.
extern "C" int run(void (*f)(char*), const char* args, int bytes, int x, int y, int z, int block, int n,
                   const uint64_t* low, const uint64_t* high, const int* constant, int races, long long blocks,
                   char* text, int text_size, double* cycles) {
    std::vector<char> copy(args, args + bytes);
    kernel = f, params = copy.data(), complaints = 0, messages.clear(), races_wanted = races, longest = issued = 0;
    ranges.clear(), global_cells.clear();
    for (int i = 0; i < n; ++i) ranges.push_back({low[i], high[i], constant[i] != 0});
    gridDim = {(unsigned)x, (unsigned)y, (unsigned)z}, blockDim = {(unsigned)block, 1, 1};
    threads.resize(block), warp_epoch.assign((block + 31) / 32, 0);
    for (auto& t : threads) t.stack.resize(1 << 17);
    for (blockIdx.z = 0; blockIdx.z < (unsigned)z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < (unsigned)y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < (unsigned)x; ++blockIdx.x)
                if (blocks-- > 0) run_block();
    snprintf(text, text_size, "%s", messages.c_str());
    cycles[0] = longest, cycles[1] = issued;
    return complaints;
}
