// A hidden compartment of PMSN that starts from rest, as what it then is to its real input: a real filter of second
// order. The same current for a third fewer operations than the complex compartment of pmsn.h takes. Of the filter
// 1 / ((1 - A/z) (1 - conj(A)/z)) it keeps the response w and the last change d of w:
//     d[t] = d[t-1] + (x[t] - alpha w[t-1] - beta d[t-1])      alpha = |1 - A|^2, beta = 1 - |A|^2
//     w[t] = w[t-1] + d[t]
//     h[t] = K (d[t] - conj(E) w[t-1])                         E = A - 1
// so that Re(h[t]) = K_real d[t] - gamma w[t-1] with gamma = Re(K conj(E)). Changes in place of w[t-2] (the delta
// operator: Middleton and Goodwin, IEEE Trans. Autom. Control 31, 1986) keep slow compartments about as exact as the
// complex form does; only fast oscillations suffer, so there is a limit.
//
// The state (w, d) cannot hold every h: where K or the frequency is zero, many h share one. So a filter starts from
// rest, and nothing is asked of its final state but h itself.
#pragma once
#include "pmsn.h"

namespace PMSN_NAMESPACE {

// Smallest E_real for a filter. About 2 radians per step in a slow compartment: up to there the filter's rounding
// errors are a few times the complex form's at most, and often smaller.
template <class R>
PMSN_FN bool suits_filter(R E_real) {
    return E_real >= R(-1.5);
}

template <class L, int K>
struct FilterState {
    L w[K], d[K];
};
template <class L, int K>
struct FilterAdjoint {  // dL/dw, dL/dd
    L w[K], d[K];
};
template <class L, int K>
struct Filters {
    typedef FilterAdjoint<L, K> Adjoint;
    typedef Filters<L, K> Sums;  // over time: dL by each coefficient
    static constexpr bool are_filters = true;
    L alpha[K], beta[K], K_real[K], gamma[K];
};

// Returns Re(sum_j h_j).
template <class L, int K>
PMSN_FN L hidden_step(const Filters<L, K>& f, L* w, L* d, L x) {
    L current = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        d[j] += x - f.beta[j] * d[j] - f.alpha[j] * w[j];
        current = current + f.K_real[j] * d[j] - f.gamma[j] * w[j];
        w[j] += d[j];
    }
    return current;
}

// One step back by the chain rule: from the state after step t and its adjoint to those before it, d_before. Returns
// the filters' part of dx[t].
template <class L, int K>
PMSN_FN L hidden_adjoint_step(const Filters<L, K>& f, FilterState<L, K>& after, FilterAdjoint<L, K>& a,
                              Filters<L, K>& sums, L dI, const L* d_before) {
    L dx = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L d = after.d[j], w_before = after.w[j] - d;
        const L grad_d = (a.d[j] + a.w[j]) + f.K_real[j] * dI;
        dx += grad_d;
        sums.alpha[j] -= grad_d * w_before;
        sums.beta[j] -= grad_d * d_before[j];
        sums.K_real[j] += dI * d;
        sums.gamma[j] -= dI * w_before;
        a.w[j] = a.w[j] - f.gamma[j] * dI - f.alpha[j] * grad_d;
        a.d[j] = grad_d - f.beta[j] * grad_d;
        after.w[j] = w_before, after.d[j] = d_before[j];
    }
    return dx;
}

// Columns of k compartments, each as four lanes k apart: E and K to the coefficients of filters,
template <class L>
static void filters_from_modes(const L* modes, index_t k, L* filters) {
    for (index_t j = 0; j < k; ++j, ++modes, ++filters) {
        const L E_real = modes[0], E_imag = modes[k], K_real = modes[2 * k], K_imag = modes[3 * k];
        const L alpha = E_real * E_real + E_imag * E_imag;
        filters[0] = alpha;
        filters[k] = -2 * E_real - alpha;
        filters[2 * k] = K_real;
        filters[3 * k] = K_real * E_real + K_imag * E_imag;
    }
}
// the state (w, d) to h = K (conj(A) d - conj(E) w),
template <class L>
static void hidden_from_filters(const L* modes, index_t k, L* state) {
    for (index_t j = 0; j < k; ++j, ++modes, ++state) {
        const L E_real = modes[0], E_imag = modes[k], K_real = modes[2 * k], K_imag = modes[3 * k];
        const L w = state[0], d = state[k];
        const L real = d + E_real * (d - w), imag = -E_imag * (d - w);
        state[0] = K_real * real - K_imag * imag;
        state[k] = K_real * imag + K_imag * real;
    }
}
// and the gradients of the filters' coefficients to those of K and E.
template <class L>
static void gradients_from_filters(const L* modes, index_t k, L* sums) {
    for (index_t j = 0; j < k; ++j, ++modes, ++sums) {
        const L E_real = modes[0], E_imag = modes[k], K_real = modes[2 * k], K_imag = modes[3 * k];
        const L alpha = sums[0], beta = sums[k], of_K = sums[2 * k], gamma = sums[3 * k];
        sums[0] = of_K + E_real * gamma;
        sums[k] = E_imag * gamma;
        sums[2 * k] = 2 * (E_real * (alpha - beta) - beta) + K_real * gamma;
        sums[3 * k] = 2 * E_imag * (alpha - beta) + K_imag * gamma;
    }
}

}  // namespace PMSN_NAMESPACE
