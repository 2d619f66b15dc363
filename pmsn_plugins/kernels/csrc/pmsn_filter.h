// A hidden compartment of PMSN that starts from rest, as what it then is to its real input: a real filter of second
// order. The same current with a third fewer operations than the complex compartment of pmsn.h takes. Of the filter
// 1 / ((1 - A/z) (1 - conj(A)/z)) it keeps the response w and the last change d of w:
//     d[t] = d[t-1] + (x[t] - alpha w[t-1] - beta d[t-1])      alpha = |1 - A|^2, beta = 1 - |A|^2
//     w[t] = w[t-1] + d[t]
//     h[t] = K (d[t] - conj(E) w[t-1])                         E = A - 1
// Changes in place of w[t-2] (the delta operator: Middleton and Goodwin, IEEE Trans. Autom. Control 31, 1986) keep slow
// compartments as exact as the complex form does, or more; only fast oscillations suffer, so there is a limit.
//
// The state (w, d) cannot hold every h: where K or the frequency is zero, many h share one. So a filter starts from
// rest, and its adjoint from zero.
#pragma once
#include "pmsn.h"

namespace PMSN_NAMESPACE {

// Smallest E_real for a filter. About 2 radians per step in a slow compartment: up to there the filter's rounding
// errors are no larger than the complex form's.
template <class R>
PMSN_FN bool suits_filter(R E_real) {
    return E_real >= R(-1.5);
}

template <class L, int K>
struct FilterAdjoint {
    L dp[K], p[K], dq[K], q[K];

    PMSN_FN void enter(L dI) {  // of the last step
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) dp[j] += dI;
    }
};
template <class L, int K>
struct FilterSums {  // over time
    L dp[K], p[K], dq[K], q[K];
};
template <class L, int K>
struct Filters {
    typedef FilterAdjoint<L, K> Adjoint;
    typedef FilterSums<L, K> Sums;
    L alpha[K], beta[K], K_real[K], gamma[K];  // gamma = Re(K conj(E))
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

// The adjoint of pmsn.h by the same filter, run backwards in time: p over dI, and q over p,
//     dp[t] = dp[t+1] + (dI[t] - alpha p[t+1] - beta dp[t+1])      p[t] = p[t+1] + dp[t]
//     dq[t] = dq[t+1] + (p[t] - alpha q[t+1] - beta dq[t+1])       q[t] = q[t+1] + dq[t]
//     lam[t] = dp[t] - E p[t+1]
//     mu[t]  = p[t+1] - 2i E_imag (A dq[t+2] - E q[t+2])
// One step back, with dp[t], p[t+1], dq[t+2] and q[t+2]; otherwise as hidden_adjoint_step there.
template <class L, int K>
PMSN_FN L hidden_adjoint_step(const Filters<L, K>& f, FilterAdjoint<L, K>& a, FilterSums<L, K>& sums, L x,
                              L dI_before) {
    L dx = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        dx = dx + f.K_real[j] * a.dp[j] - f.gamma[j] * a.p[j];
        sums.dp[j] += a.dp[j] * x;
        sums.p[j] += a.p[j] * x;
        sums.dq[j] += a.dq[j] * x;
        sums.q[j] += a.q[j] * x;
        a.dq[j] += a.p[j] - f.beta[j] * a.dq[j] - f.alpha[j] * a.q[j];
        a.q[j] += a.dq[j];
        a.p[j] += a.dp[j];
        a.dp[j] += dI_before - f.beta[j] * a.dp[j] - f.alpha[j] * a.p[j];
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
// and sums over filters to those over lam and mu.
template <class L>
static void sums_from_filters(const L* modes, index_t k, L* sums) {
    for (index_t j = 0; j < k; ++j, ++modes, ++sums) {
        const L E_real = modes[0], E_imag = modes[k];
        const L dp = sums[0], p = sums[k], dq = sums[2 * k], q = sums[3 * k];
        const L real = dq + E_real * (dq - q), imag = E_imag * (dq - q);
        sums[0] = dp - E_real * p;
        sums[k] = -E_imag * p;
        sums[2 * k] = p + 2 * E_imag * imag;
        sums[3 * k] = -2 * E_imag * real;
    }
}

}  // namespace PMSN_NAMESPACE
