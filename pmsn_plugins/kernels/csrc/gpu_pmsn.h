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
#include "pmsn.h"

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

struct Neuron {
    Modes<R, K> modes;
    R D;
    Threshold<R> threshold;

    PMSN_FN Neuron(const PmsnArgs& args, index_t channel)
        : D(read(args.D, channel)),
          threshold(args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta) {
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            modes.E_real[j] = read(args.E_real, channel * K + j), modes.E_imag[j] = read(args.E_imag, channel * K + j);
            modes.K_real[j] = read(args.K_real, channel * K + j), modes.K_imag[j] = read(args.K_imag, channel * K + j);
        }
    }
};

// The checkpoint at `time`, a multiple of the interval: planes of M numbers, v, h_real and h_imag.
PMSN_FN R* checkpoint(const PmsnArgs& args, index_t time, index_t element) {
    return (R*)args.checkpoints + (quotient(time, PMSN_INTERVAL) - 1) * STATE * args.layout.M + element;
}

// h += E h + x, whose input is a real number; returns I = Re(sum_j K_j h_j) + D x. A third of the work before I less
// than with K_j x for an input. It starts from rest, for no h is h / K where K is zero.
PMSN_FN R step_from_rest(const Neuron& n, R* h_real, R* h_imag, R x) {
    R current = n.D * x;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const R E_real = n.modes.E_real[j], E_imag = n.modes.E_imag[j];
        const R change_real = plus_product(minus_product(x, E_imag, h_imag[j]), E_real, h_real[j]);
        const R change_imag = plus_product(E_imag * h_real[j], E_real, h_imag[j]);
        h_real[j] += change_real;
        h_imag[j] += change_imag;
        current = plus_product(current, n.modes.K_real[j], h_real[j]);
        current = minus_product(current, n.modes.K_imag[j], h_imag[j]);
    }
    return current;
}

// Of a sequence that starts from rest it is h / K that is kept, also in the checkpoints.
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
    PMSN_FN void store_final(const PmsnArgs& args, const Neuron& n, index_t element) const {
        const index_t M = args.layout.M;
        write(args.v_after, element, v);
        if (!args.h_real_after) return;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            const R K_real = PMSN_STATE ? R(1) : n.modes.K_real[j], K_imag = PMSN_STATE ? R(0) : n.modes.K_imag[j];
            write(args.h_real_after, j * M + element, K_real * h_real[j] - K_imag * h_imag[j]);
            write(args.h_imag_after, j * M + element, K_real * h_imag[j] + K_imag * h_real[j]);
        }
    }
    // the hidden compartments' step from input x; returns the current
    PMSN_FN R hidden(const Neuron& n, R x) {
        return PMSN_STATE ? hidden_step<R, K>(n.modes, h_real, h_imag, x) + n.D * x
                          : step_from_rest(n, h_real, h_imag, x);
    }
    // one step from input x; returns the current
    PMSN_FN R step(const Neuron& n, R x, R& u, R& out) {
        R current = hidden(n, x);
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
