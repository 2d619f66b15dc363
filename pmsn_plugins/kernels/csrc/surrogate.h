// Surrogate derivatives g(x), x = u - v_threshold: the C form of rows of pmsn_plugins.functional.SURROGATES.
#pragma once
#include "lane.h"

namespace PMSN_NAMESPACE {

// The order is that of pmsn_plugins.kernels.calls.SURROGATES.
enum Surrogate {
    SURROGATE_TRIANGLE,
    SURROGATE_SIGMOID,
    SURROGATE_ATAN,
    SURROGATE_PIECEWISE_EXP,
    SURROGATE_SOFT_SIGN,
    SURROGATE_SUPER_SPIKE,
    SURROGATE_ERF,
    SURROGATE_LEAKY_K_RELU,
    SURROGATE_PIECEWISE_LEAKY_RELU,
    SURROGATE_FAST_SIGMOID,
    SURROGATE_STRAIGHT_THROUGH,
    SURROGATE_GIVEN,
    SURROGATE_COUNT = SURROGATE_GIVEN  // the given one is an argument, not a formula
};

template <class R>
struct SurrogateParameters {  // of the row, in its order
    R a, b, c;
};

template <int KIND, class L>
PMSN_FN L surrogate_derivative(L x, const SurrogateParameters<real_of<L>>& parameters) {
    typedef real_of<L> R;
    const R a = parameters.a, b = parameters.b, c = parameters.c;
    const R one = 1, half = R(0.5), pi = R(3.14159265358979323846);
    const L size = absolute(x);
    if (KIND == SURROGATE_TRIANGLE) return positive_part(a - (a * a) * size);
    if (KIND == SURROGATE_SIGMOID) {
        const L s = one / (one + exponential(-a * x));
        return a * s * (one - s);
    }
    if (KIND == SURROGATE_ATAN) {
        const L z = (half * pi * a) * x;
        return (half * a) / (one + z * z);
    }
    if (KIND == SURROGATE_PIECEWISE_EXP) return (half * a) * exponential(-a * size);
    if (KIND == SURROGATE_SOFT_SIGN) {
        const L z = one + a * size;
        return (half * a) / (z * z);
    }
    if (KIND == SURROGATE_SUPER_SPIKE) {
        const L z = one + size;
        return a / (z * z);
    }
    if (KIND == SURROGATE_ERF) {
        const L z = a * x;
        return (a * R(0.56418958354775628695)) * exponential(-(z * z));  // 1 / sqrt(pi)
    }
    if (KIND == SURROGATE_LEAKY_K_RELU) return x < L{} ? splat<L>(a) : splat<L>(b);
    if (KIND == SURROGATE_PIECEWISE_LEAKY_RELU) return size < splat<L>(b) ? splat<L>(a) : splat<L>(c);
    if (KIND == SURROGATE_FAST_SIGMOID) {
        const L z = one + a * size;
        return one / (z * z);
    }
    return splat<L>(one);  // SURROGATE_STRAIGHT_THROUGH
}

}  // namespace PMSN_NAMESPACE
