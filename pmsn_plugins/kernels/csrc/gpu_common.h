// CUDA: one thread runs one position of a strip, through the rows of its group, in one segment of time. Compiled by
// NVRTC with
//     PMSN_REAL        float or double
//     PMSN_MEMORY      Plain, Half or Bfloat16: how x, the spikes and their gradients lie in memory
//     PMSN_INTERVAL    layout.interval
//     PMSN_THREADS, PMSN_REDUCERS    threads of a block, and of one that adds up the sums of a channel
#pragma once
#include "args.h"
#include "gpu_lane.h"
#include "half.h"
#include "surrogate.h"

namespace PMSN_NAMESPACE {

typedef PMSN_REAL R;

enum { THREADS = PMSN_THREADS, REDUCERS = PMSN_REDUCERS };  // of a block

struct Plain {
    typedef R element;
    static PMSN_FN R load(const element* from) { return *from; }
    static PMSN_FN void store(element* to, R value) { *to = value; }
};
struct Half {
    typedef unsigned short element;
#if defined(__CUDACC__)
    static PMSN_FN R load(const element* from) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(*from));
        return value;
    }
    static PMSN_FN void store(element* to, R value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*to) : "f"((float)value)); }
#else
    static PMSN_FN R load(const element* from) { return half_to_float<float>(*from); }
    static PMSN_FN void store(element* to, R value) { *to = (unsigned short)float_to_half<float>(value); }
#endif
};
struct Bfloat16 {
    typedef unsigned short element;
    static PMSN_FN R load(const element* from) { return bfloat16_to_float<float>(*from); }
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    static PMSN_FN void store(element* to, R value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(*to) : "f"((float)value)); }
#else
    static PMSN_FN void store(element* to, R value) { *to = (unsigned short)float_to_bfloat16<float>(value); }
#endif
};
typedef PMSN_MEMORY Memory;
typedef Memory::element Element;

PMSN_FN R read(const void* memory, index_t i) { return memory ? ((const R*)memory)[i] : R(0); }
PMSN_FN void write(void* memory, index_t i, R value) {
    if (memory) ((R*)memory)[i] = value;
}

// The loads above are under way together: without this each is moved down to where its value is used, and then there
// is one at a time. ptxas moves no load across a barrier. The mask is that of the lanes that are here now, which all
// come to the barrier next.
PMSN_FN void loads_are_issued() {
#if defined(__CUDACC__)
    asm volatile("{ .reg .b32 lanes; activemask.b32 lanes; bar.warp.sync lanes; }" ::: "memory");
#endif
}

// Wait for a load, before others are issued. ptxas counts all loads of a loop with one counter (a scoreboard), so a
// wait for one is a wait for all that are under way: one that comes after the next batch's loads waits for these too.
PMSN_FN void wait_for(R loaded) {
#if defined(__CUDACC__)
    asm volatile(
        "{ .reg .pred any; .reg .b32 lanes; .reg .b32 some;"
        " setp.ne.f32 any, %0, 0f0BADBAD0; activemask.b32 lanes; vote.sync.ballot.b32 some, any, lanes;"
        " or.b32 lanes, lanes, some; bar.warp.sync lanes; }" ::"f"((float)loaded)
        : "memory");
#endif
}

#if defined(__CUDACC__)
#define PMSN_AS_IT_IS _Pragma("unroll 1")  // a loop that is unrolled where it is worth it
#else
#define PMSN_AS_IT_IS
#endif

template <int COUNT>
struct Steps {
    static constexpr int count = COUNT;
};

// `batch(Steps<n>(), i)` for n of `steps` steps at a time, from the i-th on. As many loads are then under way: a load
// takes as long as some hundred instructions.
template <int MOST, class Batch>
PMSN_FN void in_batches(int steps, Batch batch) {
    int i = 0;
    if (MOST != 4 && MOST != 1) {
        PMSN_AS_IT_IS
        for (; i + MOST <= steps; i += MOST) batch(Steps<MOST>(), i);
    }
    if (MOST >= 4) {
        PMSN_AS_IT_IS
        for (; i + 4 <= steps; i += 4) batch(Steps<4>(), i);
    }
    PMSN_AS_IT_IS
    for (; i < steps; ++i) batch(Steps<1>(), i);
}
// The same backwards, from the last step on; the i-th is the first of a batch.
template <int MOST, class Batch>
PMSN_FN void in_batches_back(int steps, Batch batch) {
    if (MOST != 4 && MOST != 1) {
        PMSN_AS_IT_IS
        for (; steps >= MOST; steps -= MOST) batch(Steps<MOST>(), steps - MOST);
    }
    if (MOST >= 4) {
        PMSN_AS_IT_IS
        for (; steps >= 4; steps -= 4) batch(Steps<4>(), steps - 4);
    }
    PMSN_AS_IT_IS
    for (; steps > 0; --steps) batch(Steps<1>(), steps - 1);
}

