// The passes of PMSN over one block: pmsn.h over its columns, in groups of compartments.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "pmsn_filter.h"

namespace PMSN_NAMESPACE {

// Hidden compartments share only x and I, so any number of them is done in groups that fit the registers.
#if PMSN_LANE_BYTES == 64
enum { FORWARD_GROUP = 4, ADJOINT_GROUP = 2 };
#else
enum { FORWARD_GROUP = 2, ADJOINT_GROUP = 1 };
#endif

// The passes below run over one block: `rows` rows of `steps` steps. k hidden compartments have
//     parameters D, E_real, E_imag, K_real, K_imag             1 + 4k lanes
//     state      v, h_real, h_imag                             1 + 2k for each row
//     adjoint    grad_v, lam_real, lam_imag, mu_real, mu_imag  1 + 4k for each row
//     sums       D, lam_real, lam_imag, mu_real, mu_imag       1 + 4k, over rows and steps
// where HIDDEN is Modes; where it is Filters, they have its fields instead, in the order of their declaration.
struct Span {
    index_t k, rows, steps;
};

// Fields for K of k compartments, each a lane for every compartment, from a column to `fields` and back.
template <int K, class Fields, class L>
PMSN_FN Fields load_fields(const L* column, index_t k) {
    Fields fields;
    PMSN_UNROLL
    for (int i = 0; i < int(sizeof(Fields) / sizeof(L)); ++i) ((L*)&fields)[i] = column[i / K * k + i % K];
    return fields;
}
template <int K, class Fields, class L>
PMSN_FN void store_fields(const Fields& fields, L* column, index_t k) {
    PMSN_UNROLL
    for (int i = 0; i < int(sizeof(Fields) / sizeof(L)); ++i) column[i / K * k + i % K] = ((const L*)&fields)[i];
}

// What becomes of the current: kept (in part, until the last group), or charged into the membrane at once, so that the
// long chain of the reset is hidden behind the arithmetic of the next step.
template <class L>
struct KeepCurrent {
    Columns<L> current;

