// u -> g(u - theta) in place, for a row of lanes.
#pragma once
#include "cpu_lane.h"
#include "surrogate.h"

namespace PMSN_NAMESPACE {

template <class R, class Args>
static SurrogateParameters<R> surrogate_parameters(const Args& args) {
    return {R(args.surrogate_a), R(args.surrogate_b), R(args.surrogate_c)};
}

template <int KIND, class L>
static void surrogate_loop(L* u, index_t count, real_of<L> theta, const SurrogateParameters<real_of<L>>& parameters) {
    for (index_t t = 0; t < count; ++t) u[t] = surrogate_derivative<KIND>(u[t] - theta, parameters);
}

template <class L, int KIND = 0>
static void surrogate_pass(index_t kind, L* u, index_t count, real_of<L> theta,
                           const SurrogateParameters<real_of<L>>& parameters) {
    if (kind == KIND) return surrogate_loop<KIND>(u, count, theta, parameters);
    if constexpr (KIND + 1 < SURROGATE_COUNT) surrogate_pass<L, KIND + 1>(kind, u, count, theta, parameters);
}

}  // namespace PMSN_NAMESPACE
