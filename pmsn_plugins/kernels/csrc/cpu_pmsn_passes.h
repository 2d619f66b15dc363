// The passes of PMSN over one block: pmsn.h over its columns, in groups of compartments.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "pmsn.h"

namespace PMSN_NAMESPACE {

// Hidden compartments share only x and I, so any number of them is done in groups that fit the registers.
#if PMSN_LANE_BYTES == 64
enum { FORWARD_GROUP = 4, ADJOINT_GROUP = 2 };
#else
enum { FORWARD_GROUP = 2, ADJOINT_GROUP = 1 };
#endif

// The passes below run over one block: `rows` rows of `steps` steps. k hidden compartments have
//     parameters D, E_real, E_imag, K_real, K_imag          1 + 4k lanes
//     state      v, h_real, h_imag                          1 + 2k for each row
//     adjoint    grad_v, lam_real, lam_imag, mu_real, mu_imag  1 + 4k for each row
//     sums       D, lam_real, lam_imag, mu_real, mu_imag    1 + 4k, over rows and steps
struct Span {
    index_t k, rows, steps;
};

template <class L, int K>
PMSN_FN Modes<L, K> load_modes(const L* parameters, index_t k) {
    Modes<L, K> modes;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        modes.E_real[j] = parameters[j];
        modes.E_imag[j] = parameters[k + j];
        modes.K_real[j] = parameters[2 * k + j];
        modes.K_imag[j] = parameters[3 * k + j];
    }
    return modes;
}

// What becomes of the current: kept (in part, until the last group), or charged into the membrane at once, so that the
// long chain of the reset is hidden behind the arithmetic of the next step.
template <class L>
struct KeepCurrent {
    Columns<L> current;

    PMSN_FN void begin(const L*) {}
    PMSN_FN void step(index_t s, index_t t, L sum) { current.store(s, t, sum); }
    PMSN_FN void end(L*) {}
};

// RESET_MODULO; fires at u >= fire_at.
template <class L>
struct FireModulo {
    Columns<L> out, v_seq;
    bool with_v_seq;
    Threshold<real_of<L>> threshold;
    real_of<L> fire_at;
    Ahead ahead_x, ahead_out;
    L v;

    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L current) {
        L u, unused;
        ahead_x.template ask<sizeof(L)>(s, t), ahead_out.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, u, unused, threshold);
        out.store(s, t, fire<FIRE_SPIKE>(u, fire_at));
        if (with_v_seq) v_seq.store(s, t, v);
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// What backward needs of RESET_MODULO: u, and the gradients of those steps where the current is positive.
template <class L>
struct RecomputeModulo {
    Columns<L> u, grad_out, gated;
    Threshold<real_of<L>> threshold;
    Ahead ahead_x, ahead_grad, ahead_dx;
    L v;

    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L current) {
        L before, unused;
        ahead_x.template ask<sizeof(L)>(s, t), ahead_grad.template ask<sizeof(L)>(s, t),
            ahead_dx.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, before, unused, threshold);
        u.store(s, t, before);
        gated.store(s, t, current > L{} ? grad_out.load(s, t) : L{});
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// Compartments first..first+K; `partial` is the current of those before.
template <int K, bool FIRST, class L, class Sink>
static void hidden_group(const L* parameters, L* state, Span span, index_t first, Columns<L> x, Columns<L> partial,
                         Sink sink) {
    const Modes<L, K> modes = load_modes<L, K>(parameters + 1 + first, span.k);
    const L D = parameters[0];
    for (index_t s = 0; s < span.rows; ++s, state += 1 + 2 * span.k) {
        L* real = state + 1 + first;
        L* imag = real + span.k;
        L h_real[K], h_imag[K];
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h_real[j] = real[j], h_imag[j] = imag[j];
        sink.begin(state);
        for (index_t t = 0; t < span.steps; ++t) {
            const L x_t = x.load(s, t), sum = hidden_step<L, K>(modes, h_real, h_imag, x_t);
            sink.step(s, t, sum + (FIRST ? D * x_t : partial.load(s, t)));
        }
        sink.end(state);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) real[j] = h_real[j], imag[j] = h_imag[j];
    }
}
template <bool FIRST, class L, class Sink>
static void last_hidden_group(const L* parameters, L* state, Span span, index_t first, Columns<L> x, Columns<L> partial,
                              Sink sink) {
    const index_t count = span.k - first;
    if (FORWARD_GROUP > 2 && count == 4) hidden_group<4, FIRST>(parameters, state, span, first, x, partial, sink);
    else if (FORWARD_GROUP > 2 && count == 3) hidden_group<3, FIRST>(parameters, state, span, first, x, partial, sink);
    else if (count == 2) hidden_group<2, FIRST>(parameters, state, span, first, x, partial, sink);
    else hidden_group<1, FIRST>(parameters, state, span, first, x, partial, sink);
}

