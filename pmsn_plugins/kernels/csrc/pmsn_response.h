// The impulse response of a hidden compartment, r[m] = Re(K A^m) for m < T, and what goes back through it.
#pragma once
#include "pmsn.h"

namespace PMSN_NAMESPACE {

enum { SHORT_STEPS = 16 };  // longest sequence for which it is less work than the compartments

// Adds it to `response`.
template <class L>
PMSN_FN void add_response(L E_real, L E_imag, L K_real, L K_imag, index_t T, L* response) {
    PMSN_UNROLL
    for (index_t m = 0; m < T; ++m) {  // K A^m
        response[m] += K_real;
        const L change = E_real * K_real - E_imag * K_imag;
        K_imag += E_real * K_imag + E_imag * K_real;
        K_real += change;
    }
}

template <class L>
struct ModeSums {
    L K_real, K_imag, E_real, E_imag;
};

// dr -> dK = sum_m dr[m] conj(A^m), dE = sum_m m dr[m] conj(K A^(m-1))
template <class L>
PMSN_FN ModeSums<L> response_adjoint(L E_real, L E_imag, L K_real, L K_imag, index_t T, const L* grad_response) {
    L A_real = splat<L>(1), A_imag = L{}, slope_real = L{}, slope_imag = L{};
    ModeSums<L> sums = {L{}, L{}, L{}, L{}};
    PMSN_UNROLL
    for (index_t m = 0; m < T; ++m) {  // A^m
        sums.K_real += grad_response[m] * A_real;
        sums.K_imag -= grad_response[m] * A_imag;
        if (m + 1 < T) {
            const L weight = real_of<L>(m + 1) * grad_response[m + 1];
            slope_real += weight * A_real;
            slope_imag -= weight * A_imag;
        }
        const L change = E_real * A_real - E_imag * A_imag;
        A_imag += E_real * A_imag + E_imag * A_real;
        A_real += change;
    }
    sums.E_real = K_real * slope_real + K_imag * slope_imag;
    sums.E_imag = K_real * slope_imag - K_imag * slope_real;
    return sums;
}

}  // namespace PMSN_NAMESPACE
