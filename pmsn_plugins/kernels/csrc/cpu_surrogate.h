// u -> g(u - theta) in place, for a row of lanes.
#pragma once
#include "cpu_lane.h"
#include "surrogate.h"

namespace PMSN_NAMESPACE {

template <class R, class Args>
static SurrogateParameters<R> surrogate_parameters(const Args& args) {
    return {R(args.surrogate_a), R(args.surrogate_b), R(args.surrogate_c)};
}

// The surrogate as a compile-time constant: calls `use(Constant<...>())`.
template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};
template <int KIND = 0, class Use>
static void with_surrogate(index_t kind, const Use& use) {
    if (kind == KIND) return use(Constant<KIND>());
    if constexpr (KIND + 1 < SURROGATE_COUNT) with_surrogate<KIND + 1>(kind, use);
}

template <class L>
static void surrogate_pass(index_t kind, L* u, index_t count, real_of<L> theta,
                           SurrogateParameters<real_of<L>> parameters) {
    with_surrogate(kind, [=](auto constant) {
        for (index_t t = 0; t < count; ++t)
            u[t] = surrogate_derivative<decltype(constant)::value>(u[t] - theta, parameters);
    });
}

}  // namespace PMSN_NAMESPACE