// x -> current -> sink; advances the state. `partial` is scratch memory.
template <class L, class Sink>
static void hidden_pass(const L* parameters, L* state, Span span, Columns<L> x, Columns<L> partial, Sink sink) {
    const KeepCurrent<L> keep = {partial};
    index_t j = 0;
    if (span.k > FORWARD_GROUP) hidden_group<FORWARD_GROUP, true>(parameters, state, span, j, x, partial, keep);
    else return last_hidden_group<true>(parameters, state, span, j, x, partial, sink);
    for (j = FORWARD_GROUP; span.k - j > FORWARD_GROUP; j += FORWARD_GROUP)
        hidden_group<FORWARD_GROUP, false>(parameters, state, span, j, x, partial, keep);
    last_hidden_group<false>(parameters, state, span, j, x, partial, sink);
}

// Compartments first..first+K; the first group also takes D. dI has a zero before every row.
template <int K, bool FIRST, class L>
static void adjoint_group(const L* parameters, L* adjoint, L* sums, Span span, index_t first, const L* x, const L* dI,
                          Columns<L> partial, Columns<L> dx) {
    const index_t k = span.k;
    const Modes<L, K> modes = load_modes<L, K>(parameters + 1 + first, k);
    const L D = parameters[0];
    HiddenSums<L, K> total = {};
    L total_D = L{};
    adjoint += 1 + first;
    for (index_t s = 0; s < span.rows; ++s, adjoint += 1 + 4 * k, x += span.steps, dI += span.steps + 1) {
        HiddenAdjoint<L, K> a;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            a.lam_real[j] = adjoint[j] + dI[span.steps], a.lam_imag[j] = adjoint[k + j];
            a.mu_real[j] = adjoint[2 * k + j], a.mu_imag[j] = adjoint[3 * k + j];
        }
        for (index_t t = span.steps - 1; t >= 0; --t) {
            const L hidden = hidden_adjoint_step<L, K>(modes, a, total, x[t], dI[t]);
            if (FIRST) {
                dx.store(s, t, hidden + D * dI[t + 1]);
                total_D += dI[t + 1] * x[t];
            } else dx.store(s, t, hidden + partial.load(s, t));
        }
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            adjoint[j] = a.lam_real[j], adjoint[k + j] = a.lam_imag[j];
            adjoint[2 * k + j] = a.mu_real[j], adjoint[3 * k + j] = a.mu_imag[j];
        }
    }
    sums[0] += total_D;
    sums += 1 + first;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        sums[j] += total.lam_real[j], sums[k + j] += total.lam_imag[j];
        sums[2 * k + j] += total.mu_real[j], sums[3 * k + j] += total.mu_imag[j];
    }
}

// dI -> dx; advances the hidden part of the adjoint, and the sums. `partial` is scratch memory.
template <class L>
static void adjoint_pass(const L* parameters, L* adjoint, L* sums, Span span, const L* x, const L* dI,
                         Columns<L> partial, Columns<L> dx) {
    for (index_t j = 0; j < span.k;) {
        const bool wide = j + ADJOINT_GROUP <= span.k;
        const index_t next = j + (wide ? ADJOINT_GROUP : 1);
        const Columns<L>& to = next < span.k ? partial : dx;
        if (j == 0 && wide) adjoint_group<ADJOINT_GROUP, true>(parameters, adjoint, sums, span, j, x, dI, partial, to);
        else if (j == 0) adjoint_group<1, true>(parameters, adjoint, sums, span, j, x, dI, partial, to);
        else if (wide) adjoint_group<ADJOINT_GROUP, false>(parameters, adjoint, sums, span, j, x, dI, partial, to);
        else adjoint_group<1, false>(parameters, adjoint, sums, span, j, x, dI, partial, to);
        j = next;
    }
}

// What a membrane pass leaves: what is sent out, also the membrane after reset, or the membrane before it.
enum Keep { KEEP_OUT, KEEP_OUT_AND_V, KEEP_U };