    PMSN_FN void begin(const L*) {}
    PMSN_FN void step(index_t s, index_t t, L, L sum) { current.store(s, t, sum); }
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
    PMSN_FN void step(index_t s, index_t t, L, L current) {
        L u, unused;
        ahead_x.template ask<sizeof(L)>(s, t), ahead_out.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, u, unused, threshold);
        out.store(s, t, fire<FIRE_SPIKE>(u, fire_at));
        if (with_v_seq) v_seq.store(s, t, v);
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// What backward needs of RESET_MODULO: x, and u where the current is positive, or NaN. Elsewhere nothing flows back,
// and u is said to be negative, which it never is.
template <class L>
struct RecomputeModulo {
    Columns<L> x, u;
    Threshold<real_of<L>> threshold;
    Ahead ahead_x;
    L v;

    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L x_t, L current) {
        L before, unused;
        ahead_x.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, before, unused, threshold);
        x.store(s, t, x_t);
        u.store(s, t, current <= L{} ? splat<L>(-1) : before);
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// Compartments first..first+K; `partial` is the current of those before. Filters leave their last change before each
// step in `changes` if it is not null: for a row, [steps, k].
template <template <class, int> class Hidden, int K, bool FIRST, class L, class Sink>
static void hidden_group(const L* parameters, L* state, L* changes, Span span, index_t first, Columns<L> x,
                         Columns<L> partial, const Sink& to) {
    const auto hidden = load_fields<K, Hidden<L, K>>(parameters + 1 + first, span.k);
    const L D = parameters[0];
    Sink sink = to;  // no stores to memory can change this one
    index_t change = first;
    for (index_t s = 0; s < span.rows; ++s, state += 1 + 2 * span.k) {
        L* real = state + 1 + first;
        L* imag = real + span.k;
        L h_real[K], h_imag[K];  // w and d of a filter
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h_real[j] = real[j], h_imag[j] = imag[j];
        sink.begin(state);
        for (index_t t = 0; t < span.steps; ++t, change += span.k) {
            if (Hidden<L, K>::are_filters && changes) {
                PMSN_UNROLL
                for (int j = 0; j < K; ++j) changes[change + j] = h_imag[j];
            }
            const L x_t = x.load(s, t), sum = hidden_step<L, K>(hidden, h_real, h_imag, x_t);
            sink.step(s, t, x_t, sum + (FIRST ? D * x_t : partial.load(s, t)));
        }
        sink.end(state);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) real[j] = h_real[j], imag[j] = h_imag[j];
    }
}

// x -> current -> to; advances the state. `partial` is scratch memory.
template <template <class, int> class Hidden, class L, class Sink>
static void hidden_pass(const L* parameters, L* state, L* changes, Span span, Columns<L> x, Columns<L> partial,
                        const Sink& to) {
    const auto group = [&](auto size, auto is_first, index_t first, const auto& sink) {
        hidden_group<Hidden, decltype(size)::value, decltype(is_first)::value>(parameters, state, changes, span, first,
                                                                               x, partial, sink);
    };
    const auto last_group = [&](auto is_first, index_t first) {
        const index_t count = span.k - first;
        if (FORWARD_GROUP > 2 && count == 4) group(Constant<4>(), is_first, first, to);
        else if (FORWARD_GROUP > 2 && count == 3) group(Constant<3>(), is_first, first, to);
        else if (count == 2) group(Constant<2>(), is_first, first, to);
        else group(Constant<1>(), is_first, first, to);
    };
    const KeepCurrent<L> keep = {partial};
    if (span.k <= FORWARD_GROUP) return last_group(Constant<true>(), 0);
    group(Constant<FORWARD_GROUP>(), Constant<true>(), 0, keep);
    index_t j = FORWARD_GROUP;
    for (; span.k - j > FORWARD_GROUP; j += FORWARD_GROUP) group(Constant<FORWARD_GROUP>(), Constant<false>(), j, keep);
    last_group(Constant<false>(), j);
}

// What the way back needs of the way there: x, dL/dI (with a zero before every row), and of Filters the state at the
// end and the changes.
template <class L>
struct Forth {
    const L *x, *dI, *state, *changes;
};

// Compartments first..first+K; the first group also takes D, and asks for grad_out, the last one for dx.
template <template <class, int> class Hidden, int K, bool FIRST, class L>
static void adjoint_group(const L* parameters, L* adjoint, L* sums, Span span, index_t first, Forth<L> forth,
                          Columns<L> partial, Columns<L> dx, AheadBack ahead) {
    typedef typename Hidden<L, K>::Adjoint Adjoint;
    typedef typename Hidden<L, K>::Sums Sums;
    constexpr bool filters = Hidden<L, K>::are_filters;
    const index_t k = span.k;
    const bool last = first + K == k;
    const auto hidden = load_fields<K, Hidden<L, K>>(parameters + 1 + first, k);
    const L D = parameters[0];
    Sums total = {};
    L total_D = L{};
    adjoint += 1 + first;
    for (index_t s = 0; s < span.rows; ++s, adjoint += 1 + 4 * k) {
        const L *x = forth.x + s * span.steps, *dI = forth.dI + s * (span.steps + 1);
        auto after = load_fields<K, FilterState<L, K>>(forth.state + s * (1 + 2 * k) + 1 + first, k);
        Adjoint a = load_fields<K, Adjoint>(adjoint, k);
        if constexpr (!filters) a.enter(dI[span.steps]);
        for (index_t t = span.steps - 1; t >= 0; --t) {
            L part;
            if (FIRST) ahead.grad_out.template ask<sizeof(L)>(s, t);
            if (last) ahead.dx.template ask<sizeof(L)>(s, t);
            if constexpr (filters)
                part = hidden_adjoint_step<L, K>(hidden, after, a, total, dI[t + 1],
                                                 forth.changes + (s * span.steps + t) * k + first);
            else part = hidden_adjoint_step<L, K>(hidden, a, total, x[t], dI[t]);
            if (FIRST) {
                dx.store(s, t, part + D * dI[t + 1]);
                total_D += dI[t + 1] * x[t];
            } else dx.store(s, t, part + partial.load(s, t));
        }
        store_fields<K>(a, adjoint, k);
    }
    sums[0] += total_D;
    sums += 1 + first;
    PMSN_UNROLL
    for (int i = 0; i < 4 * K; ++i) sums[i / K * k + i % K] += ((const L*)&total)[i];
}

// dI -> dx; advances the hidden part of the adjoint, and the sums. `partial` is scratch memory.
template <template <class, int> class Hidden, class L>
static void adjoint_pass(const L* parameters, L* adjoint, L* sums, Span span, Forth<L> forth, Columns<L> partial,
                         Columns<L> dx, AheadBack ahead) {
    const auto group = [&](auto size, auto is_first, index_t first) {
        constexpr int K = decltype(size)::value;
        adjoint_group<Hidden, K, decltype(is_first)::value>(parameters, adjoint, sums, span, first, forth, partial,
                                                            first + K < span.k ? partial : dx, ahead);
    };
    index_t j = span.k < ADJOINT_GROUP ? 1 : ADJOINT_GROUP;
    if (j == 1) group(Constant<1>(), Constant<true>(), 0);
    else group(Constant<ADJOINT_GROUP>(), Constant<true>(), 0);
    for (; j + ADJOINT_GROUP <= span.k; j += ADJOINT_GROUP) group(Constant<ADJOINT_GROUP>(), Constant<false>(), j);
    for (; j < span.k; ++j) group(Constant<1>(), Constant<false>(), j);
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
                L I = current[i], u, out;
                membrane_step<RESET, FIRE>(I, v, u, out, threshold);
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
        if (reset == RESET_CUMULATIVE) return select<RESET_CUMULATIVE>(fire, keep);
        if (reset == RESET_MEMORYLESS) return select<RESET_MEMORYLESS>(fire, keep);
        return select<RESET_SERIAL>(fire, keep);
    }
};

