// TC-LIF on CUDA: what its forward and backward kernels share. Compiled by NVRTC, besides gpu_common.h, with
//     PMSN_STEPS                     steps of an interval, or of a sequence that is shorter
//     PMSN_PRE_RESET, PMSN_STRICT    constants of the layer
//     PMSN_RECORDED                  whether the soma after every step is asked for, or its gradient given
//
// Loops over an interval are unrolled, so that all of its loads are under way together and what is kept of its steps is
// kept in registers.
#pragma once
#include "gpu_common.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

enum { STATE = 2, STEPS = PMSN_STEPS, IS_SHORT = STEPS < PMSN_INTERVAL };  // IS_SHORT: T is STEPS

struct Neuron : TclifCoefficients<R> {
    PMSN_FN Neuron(const TclifArgs& args, index_t channel) {
        b1 = read(args.b1, channel), b2 = read(args.b2, channel);
        a1 = (R)args.a1, a2 = (R)args.a2, gamma = (R)args.gamma;
        theta = args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta;
        fire_at = PMSN_STRICT ? next_number(theta) : theta;
    }
};

// v and d, after the resets, or before them with PMSN_PRE_RESET.
struct State {
    R v, d;

    PMSN_FN void load(const TclifArgs& args, index_t time, index_t element) {
        const R* kept = checkpoint(args, time, element);
        v = time ? kept[0] : read(args.v, element), d = time ? kept[args.layout.M] : read(args.d, element);
    }
    PMSN_FN void store(const TclifArgs& args, index_t time, index_t element) const {
        R* to = checkpoint(args, time, element);
        to[0] = v, to[args.layout.M] = d;
    }
    // The checkpoint at `time`, a multiple of the interval: planes of M numbers, v and d.
    static PMSN_FN R* checkpoint(const TclifArgs& args, index_t time, index_t element) {
        return (R*)args.checkpoints + (quotient(time, PMSN_INTERVAL) - 1) * STATE * args.layout.M + element;
    }
    // tclif_step, its sums in the order in which a step waits least for the one before
    PMSN_FN R step(const Neuron& n, R x, R& u_soma, R& u_dendrite) {
        const R before = v, reset = PMSN_PRE_RESET ? tclif_fire(v, n) : R(0);
        u_dendrite = n.b1 * before + (n.a1 * d + finite_or_nan(x));
        if (PMSN_PRE_RESET) u_dendrite -= reset * n.gamma;
        u_soma = n.b2 * u_dendrite + n.a2 * before;
        if (PMSN_PRE_RESET) u_soma -= reset * n.theta;
        const R spike = tclif_fire(u_soma, n);
        d = PMSN_PRE_RESET ? u_dendrite : u_dendrite - spike * n.gamma;
        v = after(n, u_soma);
        return spike;
    }
    static PMSN_FN R after(const Neuron& n, R u_soma) {  // v after a step
        return PMSN_PRE_RESET ? u_soma : u_soma - tclif_fire(u_soma, n) * n.theta;
    }
};

// The steps from `from` on, or the first `steps` of them.
PMSN_FN void load_interval(const Element* from, index_t M, R* to, int steps = STEPS) {
    PMSN_UNROLL
    for (int i = 0; i < STEPS; ++i) {
        to[i] = i < steps ? Memory::load(from) : R(0);  // not what it was: that would take a register for long
        advance(from, M);
    }
}

}  // namespace PMSN_NAMESPACE
