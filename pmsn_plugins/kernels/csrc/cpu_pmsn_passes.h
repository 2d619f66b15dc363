// The passes of PMSN over one block: pmsn.h over its columns, in groups of compartments.
//
// What bounds them, in cycles for one step of one block of floats with four filters (Zen 4: two units multiply, two
// add). In lanes of 32 bytes, from the first cache: forward 16, recompute 17, surrogate 3, adjoint 12, sums 11. The
// multiplying units alone would take 10, 10, 2, 8 and 8. No chain from step to step is longer than 8; but a current and
// its membrane are done some 45 cycles after their x, and as much of the steps that follow as the processor can hold
// meanwhile is not enough to fill every unit. In lanes of 64 bytes, whose units are half as many: 23, 23, 5, and 39 for
// adjoint and sums in one.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "pmsn_filter.h"

namespace PMSN_NAMESPACE {

// Over complex compartments filters with signs gain a tenth to a fifth of backward in 32 registers. With 16 the signs
// come from memory, each several times per step, and forward loses as much as backward gains.
enum { SIGNS = PMSN_LANE_BYTES == 64 };

// Hidden compartments share only x and I, so any number of them is done in groups that fit the registers. With 16 of
// these the adjoint of a group of filters and its sums do not fit together, and are two passes.
#if PMSN_LANE_BYTES == 64 || defined(__aarch64__)
enum { FORWARD_GROUP = 4, ADJOINT_GROUP = 2, APART = 0, APART_ADJOINT_GROUP = 0, APART_SUMS_GROUP = 0 };
#else
enum { FORWARD_GROUP = 4, ADJOINT_GROUP = 2, APART = 1, APART_ADJOINT_GROUP = 4, APART_SUMS_GROUP = 2 };
#endif

// The passes below run over one block after the other: `rows` rows of `steps` steps. k hidden compartments have
//     parameters D, E_real, E_imag, K_real, K_imag             1 + 4k lanes
//     state      v, h_real, h_imag                             1 + 2k for each row
//     adjoint    grad_v, lam_real, lam_imag, mu_real, mu_imag  1 + 4k for each row
//     sums       D, lam_real, lam_imag, mu_real, mu_imag       1 + 4k, over rows and steps
// where HIDDEN is Modes; where it is Filters, they have its fields instead, in the order of their declaration.
struct Span {
    index_t k, rows, steps;
    index_t blocks = 1, parameter_pitch = 0, state_pitch = 0;  // to the next, in lanes
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

    PMSN_FN KeepCurrent block(index_t b) const { return {current.block(b)}; }
    PMSN_FN void next_block() { current.next_block(); }
    PMSN_FN void begin(const L*) {}
    PMSN_FN void step(index_t s, index_t t, L, L sum) { current.store(s, t, sum); }
    PMSN_FN void end(L*) {}
};

// Calls `use(threshold)`. A test of theta within a loop over time would keep its operations from being interleaved.
template <class L, class Use>
static void with_threshold(real_of<L> theta, const Use& use) {
    if constexpr (floor_is_fast<L>)
        if (theta == 1) return use(UnitThreshold<real_of<L>>());
    use(Threshold<real_of<L>>(theta));
}

// RESET_MODULO; fires at u >= fire_at. FIRST_LEVEL: the cache that the next x is asked for. What is stored to goes to
// the second one: in the first it would take the places of x.
template <class L, class Threshold, bool FIRST_LEVEL = Prefetch::NEAR>
struct FireModulo {
    Columns<L> out, v_seq;
    bool with_v_seq;
    Threshold threshold;
    real_of<L> fire_at;
    Prefetch prefetch_x, prefetch_out;
    L v;