// The same where `run(loaded, i)` needs what `load(loaded)` loads, a Loaded<n>: while it runs, the loads of the next
// batch are under way.
template <template <int> class Loaded, int MOST, class Load, class Run>
PMSN_FN void in_batches_back(int steps, Load load, Run run) {
    Loaded<MOST> next;
    if (steps >= MOST) load(next);
    PMSN_AS_IT_IS
    while (steps >= MOST) {
        Loaded<MOST> now = next;
        steps -= MOST;
        wait_for(now.last());
        if (steps >= MOST) load(next);
        loads_are_issued();
        run(now, steps);
    }
    if (MOST == 1) return;
    in_batches_back<4>(steps, [&](auto batch, int first) {
        Loaded<batch.count> now;
        load(now);
        loads_are_issued();
        run(now, first);
    });
}

template <int COUNT>
PMSN_FN void load_steps(const Element* x, index_t M, R* to) {
    PMSN_UNROLL
    for (int i = 0; i < COUNT; ++i) to[i] = Memory::load(x + i * M);
}

// To the next step, by one addition: left to the compiler, an unrolled loop keeps a register pair for every step's
// place.
template <class T>
PMSN_FN void advance(T*& at, index_t by) {
    at += by;
#if defined(__CUDACC__)
    size_t global = __cvta_generic_to_global(at);
    asm("" : "+l"(global));
    at = (T*)__cvta_global_to_generic(global);
#endif
}

struct Nothing {
    PMSN_FN void operator()(int) const {}
};

// `step(i, x)` for every step i, from its input x on: planes of M elements; `begin(i)` before every interval's first,
// but not before step 0. While the steps of a batch are computed, the loads of the next are under way: a GPU has few
// warps where neurons are few.
template <int MOST, class Step, class Begin = Nothing>
PMSN_FN void for_steps(const Element* x, index_t M, int steps, Step step, Begin begin = Begin()) {
    static_assert(PMSN_INTERVAL % (2 * MOST) == 0, "an interval is some pairs of batches");
    const int whole = steps / MOST * MOST;
    R even[MOST], odd[MOST];  // batches in turn: no number is moved
    const auto run = [&](int first, const R* now, R* next) {
        x += MOST * M;
        wait_for(now[MOST - 1]);
        if (first + MOST < whole) load_steps<MOST>(x, M, next);
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < MOST; ++i) step(first + i, now[i]);
    };
    if (whole) load_steps<MOST>(x, M, even);
    PMSN_AS_IT_IS
    for (int first = 0; first < whole;) {
        const int end = whole - first < PMSN_INTERVAL ? whole : first + PMSN_INTERVAL;
        PMSN_AS_IT_IS
        for (; first < end; first += 2 * MOST) {
            run(first, even, odd);
            if (first + MOST < whole) run(first + MOST, odd, even);
        }
        if (end % PMSN_INTERVAL == 0 && end < steps) begin(end);
    }
    in_batches<4>(steps - whole, [&](auto batch, int first) {
        R x_of[batch.count];
        load_steps<batch.count>(x, M, x_of);
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) step(whole + first + i, x_of[i]);
        x += batch.count * M;
    });
}

// a / b for numbers that are not negative: a 64-bit division takes a hundred instructions
PMSN_FN index_t quotient(index_t a, index_t b) { return (a | b) >> 32 ? a / b : (index_t)((unsigned)a / (unsigned)b); }
PMSN_FN index_t remainder(index_t a, index_t b) { return a - quotient(a, b) * b; }

// The thread's part of a Layout.
struct WorkItem {
    index_t position, first_row, end_row, start, end;  // rows, and time steps
    bool active;

    PMSN_FN explicit WorkItem(const Layout& layout) {
        const index_t rows = quotient(layout.M + layout.P - 1, layout.P);
        position = (index_t)blockIdx.x * layout.strip + threadIdx.x;
        active = position < layout.P;
        first_row = quotient(rows * blockIdx.y, layout.groups);
        end_row = active ? quotient(rows * (blockIdx.y + 1), layout.groups) : first_row;
        start = blockIdx.z * layout.segment;
        end = layout.T - start < layout.segment ? layout.T : start + layout.segment;
    }
    PMSN_FN index_t channel(const Layout& layout) const {
        return active ? remainder(quotient(position, layout.S), layout.C) : 0;
    }
};

// Run `run(of_channel, element, item)` for every element of the thread; `of_channel` is made of args and its channel.
template <class OfChannel, class Args, class Run>
PMSN_FN void for_elements(const Args& args, Run run) {
    const WorkItem item(args.layout);
    const OfChannel of_channel(args, item.channel(args.layout));
    for (index_t row = item.first_row; row < item.end_row; ++row) {
        const index_t element = row * args.layout.P + item.position;
        if (element < args.layout.M) run(of_channel, element, item);
    }
}

