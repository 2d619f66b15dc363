// PMSN over a few steps from rest, by its impulse response instead of its hidden compartments:
//     I[t]  = sum_{s <= t} r[t-s] x[s]         r[m] = Re(sum_j K_j A_j^m) + D [m = 0]
//     dx[t] = sum_{s >= t} r[s-t] dI[s]        dr[m] = sum_t x[t] dI[t+m]
// That is (T + 1) / 2 products per step in place of 6 k, and no state.
#pragma once
#include "cpu_tile.h"
#include "pmsn_response.h"

namespace PMSN_NAMESPACE {

// The passes are compiled for STEPS steps, or for any number (0).
template <int STEPS, class L, class Sink>
static void short_pass(const L* response, index_t rows, index_t steps, Columns<L> x, L* v, index_t v_pitch,
                       const Sink& to) {
    const index_t T = STEPS ? STEPS : steps;
    Sink sink = to;
    for (index_t s = 0; s < rows; ++s, v += v_pitch) {
        L past[STEPS ? STEPS : SHORT_STEPS];
        sink.begin(v);
        for (index_t t = 0; t < T; ++t) {
            past[t] = x.load(s, t);
            L current = response[0] * past[t];
            for (index_t m = 1; m <= t; ++m) current += response[m] * past[t - m];
            sink.step(s, t, past[t], current);
        }
        sink.end(v);
    }
}

// dI -> dx and dr. dI has a zero before every row.
template <int STEPS, class L>
static void short_adjoint_pass(const L* response, L* grad_response, index_t rows, index_t steps, const L* x,
                               const L* dI, Columns<L> dx, PrefetchBackward prefetch) {
    const index_t T = STEPS ? STEPS : steps;
    for (index_t s = 0; s < rows; ++s, x += T, dI += T + 1)
        for (index_t t = 0; t < T; ++t) {
            L sum = L{};
            prefetch.grad_out.template ask<sizeof(L)>(s, t), prefetch.dx.template ask<sizeof(L)>(s, t);
            for (index_t m = 0; m < T - t; ++m) {
                sum += response[m] * dI[1 + t + m];
                grad_response[m] += x[t] * dI[1 + t + m];
            }
            dx.store(s, t, sum);
        }
}

// parameters (D, E, K) -> r
template <class L>
static void short_response(const L* parameters, index_t k, index_t T, L* response) {
    const L *E_real = parameters + 1, *E_imag = E_real + k, *K_real = E_imag + k, *K_imag = K_real + k;
    for (index_t m = 0; m < T; ++m) response[m] = m == 0 ? parameters[0] : L{};
    for (index_t j = 0; j < k; ++j) add_response(E_real[j], E_imag[j], K_real[j], K_imag[j], T, response);
}

// dr -> dD, dK, dE, in the order of the sums
template <class L>
static void short_response_adjoint(const L* parameters, index_t k, index_t T, const L* grad_response, L* sums) {
    const L *E_real = parameters + 1, *E_imag = E_real + k, *K_real = E_imag + k, *K_imag = K_real + k;
    sums[0] = grad_response[0];
    for (index_t j = 0; j < k; ++j) {
        const ModeSums<L> mode = response_adjoint(E_real[j], E_imag[j], K_real[j], K_imag[j], T, grad_response);
        sums[1 + j] = mode.K_real, sums[1 + k + j] = mode.K_imag;
        sums[1 + 2 * k + j] = mode.E_real, sums[1 + 3 * k + j] = mode.E_imag;
    }
}

}  // namespace PMSN_NAMESPACE
