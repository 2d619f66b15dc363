// A hidden compartment of PMSN that starts from rest, as what it then is to its real input: a real filter of second
// order. The same current for a third fewer operations than the complex compartment of pmsn.h takes. Of the filter
// 1 / ((1 - A/z) (1 - conj(A)/z)) it keeps the response w and the last change d of w:
//     d[t]   = d[t-1] + (x[t] - alpha w[t-2] + rho d[t-1])     alpha = |E|^2, rho = 2 Re(E), E = A - 1
//     w[t-1] = w[t-2] + d[t-1]
//     h[t]   = K (d[t] - conj(E) w[t-1])
// so that Re(h[t]) = K_real d[t] - gamma w[t-1] with gamma = Re(K conj(E)). Changes in place of w[t-2] (the delta
// operator: Middleton and Goodwin, IEEE Trans. Autom. Control 31, 1986) keep slow compartments about as exact as the
// complex form does; only fast oscillations suffer, so there is a limit. w lags one step behind d, so that a d waits
// for the one before by a product and an addition (8 cycles) and not by two products and an addition.
//
// Near A = -1 it is the other way round: changes from one step to the next are large, and sums of two small. With signs
//     d[t]   = s d[t-1] + (x[t] - alpha w[t-2] + rho d[t-1])   alpha = |E|^2, rho = 2 Re(E), E = A - s
//     w[t-1] = s w[t-2] + d[t-1]                               s = -1 where Re(A) < 0, else 1
// which is about as exact as the complex form at every frequency.
//
// The state (w, d) cannot hold every h: where K or the frequency is zero, many h share one. So a filter starts from
// rest, and nothing is asked of its final state but h itself.
#pragma once
#include "pmsn.h"

namespace PMSN_NAMESPACE {

// Whether a filter needs signs: from about 2 radians per step on in a slow compartment. Up to there the rounding errors
// without are a few times the complex form's at most, and often smaller.
template <class R>
PMSN_FN bool oscillates_fast(R E_real) {
    return !(E_real >= R(-1.5));
}

template <class L, int K>
struct FilterAdjoint {  // dL/dw, dL/dd
    L w[K], d[K];
};
enum Signs { NO_SIGNS, SIGN_BITS, SIGN_FACTORS };  // s is 1, or kept as its bit, or (CUDA) as a number
template <class L, int K, int SIGNS>
struct FiltersOf {
    typedef FilterAdjoint<L, K> Adjoint;
    typedef FiltersOf Sums;  // over time: dL by each coefficient
    static constexpr bool are_filters = true;
    L alpha[K], rho[K], K_real[K], gamma[K];

    PMSN_FN L times_s(int, L x) const { return x; }
};
template <class L, int K>
struct FiltersOf<L, K, SIGN_BITS> {
    typedef FilterAdjoint<L, K> Adjoint;
    typedef FiltersOf<L, K, NO_SIGNS> Sums;
    static constexpr bool are_filters = true;
    L alpha[K], rho[K], K_real[K], gamma[K], sign[K];  // -0 where s is -1, else 0

    PMSN_FN L times_s(int j, L x) const { return (L)((bits_of<L>)x ^ (bits_of<L>)sign[j]); }
};
template <class L, int K>
using Filters = FiltersOf<L, K, NO_SIGNS>;
template <class L, int K>
using SignedFilters = FiltersOf<L, K, SIGN_BITS>;
PMSN_FN constexpr index_t filter_planes(index_t k) { return coefficient_planes(k) + k; }  // with the signs

// Returns Re(sum_j h_j). In d += (x - alpha w) + rho d the brackets matter: d + x, rounded first, would lose most of a
// small x.
template <class L, int K, int SIGNS>
PMSN_FN L hidden_step(const FiltersOf<L, K, SIGNS>& f, L* w, L* d, L x) {
    L of_d = L{}, of_w = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L change = (x - f.alpha[j] * w[j]) + f.rho[j] * d[j];
        w[j] = f.times_s(j, w[j]) + d[j];
        d[j] = f.times_s(j, d[j]) + change;
        of_d = of_d + f.K_real[j] * d[j];
        of_w = of_w - f.gamma[j] * w[j];
    }
    return of_d + of_w;
}