    PMSN_FN FireModulo block(index_t b) const {
        return {out.block(b),        v_seq.block(b),        with_v_seq, threshold, fire_at,
                prefetch_x.block(b), prefetch_out.block(b), L{}};
    }
    PMSN_FN void next_block() {
        out.next_block(), v_seq.next_block(), prefetch_x.next_block(), prefetch_out.next_block();
    }
    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L, L current) {
        L u, unused;
        prefetch_x.template ask<sizeof(L), FIRST_LEVEL>(s, t), prefetch_out.template ask<sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, u, unused, threshold);
        out.store(s, t, fire<FIRE_SPIKE>(u, fire_at));
        if (with_v_seq) v_seq.store(s, t, v);
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// What backward needs of RESET_MODULO: x, unless it has been BROUGHT there, and u where the current is positive, or
// NaN. Elsewhere nothing flows back, and u is said to be negative, which it never is.
template <bool BROUGHT, class L, class Threshold>
struct RecomputeModulo {
    Columns<L> x, u;
    Threshold threshold;
    Prefetch prefetch;
    L v;

    PMSN_FN RecomputeModulo block(index_t) const { return *this; }
    PMSN_FN void begin(const L* state) { v = *state; }
    PMSN_FN void step(index_t s, index_t t, L x_t, L current) {
        L before, unused;
        prefetch.template ask<BROUGHT ? ASKED_BLOCKS * sizeof(L) : sizeof(L)>(s, t);
        membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, before, unused, threshold);
        if (!BROUGHT) x.store(s, t, x_t);
        u.store(s, t, current <= L{} ? splat<L>(-1) : before);
    }
    PMSN_FN void end(L* state) { *state = v; }
};

// Compartments first..first+K; `partial` is the current of those before. With CHANGES, Filters leave their last change
// before each step in `changes`: for a row, [steps, k].
template <template <class, int> class Hidden, int K, bool FIRST, bool CHANGES, class L, class Sink>
static void hidden_group(const L* all_parameters, L* all_states, L* changes, Span span, index_t first, Columns<L> all_x,
                         Columns<L> all_partial, const Sink& to) {
    index_t change = first;
    for (index_t b = 0; b < span.blocks; ++b) {
        const L* parameters = all_parameters + b * span.parameter_pitch;
        L* state = all_states + b * span.state_pitch;
        const auto hidden = load_fields<K, Hidden<L, K>>(parameters + 1 + first, span.k);
        const L D = parameters[0];
        const Columns<L> x = all_x.block(b), partial = all_partial.block(b);
        Sink sink = to.block(b);  // no stores to memory can change this one
        for (index_t s = 0; s < span.rows; ++s, state += 1 + 2 * span.k) {
            L* real = state + 1 + first;
            L* imag = real + span.k;
            L h_real[K], h_imag[K];  // w and d of a filter
            PMSN_UNROLL
            for (int j = 0; j < K; ++j) h_real[j] = real[j], h_imag[j] = imag[j];
            sink.begin(state);
            const auto current = [&](index_t t, L x_t) __attribute__((always_inline)) {
                if (Hidden<L, K>::are_filters && CHANGES) {
                    PMSN_UNROLL
                    for (int j = 0; j < K; ++j) changes[change + j] = h_imag[j];
                }
                change += span.k;
                const L sum = hidden_step(hidden, h_real, h_imag, x_t);
                return FIRST ? plus_product(sum, D, x_t) : sum + partial.load(s, t);
            };
            // what becomes of a current comes a step later, when it no longer has to be waited for
            L x_t = x.load(s, 0), I = current(0, x_t);
            for (index_t t = 1; t < span.steps; ++t) {
                const L next_x = x.load(s, t), next_I = current(t, next_x);
                sink.step(s, t - 1, x_t, I);
                x_t = next_x, I = next_I;
            }
            sink.step(s, span.steps - 1, x_t, I);
            sink.end(state);
            PMSN_UNROLL
            for (int j = 0; j < K; ++j) real[j] = h_real[j], imag[j] = h_imag[j];
        }
    }
}

