// What is sent of the membrane, differentiated. Compiled by NVRTC, besides gpu_pmsn.h, with PMSN_SURROGATE.
#pragma once
#include "gpu_pmsn.h"

namespace PMSN_NAMESPACE {

// at step and element `at` of the sequence
PMSN_FN R slope_of(const PmsnArgs& args, R u, R theta, index_t at) {
    if (PMSN_SURROGATE == SURROGATE_GIVEN) return read(args.slopes, at);
    if (PMSN_FIRE == FIRE_MEMBRANE) return 1;
    const SurrogateParameters<R> parameters = {(R)args.surrogate_a, (R)args.surrogate_b, (R)args.surrogate_c};
    if (PMSN_FIRE == FIRE_BURST) return burst_slope<PMSN_SURROGATE>(u, theta, parameters);
    return surrogate_derivative<PMSN_SURROGATE>(u - theta, parameters);
}

}  // namespace PMSN_NAMESPACE