// The current of a step enters the adjoint of the state after it, and that state, (w, d), the sums.
template <class L, int K, int SIGNS>
PMSN_FN void enter(const FiltersOf<L, K, SIGNS>& f, FilterAdjoint<L, K>& a, L dI) {
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) a.d[j] += f.K_real[j] * dI, a.w[j] -= f.gamma[j] * dI;
}
template <class L, int K>
PMSN_FN void enter(Filters<L, K>& sums, const L* w, const L* d, L dI) {
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) sums.K_real[j] += dI * d[j], sums.gamma[j] -= dI * w[j];
}

// One step back by the chain rule: from the adjoint of the state after step t to that of the state before, with its
// current. Leaves dL/dd[t] and returns its sum, the filters' part of dx[t].
template <class L, int K, int SIGNS>
PMSN_FN L filters_adjoint_step(const FiltersOf<L, K, SIGNS>& f, FilterAdjoint<L, K>& a, L* grad_d, L dI_before) {
    L dx = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L grad = grad_d[j] = a.d[j], grad_w = a.w[j];
        dx += grad;
        a.d[j] = f.times_s(j, grad) + ((grad_w + f.K_real[j] * dI_before) + f.rho[j] * grad);
        a.w[j] = (f.times_s(j, grad_w) - f.gamma[j] * dI_before) - f.alpha[j] * grad;
    }
    return dx;
}
// The same step for the sums. w is that of the state after step t and becomes that before, like d_before.
template <class L, int K, int SIGNS>
PMSN_FN void filters_sums_step(const FiltersOf<L, K, SIGNS>& f, Filters<L, K>& sums, L* w, const L* grad_d,
                               const L* d_before, L dI_before) {
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L d = d_before[j];
        w[j] = f.times_s(j, w[j] - d);
        sums.alpha[j] -= grad_d[j] * w[j];
        sums.rho[j] += grad_d[j] * d;
        sums.K_real[j] += dI_before * d;
        sums.gamma[j] -= dI_before * w[j];
    }
}

// Re(E) of a filter, from that of A - 1
template <class L>
PMSN_FN L filter_E_real(L E_real, bool with_signs) {
    const L from_minus_one = E_real < -1 ? E_real + 2 : E_real;
    return with_signs ? from_minus_one : E_real;
}
// Columns of k compartments, each as four lanes k apart: A - 1 and K to the coefficients of filters,
template <class L>
PMSN_FN void filters_from_modes(const L* modes, index_t k, bool with_signs, L* filters) {
    const L zero = L{}, minus_zero = splat<L>(real_of<L>(-0.0));
    for (index_t j = 0; j < k; ++j, ++modes, ++filters) {
        const L E_real = filter_E_real(modes[0], with_signs), E_imag = modes[k];
        const L K_real = modes[2 * k], K_imag = modes[3 * k];
        filters[0] = E_real * E_real + E_imag * E_imag;
        filters[k] = 2 * E_real;
        filters[2 * k] = K_real;
        filters[3 * k] = K_real * E_real + K_imag * E_imag;
        filters[4 * k] = modes[0] < -1 ? minus_zero : zero;
    }
}
// the state (w, d) to h = K (d - conj(E) w),
template <class L>
PMSN_FN void hidden_from_filters(const L* modes, index_t k, bool with_signs, L* state) {
    for (index_t j = 0; j < k; ++j, ++modes, ++state) {
        const L E_real = filter_E_real(modes[0], with_signs), E_imag = modes[k];
        const L K_real = modes[2 * k], K_imag = modes[3 * k];
        const L w = state[0], d = state[k];
        const L real = d - E_real * w, imag = E_imag * w;
        state[0] = K_real * real - K_imag * imag;
        state[k] = K_real * imag + K_imag * real;
    }
}
// and the gradients of the filters' coefficients to those of K and E.
template <class L>
PMSN_FN void gradients_from_filters(const L* modes, index_t k, bool with_signs, L* sums) {
    for (index_t j = 0; j < k; ++j, ++modes, ++sums) {
        const L E_real = filter_E_real(modes[0], with_signs), E_imag = modes[k];
        const L K_real = modes[2 * k], K_imag = modes[3 * k];
        const L alpha = sums[0], rho = sums[k], of_K = sums[2 * k], gamma = sums[3 * k];
        sums[0] = of_K + E_real * gamma;
        sums[k] = E_imag * gamma;
        sums[2 * k] = 2 * (E_real * alpha + rho) + K_real * gamma;
        sums[3 * k] = 2 * E_imag * alpha + K_imag * gamma;
    }
}

}  // namespace PMSN_NAMESPACE