// u -> d out / d u of FIRE_BURST
template <class L>
static void burst_slope_pass(const PmsnArgs& args, const L* u, L* slopes, index_t count, real_of<L> theta) {
    const auto parameters = surrogate_parameters<real_of<L>>(args);
    with_surrogate(args.surrogate, [=](auto kind) {
        for (index_t i = 0; i < count; ++i) slopes[i] = burst_slope<decltype(kind)::value>(u[i], theta, parameters);
    });
}

// Calls `use(slope)` with d out / d u as a function slope(u, i) of lane i; `given` are slopes that are known already.
template <class L, class Use>
static void with_slope(const PmsnArgs& args, const L* given, real_of<L> theta, const Use& use) {
    const real_of<L> one = 1;
    if (given) return use([=](L, index_t i) { return given[i]; });
    if (args.fire == FIRE_MEMBRANE) return use([=](L, index_t) { return splat<L>(one); });
    const auto parameters = surrogate_parameters<real_of<L>>(args);
    with_surrogate(args.surrogate, [&](auto kind) {
        use([=](L u, index_t) { return surrogate_derivative<decltype(kind)::value>(u - theta, parameters); });
    });
}

// u, as RecomputeModulo leaves it -> dI
template <class L>
static void modulo_adjoint_pass(const PmsnArgs& args, Span span, const L* u, const L* given, Columns<L> grad_out, L* dI,
                                real_of<L> theta) {
    with_slope(args, given, theta, [=](auto slope) {
        for (index_t s = 0; s < span.rows; ++s)
            for (index_t t = 0; t < span.steps; ++t) {
                const index_t i = s * span.steps + t;
                const L grad_u = grad_out.load(s, t) * slope(u[i], i);
                dI[i + s + 1] = u[i] < L{} ? L{} : grad_u;
            }
    });
}

// u -> dI, for the resets that a gradient flows through; advances grad_v, the first lane of the adjoint.
template <int RESET, class L>
static void membrane_adjoint_pass(const PmsnArgs& args, L* adjoint, Span span, const L* u, const L* given,
                                  const L* grad_out, const L* grad_v_seq, L* dI, real_of<L> theta) {
    with_slope(args, given, theta, [=](auto slope) {
        L* to = adjoint;
        for (index_t s = 0; s < span.rows; ++s, to += 1 + 4 * span.k) {
            L grad_v = to[0];
            for (index_t t = span.steps - 1; t >= 0; --t) {
                const index_t i = s * span.steps + t;
                if (grad_v_seq) grad_v += grad_v_seq[i];
                dI[i + s + 1] = membrane_adjoint_step<RESET>(slope(u[i], i), grad_out[i], grad_v, theta);
            }
            to[0] = grad_v;
        }
    });
}

}  // namespace PMSN_NAMESPACE