// current -> kept; advances v, the first lane of the state.
template <class L>
struct MembranePass {
    typedef void (*function)(L* state, Span span, const L* current, L* kept, L* v_seq, real_of<L> theta);

    template <int RESET, int FIRE, int KEEP>
    static void run(L* state, Span span, const L* current, L* kept, L* v_seq, real_of<L> theta) {
        const Threshold<real_of<L>> threshold(theta);
        index_t i = 0;
        for (index_t s = 0; s < span.rows; ++s, state += 1 + 2 * span.k) {
            L v = state[0];
            for (index_t t = 0; t < span.steps; ++t, ++i) {
                L u, out;
                membrane_step<RESET, FIRE>(current[i], v, u, out, threshold);
                kept[i] = KEEP == KEEP_U ? u : out;
                if (KEEP == KEEP_OUT_AND_V) v_seq[i] = v;
            }
            state[0] = v;
        }
    }
    template <int RESET, int FIRE>
    static function select(Keep keep) {
        if (keep == KEEP_OUT) return run<RESET, FIRE, KEEP_OUT>;
        if (keep == KEEP_OUT_AND_V) return run<RESET, FIRE, KEEP_OUT_AND_V>;
        return run<RESET, FIRE, KEEP_U>;
    }
    template <int RESET>
    static function select(index_t fire, Keep keep) {
        if (fire == FIRE_SPIKE) return select<RESET, FIRE_SPIKE>(keep);
        if (fire == FIRE_STRICT) return select<RESET, FIRE_STRICT>(keep);
        if (fire == FIRE_BURST) return select<RESET, FIRE_BURST>(keep);
        return select<RESET, FIRE_MEMBRANE>(keep);
    }
    static function select(index_t reset, index_t fire, Keep keep) {
        if (reset == RESET_MODULO) return select<RESET_MODULO>(fire, keep);
        if (reset == RESET_NONE) return select<RESET_NONE>(fire, keep);
        return select<RESET_SERIAL>(fire, keep);
    }
};

// u -> d out / d u, in place
template <class L>
static void slope_pass(const PmsnArgs& args, L* u, index_t count, real_of<L> theta) {
    const real_of<L> one = 1;
    if (args.fire == FIRE_MEMBRANE) {
        for (index_t i = 0; i < count; ++i) u[i] = splat<L>(one);
    } else if (args.fire == FIRE_BURST) {
        for (index_t i = 0; i < count; ++i) u[i] = u[i] > L{} ? splat<L>(one / theta) : L{};
    } else {
        surrogate_pass(args.surrogate, u, count, theta, surrogate_parameters<real_of<L>>(args));
    }
}

// slopes -> dI; advances grad_v, the first lane of the adjoint.
template <int RESET, class L>
static void membrane_adjoint_loop(L* adjoint, Span span, const L* current, const L* slope, const L* grad_out,
                                  const L* grad_v_seq, L* dI, real_of<L> theta) {
    for (index_t s = 0; s < span.rows; ++s, adjoint += 1 + 4 * span.k) {
        L grad_v = adjoint[0];
        for (index_t t = span.steps - 1; t >= 0; --t) {
            const index_t i = s * span.steps + t;
            if (RESET != RESET_MODULO && grad_v_seq) grad_v += grad_v_seq[i];
            // RecomputeModulo has taken care of the sign of the current
            const L sign = RESET == RESET_MODULO ? splat<L>(1) : current[i];
            dI[i + s + 1] = membrane_adjoint_step<RESET>(sign, slope[i], grad_out[i], grad_v, theta);
        }
        adjoint[0] = grad_v;
    }
}
template <class L>
static void membrane_adjoint_pass(index_t reset, L* adjoint, Span span, const L* current, const L* slope,
                                  const L* grad_out, const L* grad_v_seq, L* dI, real_of<L> theta) {
    if (reset == RESET_MODULO)
        membrane_adjoint_loop<RESET_MODULO>(adjoint, span, current, slope, grad_out, grad_v_seq, dI, theta);
    else if (reset == RESET_NONE)
        membrane_adjoint_loop<RESET_NONE>(adjoint, span, current, slope, grad_out, grad_v_seq, dI, theta);
    else membrane_adjoint_loop<RESET_SERIAL>(adjoint, span, current, slope, grad_out, grad_v_seq, dI, theta);
}

}  // namespace PMSN_NAMESPACE