// x -> current -> to; advances the state. `partial` is scratch memory.
template <template <class, int> class Hidden, bool CHANGES, class L, class Sink>
static void hidden_pass(const L* parameters, L* state, L* changes, Span span, Columns<L> x, Columns<L> partial,
                        const Sink& to) {
    const auto group = [&](auto size, auto is_first, index_t first, const auto& sink) {
        hidden_group<Hidden, decltype(size)::value, decltype(is_first)::value, CHANGES>(parameters, state, changes,
                                                                                        span, first, x, partial, sink);
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

// What backward needs of forward: x, dL/dI (with a zero before every row), and of Filters the state at the
// end, the changes, and where APART memory for as many gradients of them.
template <class L>
struct Saved {
    const L *x, *dI, *state, *changes;
    L* grad_changes;
};

// What a pass does of backward.
enum Way { BACK = 1, SUMS = 2, ASK = 4 };

// Compartments first..first+K; the first group also takes D. To ASK, the first one asks for grad_out, the last one for
// dx.
template <template <class, int> class Hidden, int K, int WAY, bool FIRST, bool LAST, class L>
static void adjoint_group(const L* parameters, L* adjoint, L* sums, Span span, index_t first, Saved<L> saved,
                          Columns<L> partial, Columns<L> dx, PrefetchBackward prefetch) {
    typedef typename Hidden<L, K>::Adjoint Adjoint;
    typedef typename Hidden<L, K>::Sums Sums;
    constexpr bool filters = Hidden<L, K>::are_filters, back = WAY & BACK, with_sums = WAY & SUMS;
    const index_t k = span.k;
    const auto hidden = load_fields<K, Hidden<L, K>>(parameters + 1 + first, k);
    const L D = parameters[0];
    Sums total = {};
    L total_D = L{};
    adjoint += 1 + first;
    for (index_t s = 0; s < span.rows; ++s, adjoint += coefficient_planes(k)) {
        const L *x = saved.x + s * span.steps, *dI = saved.dI + s * (span.steps + 1);
        const L* const state = saved.state + s * state_planes(k) + 1 + first;
        const index_t change = s * span.steps * k + first;
        Adjoint a = load_fields<K, Adjoint>(adjoint, k);
        L w[K];
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) w[j] = state[j];
        if constexpr (!filters) a.enter(dI[span.steps]);
        if constexpr (filters && back) enter(hidden, a, dI[span.steps]);
        if constexpr (filters && with_sums) enter(total, w, state + k, dI[span.steps]);
        for (index_t t = span.steps - 1; t >= 0; --t) {
            if (FIRST && WAY & ASK) prefetch.grad_out.template ask<sizeof(L)>(s, t);
            if (LAST && WAY & ASK) prefetch.dx.template ask<sizeof(L)>(s, t);
            L part = L{};
            if constexpr (filters) {
                L here[K], *const grad_d = with_sums && back ? here : saved.grad_changes + change + t * k;
                if (back) part = filters_adjoint_step(hidden, a, grad_d, dI[t]);
                if (with_sums) filters_sums_step(hidden, total, w, grad_d, saved.changes + change + t * k, dI[t]);
            } else part = hidden_adjoint_step<L, K>(hidden, a, total, x[t], dI[t]);
            if (back) dx.store(s, t, part + (FIRST ? D * dI[t + 1] : partial.load(s, t)));
            if (FIRST && with_sums) total_D += dI[t + 1] * x[t];
        }
        if (back) store_fields<K>(a, adjoint, k);
    }
    if (!with_sums) return;
    sums[0] += total_D;
    sums += 1 + first;
    PMSN_UNROLL
    for (int i = 0; i < 4 * K; ++i) sums[i / K * k + i % K] += ((const L*)&total)[i];
}

// Compartments first..k in groups of K, and what is left in smaller ones.
template <template <class, int> class Hidden, int K, int WAY, class L>
static void adjoint_groups(const L* parameters, L* adjoint, L* sums, Span span, index_t first, Saved<L> saved,
                           Columns<L> partial, Columns<L> dx, PrefetchBackward prefetch) {
    const auto run = [&](auto is_first, auto asks) {
        adjoint_group<Hidden, K, WAY, decltype(is_first)::value, decltype(asks)::value>(
            parameters, adjoint, sums, span, first, saved, partial, first + K == span.k ? dx : partial, prefetch);
    };
    for (; first + K <= span.k; first += K) {
        const bool asks = WAY & ASK && first + K == span.k;
        if (first == 0) asks ? run(Constant<true>(), Constant<true>()) : run(Constant<true>(), Constant<false>());
        else asks ? run(Constant<false>(), Constant<true>()) : run(Constant<false>(), Constant<false>());
    }
    if constexpr (K > 1)
        adjoint_groups<Hidden, K / 2, WAY>(parameters, adjoint, sums, span, first, saved, partial, dx, prefetch);
}

// dI -> dx; advances the hidden part of the adjoint, and the sums. `partial` is scratch memory. ALSO: 0 or ASK.
template <template <class, int> class Hidden, int ALSO, class L>
static void adjoint_pass(const L* parameters, L* adjoint, L* sums, Span span, Saved<L> saved, Columns<L> partial,
                         Columns<L> dx, PrefetchBackward prefetch) {
    const auto groups = [&](auto size, auto way) {
        adjoint_groups<Hidden, decltype(size)::value, decltype(way)::value>(parameters, adjoint, sums, span, 0, saved,
                                                                            partial, dx, prefetch);
    };
    if constexpr (Hidden<L, 1>::are_filters && APART) {
        groups(Constant<APART_ADJOINT_GROUP>(), Constant<BACK | ALSO>());
        groups(Constant<APART_SUMS_GROUP>(), Constant<SUMS>());
    } else {
        groups(Constant<ADJOINT_GROUP>(), Constant<BACK | SUMS | ALSO>());
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
        with_threshold<L>(theta, [=](auto threshold) {
            L* to = state;
            index_t i = 0;
            for (index_t s = 0; s < span.rows; ++s, to += 1 + 2 * span.k) {
                L v = to[0];
                for (index_t t = 0; t < span.steps; ++t, ++i) {
                    L I = current[i], u, out;
                    membrane_step<RESET, FIRE>(I, v, u, out, threshold);
                    kept[i] = KEEP == KEEP_U ? u : out;
                    if (KEEP == KEEP_OUT_AND_V) v_seq[i] = v;
                }
                to[0] = v;
            }
        });
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

// u, as RecomputeModulo leaves it -> dI; blocks lie behind one another in both, each with its rows.
template <class L>
static void modulo_adjoint_pass(const PmsnArgs& args, Span span, const L* u, const L* given, Columns<L> grad_out, L* dI,
                                real_of<L> theta) {
    with_slope(args, given, theta, [=](auto slope) {
        for (index_t s = 0; s < span.rows; ++s)
            for (index_t t = 0; t < span.steps; ++t) {
                index_t row = s;  // over the blocks, which are many where steps are few
                for (index_t b = 0; b < span.blocks; ++b, row += span.rows) {
                    const index_t i = row * span.steps + t;
                    const L grad_u = grad_out.load(s, t, b) * slope(u[i], i);
                    dI[i + row + 1] = u[i] < L{} ? L{} : grad_u;
                }
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

template <class L>
static auto membrane_adjoint_of(index_t reset) {
    return reset == RESET_CUMULATIVE   ? membrane_adjoint_pass<RESET_CUMULATIVE, L>
           : reset == RESET_MEMORYLESS ? membrane_adjoint_pass<RESET_MEMORYLESS, L>
                                       : membrane_adjoint_pass<RESET_SERIAL, L>;
}

}  // namespace PMSN_NAMESPACE
