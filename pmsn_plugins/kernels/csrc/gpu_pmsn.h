// PMSN on CUDA: what its forward and backward kernels share. Compiled by NVRTC, besides gpu_common.h, with
//     PMSN_K, PMSN_RESET, PMSN_FIRE    constants of the layer
//     PMSN_STATE                       whether an initial state is given
//     PMSN_RECORDED                    whether the membranes after reset are asked for, or their gradients given
//
// When time is cut into segments, forward and backward start from the state (the adjoint) at the segment's border,
// which is found first: every segment is run from zero (*_local), and a thread goes through the segments and adds what
// the one before (after) contributes (*_carry).
#pragma once
#include "gpu_common.h"
#include "gpu_pmsn_filter.h"

namespace PMSN_NAMESPACE {

enum { K = PMSN_K, STATE = state_planes(K), ADJOINT = coefficient_planes(K), SUMS = ADJOINT };
enum { AHEAD = K > 8 ? 1 : 8 };  // steps whose loads are under way together: what the registers hold
// Blocks that a multiprocessor is to hold, where the registers of a thread are then still enough.
constexpr int resident(int blocks) { return K <= 4 && sizeof(R) == 4 ? blocks : 1; }
static_assert(PMSN_INTERVAL % AHEAD == 0, "a checkpoint lies where a batch of steps begins");

// The membrane passes floats or, with FIRE_MEMBRANE, the arithmetic's own type.
struct OutIsMembrane {
    typedef Plain type;
};
struct OutIsSpikes {
    typedef Memory type;
};
template <bool>
struct Out : OutIsSpikes {};
template <>
struct Out<true> : OutIsMembrane {};
typedef Out<PMSN_FIRE == FIRE_MEMBRANE>::type OutMemory;
typedef OutMemory::element OutElement;

// What a layer's hidden compartments are made of: COUNT of them, from `first` on.
template <int COUNT>
PMSN_FN void read_hidden(const PmsnArgs& args, index_t first, Modes<R, COUNT>& modes) {
    PMSN_UNROLL
    for (int j = 0; j < COUNT; ++j) {
        modes.E_real[j] = read(args.E_real, first + j), modes.E_imag[j] = read(args.E_imag, first + j);
        modes.K_real[j] = read(args.K_real, first + j), modes.K_imag[j] = read(args.K_imag, first + j);
    }
}
template <int COUNT>
using Filter = FiltersOf<R, COUNT, SIGN_FACTORS>;
template <int COUNT>
PMSN_FN void read_hidden(const PmsnArgs& args, index_t first, Filter<COUNT>& filters) {
    Modes<R, COUNT> modes;
    read_hidden(args, first, modes);
    filters_from_modes((const R*)&modes, COUNT, true, (R*)&filters);
    PMSN_UNROLL
    for (int j = 0; j < COUNT; ++j) filters.s[j] = modes.E_real[j] < -1 ? -1 : 1;
}

// From rest they are filters, whose state is (w, d), also in the checkpoints; but not more of them than the registers
// hold as well as complex ones.
enum { AS_FILTERS = !PMSN_STATE && K * sizeof(R) <= 24 };
struct AsModes {
    template <int COUNT>
    using hidden = Modes<R, COUNT>;
};
struct AsFilters {
    template <int COUNT>
    using hidden = Filter<COUNT>;
};
template <bool>
struct Computed : AsModes {};
template <>
struct Computed<true> : AsFilters {};
template <int COUNT>
using Hidden = typename Computed<AS_FILTERS>::template hidden<COUNT>;

struct Neuron {
    Hidden<K> hidden;
    R D;
    Threshold<R> threshold;

    PMSN_FN Neuron(const PmsnArgs& args, index_t channel)
        : D(read(args.D, channel)),
          threshold(args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta) {
        read_hidden(args, channel * K, hidden);
    }
};

// The checkpoint at `time`, a multiple of the interval: planes of M numbers, v, h_real and h_imag.
PMSN_FN R* checkpoint(const PmsnArgs& args, index_t time, index_t element) {
    return (R*)args.checkpoints + (quotient(time, PMSN_INTERVAL) - 1) * STATE * args.layout.M + element;
}

// With AS_FILTERS h_real and h_imag are w and d.
struct State {
    R v, h_real[K], h_imag[K];

    PMSN_FN void clear() {
        v = 0;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h_real[j] = h_imag[j] = 0;
    }
    PMSN_FN void load(const PmsnArgs& args, const Threshold<R>& threshold, index_t time, index_t element) {
        const index_t M = args.layout.M;
        if (time) {
            const R* from = checkpoint(args, time, element);
            v = from[0];
            PMSN_UNROLL
            for (int j = 0; j < K; ++j) h_real[j] = from[(1 + j) * M], h_imag[j] = from[(1 + K + j) * M];
        } else if (PMSN_STATE) {
            v = read(args.v, element);
            if (PMSN_RESET == RESET_MODULO) v = modulo_of_any(v, threshold);
            PMSN_UNROLL
            for (int j = 0; j < K; ++j) {
                h_real[j] = read(args.h_real, j * M + element);
                h_imag[j] = read(args.h_imag, j * M + element);
            }
        } else clear();
    }
    PMSN_FN void store(R* to, index_t M) const {
        to[0] = v;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) to[(1 + j) * M] = h_real[j], to[(1 + K + j) * M] = h_imag[j];
    }
    PMSN_FN void store_final(const PmsnArgs& args, index_t channel, index_t element) const {
        const index_t M = args.layout.M;
        write(args.v_after, element, v);
        if (!args.h_real_after) return;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            R h[] = {h_real[j], h_imag[j]};
            if (AS_FILTERS) {
                Modes<R, 1> mode;
                read_hidden(args, channel * K + j, mode);
                hidden_from_filters((const R*)&mode, 1, true, h);
            }
            write(args.h_real_after, j * M + element, h[0]);
            write(args.h_imag_after, j * M + element, h[1]);
        }
    }
    // one step from input x; returns the current
    PMSN_FN R step(const Neuron& n, R x, R& u, R& out) {
        R current = hidden_step(n.hidden, h_real, h_imag, x) + n.D * x;
        membrane_step<PMSN_RESET, PMSN_FIRE>(current, v, u, out, n.threshold);
        return current;
    }
};

// From segment to segment there is a thread for each element, and for each of its hidden compartments (blockIdx.y).
struct Carrier {
    index_t element;
    int j;
    bool active;

    PMSN_FN explicit Carrier(const Layout& layout)
        : element((index_t)blockIdx.x * THREADS + threadIdx.x),
          j(blockIdx.y),
          active(element < layout.M) {}
    PMSN_FN index_t mode(const Layout& layout) const {
        return remainder(quotient(element, layout.S), layout.C) * K + j;
    }
};

}  // namespace PMSN_NAMESPACE
