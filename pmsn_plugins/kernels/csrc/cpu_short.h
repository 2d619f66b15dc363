// PMSN over a few steps from rest, by its impulse response instead of its hidden compartments:
//     I[t]  = sum_{s <= t} r[t-s] x[s]         r[m] = Re(sum_j K_j A_j^m) + D [m = 0]
//     dx[t] = sum_{s >= t} r[s-t] dI[s]        dr[m] = sum_t x[t] dI[t+m]
// That is (T + 1) / 2 products per step in place of 6 k, and no state.
//
// Cycles for a lane of 8 float and one step (AVX2, Zen 4; a membrane and a spike are about 4, 2 products take 1), of
// the whole kernels, parameters and memory with it. "before": as long as they went block by block, and not row by row
// (cpu_pmsn_short.h):
//                                                                   forward   before   backward   before
//     [4, 32, 256], in the second cache                               11        14        26         31
//     [8, 32, 256]                                                    17        17        34         41
//     [16, 32, 256]                                                   21        21        48         59
//     [4, 32, 6272], in the third                                     10        15        29         35
//     [4, 32, 64, 1024], in memory, steps a power of two apart        14        62        31         76
// Products bound T = 16, and lines from memory T = 4: 64 and 96 bytes come and go for a lane. The sums over x dI go
// through the cache once for each row; registers would hold them only if one block went through all rows.
#pragma once
#include "cpu_pmsn_passes.h"
#include "pmsn_response.h"

namespace PMSN_NAMESPACE {

// The passes are compiled for STEPS steps, or for any number (0). They go through the blocks of one row after the
// other. In memory of a thread the rows of a block lie behind one another, and so do the blocks.
template <int STEPS, class L, class Sink>
static void short_pass(const L* responses, Span span, Columns<L> all_x, const Sink& to) {
    const index_t T = STEPS ? STEPS : span.steps;
    const L rest = L{};
    for (index_t s = 0; s < span.rows; ++s) {
        const L* response = responses;
        Columns<L> x = all_x;
        Sink sink = to;
        for (index_t b = 0; b < span.blocks; ++b) {
            L past[STEPS ? STEPS : SHORT_STEPS];
            sink.begin(&rest);
            for (index_t t = 0; t < T; ++t) {
                past[t] = x.load(s, t);
                L current = response[0] * past[t];
                for (index_t m = 1; m <= t; ++m) current += response[m] * past[t - m];
                sink.step(s, t, past[t], current);
            }
            response += span.parameter_pitch, x.next_block(), sink.next_block();
        }
    }
}

// What backward needs of RESET_MODULO: u as RecomputeModulo leaves it.
template <class L, class Threshold>
struct RecomputeShort {
    Columns<L> u;
    Threshold threshold;
    Prefetch prefetch_x;
    L v;

    PMSN_FN void next_block() { u.next_block(), prefetch_x.next_block(); }
    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L, L current) {
        L before, unused;
        prefetch_x.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, before, unused, threshold);
        u.store(s, t, current <= L{} ? splat<L>(-1) : before);
    }
};

// dI -> dx and dr. dI has a zero before every row.
template <int STEPS, class L>
static void short_adjoint_pass(const L* responses, L* grad_responses, Span span, Columns<L> all_x, const L* all_dI,
                               Columns<L> all_dx, PrefetchBackward prefetch) {
    const index_t T = STEPS ? STEPS : span.steps;
    for (index_t s = 0; s < span.rows; ++s) {
        const L *response = responses, *dI = all_dI + s * (T + 1) + 1;
        L* grad_response = grad_responses;
        Columns<L> x = all_x, dx = all_dx;
        PrefetchBackward ahead = prefetch;
        for (index_t b = 0; b < span.blocks; ++b) {
            L past[STEPS ? STEPS : SHORT_STEPS];
            for (index_t t = 0; t < T; ++t) {
                ahead.grad_out.template ask<sizeof(L)>(s, t), ahead.dx.template ask<sizeof(L)>(s, t);
                past[t] = x.load(s, t);
                L sum = L{};
                for (index_t m = 0; m < T - t; ++m) sum += response[m] * dI[t + m];
                dx.store(s, t, sum);
            }
            for (index_t m = 0; m < T; ++m) {
                L sum = grad_response[m];
                for (index_t t = 0; t < T - m; ++t) sum += past[t] * dI[t + m];
                grad_response[m] = sum;
            }
            response += span.parameter_pitch, grad_response += span.parameter_pitch, dI += span.rows * (T + 1);
            x.next_block(), dx.next_block(), ahead.grad_out.next_block(), ahead.dx.next_block();
        }
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
