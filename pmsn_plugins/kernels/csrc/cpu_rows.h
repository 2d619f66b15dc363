// Layers that feed their spikes back: rows [N, C] of one step, and what a matrix [C, C] does with them.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"

namespace PMSN_NAMESPACE {

// Samples that are run together, and lanes: their products are summed up in registers. Lanes that get the rows of W^T
// together.
#if PMSN_LANE_BYTES == 64
enum { PRODUCT_SAMPLES = 8, PRODUCT_LANES = 3 };
#else
enum { PRODUCT_SAMPLES = 6, PRODUCT_LANES = 2 };
#endif
enum { ROW_LANES = 8 };

// Calls use(Constant<...>()) with the largest number up to MOST that is no larger than `count`, and returns it.
template <int MOST, class Use>
PMSN_FN index_t with_at_most(index_t count, const Use& use) {
    if constexpr (MOST > 1)
        if (count < MOST) return with_at_most<MOST - 1>(count, use);
    use(Constant<MOST>());
    return MOST;
}

// Lane b of a row.
template <class L>
PMSN_FN L load_lane(const real_of<L>* row, index_t b) {
    return Plain<L>::load(row + b * lane_width<real_of<L>>());
}
template <class L>
PMSN_FN void store_lane(real_of<L>* row, index_t b, L lane) {
    Plain<L>::store(row + b * lane_width<real_of<L>>(), lane);
}

// Which elements of a lane are not zero, one bit each.
template <class L>
PMSN_FN unsigned nonzero_bits(L lane) {
    const auto nonzero = lane != L{};
    unsigned bits = 0;
    PMSN_UNROLL
    for (int i = 0; i < lane_width<real_of<L>>(); ++i) bits |= unsigned(nonzero[i] & 1) << i;
    return bits;
}
#if PMSN_LANE_BYTES == 64 && defined(__AVX512F__)
template <>
PMSN_FN unsigned nonzero_bits(float_lane lane) {
    return _mm512_cmp_ps_mask(lane, _mm512_setzero_ps(), _CMP_NEQ_UQ);
}
template <>
PMSN_FN unsigned nonzero_bits(double_lane lane) {
    return _mm512_cmp_pd_mask(lane, _mm512_setzero_pd(), _CMP_NEQ_UQ);
}
#elif PMSN_LANE_BYTES == 32 && defined(__AVX__)
template <>
PMSN_FN unsigned nonzero_bits(float_lane lane) {
    return _mm256_movemask_ps((__m256)(lane != float_lane{}));
}
template <>
PMSN_FN unsigned nonzero_bits(double_lane lane) {
    return _mm256_movemask_pd((__m256d)(lane != double_lane{}));
}
#elif PMSN_LANE_BYTES == 16 && defined(__SSE2__)
template <>
PMSN_FN unsigned nonzero_bits(float_lane lane) {
    return __builtin_ia32_movmskps((float_lane)(lane != float_lane{}));
}
template <>
PMSN_FN unsigned nonzero_bits(double_lane lane) {
    return __builtin_ia32_movmskpd((double_lane)(lane != double_lane{}));
}
#endif

// Neurons of one sample that sent something, in order.
struct Fired {
    int* neurons;
    int count;

    // From a row of spikes. There is room for all neurons and 16 more.
    template <class R>
    void list(const R* spikes, index_t blocks) {
        typedef lane_of<R> L;
        const index_t width = lane_width<R>();
        count = 0;
#if PMSN_LANE_BYTES == 64 && defined(__AVX512F__)
        const __m512i counting = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (index_t b = 0; b < blocks; ++b) {  // without a branch that cannot be foreseen
            const unsigned bits = nonzero_bits(load_lane<L>(spikes, b));
            const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(int(b * width)), counting);
            _mm512_storeu_si512(neurons + count, _mm512_maskz_compress_epi32(bits, numbers));
            count += __builtin_popcount(bits);
        }
#else
        const index_t together = 64 / width;
        for (index_t b = 0; b < blocks; b += together) {
            unsigned long long bits = 0;
            for (index_t i = b; i < b + together && i < blocks; ++i)
                bits |= (unsigned long long)nonzero_bits(load_lane<L>(spikes, i)) << ((i - b) * width);
            for (; bits; bits &= bits - 1) neurons[count++] = int(b * width) + __builtin_ctzll(bits);
        }
#endif
    }
};

// Adds to `current` the rows [*, pitch] of those that fired; WEIGHTED: times what they sent, which is 1 otherwise.
template <bool WEIGHTED, int W, class L>
PMSN_FN void add_rows(L (&current)[W], const real_of<L>* rows, index_t pitch, Fired fired, const real_of<L>* sent) {
    for (int k = 0; k < fired.count; ++k) {
        const real_of<L>* const row = rows + fired.neurons[k] * pitch;
        PMSN_UNROLL
        for (int w = 0; w < W; ++w) {
            const L weight = load_lane<L>(row, w);
            current[w] += WEIGHTED ? sent[fired.neurons[k]] * weight : weight;
        }
    }
}

// The adjoint of that for the rows: adds `grad` [blocks], times what they sent, to each.
template <bool WEIGHTED, class L>
static void add_to_rows(const real_of<L>* grad, index_t blocks, real_of<L>* rows, index_t pitch, Fired fired,
                        const real_of<L>* sent) {
    const auto add = [=](index_t b, auto number) {
        constexpr int W = number.value;
        L own[W];
        for (int w = 0; w < W; ++w) own[w] = load_lane<L>(grad, b + w);
        for (int k = 0; k < fired.count; ++k) {
            real_of<L>* const row = rows + fired.neurons[k] * pitch;
            PMSN_UNROLL
            for (int w = 0; w < W; ++w)
                store_lane(row, b + w,
                           load_lane<L>(row, b + w) + (WEIGHTED ? sent[fired.neurons[k]] * own[w] : own[w]));
        }
    };
    for (index_t b = 0; b < blocks;) b += with_at_most<ROW_LANES>(blocks - b, [=](auto number) { add(b, number); });
}