// How the sums of items are kept until they are reduced: [items, slots, COUNT], an item's slots being the channels
// that its strip touches.
struct Slots {
    index_t strips;
    int count;
    PMSN_FN explicit Slots(const Layout& layout)
        : strips(quotient(layout.P + layout.strip - 1, layout.strip)),
          count((int)quotient(layout.strip - 1, layout.S) + 2) {}
};

// Sums of all threads of a block per channel, in fixed order, to the block's slots of `partials`.
template <int COUNT>
PMSN_FN void sum_by_channel(const Layout& layout, const R* sums, void* partials) {
    enum { COLUMNS = COUNT < 16 ? COUNT : 16 };
    __shared__ R buffer[COLUMNS][THREADS + 1];
    const Slots slots(layout);
    const index_t origin = (index_t)blockIdx.x * layout.strip, rest = layout.P - origin;
    const int width = rest < layout.strip ? (int)rest : (int)layout.strip;
    const index_t first = quotient(origin, layout.S);
    const int used = (int)(quotient(origin + width - 1, layout.S) - first) + 1;
    const index_t item = ((index_t)blockIdx.z * layout.groups + blockIdx.y) * gridDim.x + blockIdx.x;
    PMSN_UNROLL
    for (int column = 0; column < COUNT; column += COLUMNS) {
        __syncthreads();
        PMSN_UNROLL
        for (int j = 0; j < COLUMNS; ++j)
            if (column + j < COUNT) buffer[j][threadIdx.x] = sums[column + j];
        __syncthreads();
        for (int output = threadIdx.x; output < used * COLUMNS; output += THREADS) {
            const int j = output % COLUMNS, slot = output / COLUMNS;
            if (column + j >= COUNT) continue;
            const index_t begin = (first + slot) * layout.S - origin, end = begin + layout.S;
            R sum = 0;
            for (int i = begin < 0 ? 0 : (int)begin; i < (end < width ? (int)end : width); ++i) sum += buffer[j][i];
            ((R*)partials)[(item * slots.count + slot) * COUNT + column + j] = sum;
        }
    }
}

// The sums of channel blockIdx.x over all items, by one block. What it has to add is dealt to lanes, whose sums are
// then added in pairs: always in the same order. `done(column, sum)` is called by one thread for each column.
template <int COUNT, class Done>
PMSN_FN void reduce_channel(const Layout& layout, const void* partials, Done done) {
    enum { COLUMNS = COUNT < REDUCERS ? COUNT : REDUCERS, LANES = REDUCERS / COLUMNS, BATCH = 8 };
    __shared__ double buffer[LANES][COLUMNS];
    const Slots slots(layout);
    const index_t c = blockIdx.x, C = layout.C, S = layout.S, strip = layout.strip;
    // The channel lies `times` times in a row, in at most `span` strips each time. A place is one of these strips;
    // there is one in each run, a group of rows in a segment of time.
    const unsigned span = (unsigned)quotient(S + strip - 2, strip) + 1,
                   places = (unsigned)quotient(layout.P + (C - c - 1) * S, C * S) * span,
                   runs = (unsigned)(quotient(layout.T + layout.segment - 1, layout.segment) * layout.groups);
    const index_t apart = slots.strips * slots.count * COUNT;
    const unsigned lane = threadIdx.x / COLUMNS;
    for (int first = 0; first < COUNT; first += COLUMNS) {
        const int column = first + threadIdx.x % COLUMNS;
        const auto find = [&](unsigned place) -> const R* {  // of the first run; null: there is no such strip
            if (place >= places) return nullptr;
            const unsigned time = place / span;
            const index_t q = c + time * C, at = quotient(q * S, strip) + (place - time * span), begin = at * strip;
            if (at >= slots.strips || begin >= (q + 1) * S || lane >= LANES || column >= COUNT) return nullptr;
            return (const R*)partials + (at * slots.count + (q - quotient(begin, S))) * COUNT + column;
        };
        double sum = 0;
        unsigned place = lane / runs, run = lane % runs;
        const R* from = find(place);
        while (place < places) {
            R ahead[BATCH];
            PMSN_UNROLL
            for (int i = 0; i < BATCH; ++i) {
                ahead[i] = from ? from[run * apart] : R(0);
                run += LANES;
                if (run < runs) continue;
                place += run / runs, run %= runs;
                from = find(place);
            }
            loads_are_issued();
            PMSN_UNROLL
            for (int i = 0; i < BATCH; ++i) sum += ahead[i];
        }
        if (lane < LANES) buffer[lane][column - first] = sum;
        PMSN_UNROLL
        for (int left = LANES; left > 1;) {
            const int half = (left + 1) / 2;
            __syncthreads();
            if (lane + half < left) buffer[lane][column - first] += buffer[lane + half][column - first];
            left = half;
        }
        if (lane == 0 && column < COUNT) done(column, (R)buffer[0][column - first]);
        if (COUNT > COLUMNS) __syncthreads();
    }
}

}  // namespace PMSN_NAMESPACE
