// PMSN over a few steps from rest, by its impulse response instead of its hidden compartments:
//     I[t]  = sum_{s <= t} r[t-s] x[s]         r[m] = Re(sum_j K_j A_j^m) + D [m = 0]
//     dx[t] = sum_{s >= t} r[s-t] dI[s]        dr[m] = sum_t x[t] dI[t+m]
// That is (T + 1) / 2 products per step in place of 6 k, and no state.
#pragma once
#include "cpu_tile.h"
#include "pmsn.h"

namespace PMSN_NAMESPACE {

enum { SHORT_STEPS = 16 };  // longest sequence for which this is less work

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
                               const L* dI, Columns<L> dx, AheadBack ahead) {
    const index_t T = STEPS ? STEPS : steps;
    for (index_t s = 0; s < rows; ++s, x += T, dI += T + 1)
        for (index_t t = 0; t < T; ++t) {
            L sum = L{};
            ahead.grad_out.template ask<sizeof(L)>(s, t), ahead.dx.template ask<sizeof(L)>(s, t);
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
    for (index_t j = 0; j < k; ++j) {
        L real = K_real[j], imag = K_imag[j];  // K A^m
        for (index_t m = 0; m < T; ++m) {
            response[m] += real;
            const L change = E_real[j] * real - E_imag[j] * imag;
            imag += E_real[j] * imag + E_imag[j] * real;
            real += change;
        }
    }
}

// dr -> dD, dK, dE (in the order of the sums): dK = sum_m dr[m] conj(A^m), dE = sum_m m dr[m] conj(K A^(m-1))
template <class L>
static void short_response_adjoint(const L* parameters, index_t k, index_t T, const L* grad_response, L* sums) {
    const L *E_real = parameters + 1, *E_imag = E_real + k, *K_real = E_imag + k, *K_imag = K_real + k;
    sums[0] = grad_response[0];
    for (index_t j = 0; j < k; ++j) {
        L A_real = splat<L>(1), A_imag = L{}, K_grad_real = L{}, K_grad_imag = L{}, slope_real = L{}, slope_imag = L{};
        for (index_t m = 0; m < T; ++m) {  // A^m
            K_grad_real += grad_response[m] * A_real;
            K_grad_imag -= grad_response[m] * A_imag;
            if (m + 1 < T) {
                const L weight = real_of<L>(m + 1) * grad_response[m + 1];
                slope_real += weight * A_real;
                slope_imag -= weight * A_imag;
            }
            const L change = E_real[j] * A_real - E_imag[j] * A_imag;
            A_imag += E_real[j] * A_imag + E_imag[j] * A_real;
            A_real += change;
        }
        sums[1 + j] = K_grad_real, sums[1 + k + j] = K_grad_imag;
        sums[1 + 2 * k + j] = K_real[j] * slope_real + K_imag[j] * slope_imag;
        sums[1 + 3 * k + j] = K_real[j] * slope_imag - K_imag[j] * slope_real;
    }
}

}  // namespace PMSN_NAMESPACE