// out[n] = in[n] W for up to PRODUCT_SAMPLES rows of `blocks` lanes; W [C, C] in panels of PRODUCT_LANES columns of
// lanes, each [C][lanes], the last one with what is left.
template <class L>
static void product(const real_of<L>* in, index_t samples, index_t C, index_t blocks, const real_of<L>* panels,
                    real_of<L>* out) {
    const index_t width = lane_width<real_of<L>>(), pitch = blocks * width;
    const auto panel_sums = [=](index_t b, auto together, auto number) {
        constexpr int B = together.value, W = number.value;
        const real_of<L>*row = in, *panel = panels + b * width * C;
        L sums[B][W] = {};
        for (index_t j = 0; j < C; ++j, ++row, panel += W * width) {
            L weights[W];
            PMSN_UNROLL
            for (int w = 0; w < W; ++w) weights[w] = load_lane<L>(panel, w);
            PMSN_UNROLL
            for (int n = 0; n < B; ++n) {
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) sums[n][w] += row[n * pitch] * weights[w];
            }
        }
        for (int n = 0; n < B; ++n)
            for (int w = 0; w < W; ++w) store_lane(out + n * pitch, b + w, sums[n][w]);
    };
    with_at_most<PRODUCT_SAMPLES>(samples, [=](auto together) {
        for (index_t b = 0; b < blocks;)
            b += with_at_most<PRODUCT_LANES>(blocks - b, [=](auto number) { panel_sums(b, together, number); });
    });
}

PMSN_FN void ask_bytes(const void* memory, index_t bytes) {
    for (index_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)memory + i, 0, 2);
}

// Rows [*, C] in memory, of any type, as the passes read and write them: where they are, or brought to lanes
// [row][blocks] whose last one is filled up with zeros.
template <class L>
struct Rows {
    typedef real_of<L> R;
    void* const memory;
    const index_t storage, C, blocks;

    Rows(const void* m, index_t type, index_t channels)
        : memory((void*)m),
          storage(type),
          C(channels),
          blocks(ceil_div(channels, lane_width<R>())) {}

    struct Span {
        R* first;
        index_t pitch;
        R* row(index_t n) const { return first + n * pitch; }
    };

    bool direct() const {
        return memory && C % lane_width<R>() == 0 && storage == (sizeof(R) == 4 ? STORAGE_FLOAT : STORAGE_DOUBLE);
    }
    // Null reads as zero.
    Span read(index_t row, index_t count, L* lanes) const {
        if (direct()) return in_memory(row);
        if (!memory) clear(lanes, count * blocks);
        else by_storage([&](auto type) { bring<typename decltype(type)::memory>(row, count, lanes); });
        return in_cache(lanes);
    }
    // To write to; `finish` brings it to memory if need be.
    Span write(index_t row, L* lanes) const { return direct() ? in_memory(row) : in_cache(lanes); }
    void finish(index_t row, index_t count, const L* lanes) const {
        if (direct() || !memory) return;
        by_storage([&](auto type) { send<typename decltype(type)::memory>(row, count, lanes); });
    }
    // Asks for a row that will be needed soon: what an item reads at one step lies far from what it reads at the next.
    PMSN_FN void ask(index_t row) const {
        const index_t bytes = C * (storage == STORAGE_DOUBLE ? 8 : storage == STORAGE_FLOAT ? 4 : 2);
        if (memory) ask_bytes((const char*)memory + row * bytes, bytes);
    }

private:
    template <class Memory>
    struct Type {
        typedef Memory memory;
    };
    template <class Use>
    void by_storage(const Use& use) const {
        if constexpr (sizeof(R) == 4) {
            if (storage == STORAGE_HALF) return use(Type<Half>());
            if (storage == STORAGE_BFLOAT16) return use(Type<Bfloat16>());
        }
        use(Type<Plain<L>>());
    }
    template <class Memory>
    void bring(index_t row, index_t count, L* lanes) const {
        const index_t width = lane_width<R>(), whole = C / width;
        const typename Memory::element* from = (const typename Memory::element*)memory + row * C;
        for (; count > 0; --count, from += C, lanes += blocks) {
            for (index_t b = 0; b < whole; ++b) lanes[b] = Memory::load(from + b * width);
            if (whole < blocks) lanes[whole] = load_part<L, Memory>(from + whole * width, C - whole * width);
        }
    }
    template <class Memory>
    void send(index_t row, index_t count, const L* lanes) const {
        const index_t width = lane_width<R>(), whole = C / width;
        typename Memory::element* to = (typename Memory::element*)memory + row * C;
        for (; count > 0; --count, to += C, lanes += blocks) {
            for (index_t b = 0; b < whole; ++b) Memory::store(to + b * width, lanes[b]);
            if (whole < blocks) store_part<L, Memory>(to + whole * width, lanes[whole], C - whole * width);
        }
    }
    Span in_memory(index_t row) const { return {(R*)memory + row * C, C}; }
    Span in_cache(const L* lanes) const { return {(R*)lanes, blocks * lane_width<R>()}; }
};

}  // namespace PMSN_NAMESPACE
