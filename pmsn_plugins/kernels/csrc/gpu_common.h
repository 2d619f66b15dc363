// CUDA: one thread runs one position of a strip, through the rows of its group, in one segment of time. Compiled by
// NVRTC with
//     PMSN_REAL      float or double
//     PMSN_MEMORY    Plain, Half or Bfloat16: how x, the spikes and their gradients lie in memory
#pragma once
#include "args.h"
#include "half.h"
#include "surrogate.h"

namespace PMSN_NAMESPACE {

typedef PMSN_REAL R;

struct Plain {
    typedef R element;
    static PMSN_FN R load(const element* from) { return *from; }
    static PMSN_FN void store(element* to, R value) { *to = value; }
};
struct Half {
    typedef unsigned short element;
    static PMSN_FN R load(const element* from) { return half_to_float<float>(*from); }
    static PMSN_FN void store(element* to, R value) { *to = (unsigned short)float_to_half<float>(value); }
};
struct Bfloat16 {
    typedef unsigned short element;
    static PMSN_FN R load(const element* from) { return bfloat16_to_float<float>(*from); }
    static PMSN_FN void store(element* to, R value) { *to = (unsigned short)float_to_bfloat16<float>(value); }
};
typedef PMSN_MEMORY Memory;

PMSN_FN R read(const void* memory, index_t i) { return memory ? ((const R*)memory)[i] : R(0); }
PMSN_FN void write(void* memory, index_t i, R value) {
    if (memory) ((R*)memory)[i] = value;
}

// The thread's part of a Layout.
struct Part {
    index_t position, first_row, end_row, start, end;  // rows, and time steps
    bool active;

    PMSN_FN explicit Part(const Layout& layout) {
        const index_t rows = (layout.M + layout.P - 1) / layout.P;
        position = (index_t)blockIdx.x * layout.strip + threadIdx.x;
        active = position < layout.P;
        first_row = rows * blockIdx.y / layout.groups;
        end_row = active ? rows * (blockIdx.y + 1) / layout.groups : first_row;
        start = blockIdx.z * layout.segment;
        end = layout.T - start < layout.segment ? layout.T : start + layout.segment;
    }
    PMSN_FN index_t channel(const Layout& layout) const { return active ? position / layout.S % layout.C : 0; }
};

// Sums of all threads of a block per channel, in fixed order, to the block's slots of `partials` [items, slots, COUNT].
template <int COUNT>
PMSN_FN void sum_by_channel(const Layout& layout, const R* sums, void* partials) {
    enum { COLUMNS = COUNT < 16 ? COUNT : 16, THREADS = 128 };
    __shared__ R buffer[COLUMNS][THREADS + 1];
    const index_t origin = (index_t)blockIdx.x * layout.strip, rest = layout.P - origin;
    const int width = rest < layout.strip ? (int)rest : (int)layout.strip;
    const index_t first = origin / layout.S;
    const int slots = (int)((layout.strip - 1) / layout.S + 2),
              used = (int)((origin + width - 1) / layout.S - first) + 1;
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
            ((R*)partials)[(item * slots + slot) * COUNT + column + j] = sum;
        }
    }
}

// Column j of channel c: all its slots, in the order of segments, groups and positions.
template <int COUNT>
PMSN_FN R total(const Layout& layout, const void* partials, index_t c, int j) {
    const index_t strips = (layout.P + layout.strip - 1) / layout.strip, slots = (layout.strip - 1) / layout.S + 2;
    const index_t segments = (layout.T + layout.segment - 1) / layout.segment;
    double sum = 0;
    for (index_t run = 0; run < segments * layout.groups; ++run)
        for (index_t q = c; q * layout.S < layout.P; q += layout.C)
            for (index_t strip = q * layout.S / layout.strip;
                 strip <= ((q + 1) * layout.S - 1) / layout.strip && strip < strips; ++strip) {
                const index_t slot = q - strip * layout.strip / layout.S;
                sum += ((const R*)partials)[((run * strips + strip) * slots + slot) * COUNT + j];
            }
    return (R)sum;
}

}  // namespace PMSN_NAMESPACE
