// TC-LIF on CUDA: what its forward and backward kernels share. Compiled by NVRTC, besides gpu_common.h, with
//     PMSN_PRE_RESET, PMSN_STRICT    constants of the layer
//     PMSN_RECORDED                  whether the soma after every step is asked for, or its gradient given
#pragma once
#include "gpu_common.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

enum { STATE = 2, AHEAD = 16 };  // AHEAD: steps whose loads are under way together
static_assert(PMSN_INTERVAL % AHEAD == 0, "a checkpoint lies where a batch of steps begins");

struct Neuron : TclifCoefficients<R> {
    PMSN_FN Neuron(const TclifArgs& args, index_t channel) {
        b1 = read(args.b1, channel), b2 = read(args.b2, channel);
        a1 = (R)args.a1, a2 = (R)args.a2, gamma = (R)args.gamma;
        theta = args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta;
        fire_at = PMSN_STRICT ? next_number(theta) : theta;
    }
};
// The checkpoint at `time`, a multiple of the interval: planes of M numbers, v and d.
PMSN_FN R* checkpoint(const TclifArgs& args, index_t time, index_t element) {
    return (R*)args.checkpoints + (quotient(time, PMSN_INTERVAL) - 1) * STATE * args.layout.M + element;
}

}  // namespace PMSN_NAMESPACE
