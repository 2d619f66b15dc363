// PMSN on the CPU: tiles in, pmsn.h over them, tiles out.
#pragma once
#include "cpu_short.h"
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

template <class R>
struct PmsnCpu {
    typedef R real;
    typedef lane_of<R> L;
    const PmsnArgs& args;
    const Layout& layout;
    const index_t k, planes, blocks, rows, depth, width;  // planes of the state; rows of a batch; steps of a tile
    const R theta;

    explicit PmsnCpu(const PmsnArgs& a)
        : args(a),
          layout(a.layout),
          k(a.k),
          planes(1 + 2 * k),
          blocks(block_count<R>(layout)),
          rows(batch_rows(layout)),
          depth(layout.interval),
          width(lane_width<R>()),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)) {}

    index_t sums() const { return 1 + 4 * k; }

    void gather(const Tile<L>& parameters, const Item& item) const {
        gather_parameters(parameters, 0, layout, item, args.D, 1);
        const void* sources[] = {args.E_real, args.E_imag, args.K_real, args.K_imag};
        for (index_t i = 0; i < 4; ++i) gather_parameters(parameters, 1 + i * k, layout, item, sources[i], k);
    }

    // The state `start` steps into the sequence, a multiple of the interval.
    void load_state(const Tile<L>& state, const Batch& batch, index_t start) const {
        if (start > 0) return state.load(0, args.checkpoints, checkpoint(batch, start));
        state.load(0, args.v, batch.planes(layout, 0, 1));
        state.load(1, args.h_real, batch.planes(layout, 0, k));
        state.load(1 + k, args.h_imag, batch.planes(layout, 0, k));
        if (!args.v || args.reset != RESET_MODULO) return;
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.rows; ++s) {
                L& v = state.block(b)[s * planes];
                v = modulo(v, Threshold<R>(theta));
            }
    }
    Planes checkpoint(const Batch& batch, index_t start) const {
        return batch.planes(layout, (start / depth - 1) * planes, planes);
    }

    // x -> current -> sink, the one way or the other.
    template <class Sink>
    void charge(bool is_short, const L* parameters, const L* response, L* state, Span span, Columns<L> x,
                Columns<L> partial, Sink sink) const {
        if (!is_short) hidden_pass(parameters, state, span, x, partial, sink);
        else if (span.steps == 4) short_pass<4>(response, span.rows, span.steps, x, state, planes, sink);
        else short_pass<0>(response, span.rows, span.steps, x, state, planes, sink);
    }
    void respond(const Tile<L>& parameters, const Tile<L>& response) const {
        for (index_t b = 0; b < blocks; ++b) short_response(parameters.block(b), k, layout.T, response.block(b));
    }

    index_t forward_scratch() const {
        return sizeof(L) * (blocks * (1 + 4 * k + rows * planes + SHORT_STEPS) + 4 * Scratch<L>::apart(rows * depth));
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, 1 + 4 * k), state = scratch.tile(rows, planes);
        const Tile<L> response = scratch.tile(1, SHORT_STEPS);
        L* const x = scratch.lanes(rows * depth);
        L* const current = scratch.lanes(rows * depth);
        L* const out = scratch.lanes(rows * depth);
        L* const v_seq = args.v_seq ? scratch.lanes(rows * depth) : nullptr;
        const bool fused = args.reset == RESET_MODULO && (args.fire == FIRE_SPIKE || args.fire == FIRE_STRICT);
        const Steps<L> x_steps(args.x, args.x_storage), out_steps(args.out, args.out_storage);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, v_seq ? KEEP_OUT_AND_V : KEEP_OUT);
        // the hidden state is not worth its memory when nobody asks for it
        const bool is_short = layout.T <= SHORT_STEPS && !args.h_real && !args.h_real_after;
        const Item item(layout, index);
        gather(parameters, item);
        if (is_short) respond(parameters, response);
        for (Batch batch(layout, item, item.row); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows);
            if (is_short) state.load(0, nullptr, batch.planes(layout, 0, 1));
            else load_state(state, batch, item.start);
            for (index_t start = item.start; start < item.end; start += depth) {
                const Planes here = steps_from(batch, start, item);
                const Planes next = start + depth < item.end ? steps_from(batch, start + depth, item)
                                                             : steps_from(next_batch, item.start, item);
                const Span span = {k, batch.rows, here.count};
                if (start > item.start && args.checkpoints) state.store(0, args.checkpoints, checkpoint(batch, start));
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    const Soon soon(batch, b + 1, here, next, width);
                    const Columns<L> from = x_steps.read(x, here, b),
                                     partial = Columns<L>::in_cache(current, here.count);
                    if (fused) {
                        const FireModulo<L> fire = {out_steps.write(out, here, b),
                                                    Columns<L>::in_cache(v_seq, here.count),
                                                    v_seq != nullptr,
                                                    Threshold<R>(theta),
                                                    args.fire == FIRE_STRICT ? next_number(theta) : theta,
                                                    Ahead(x_steps, soon.planes, soon.block),
                                                    Ahead(out_steps, soon.planes, soon.block),
                                                    L{}};
                        charge(is_short, parameters.block(b), response.block(b), state.block(b), span, from, partial,
                               fire);
                        out_steps.finish(out, here, b);
                    } else {
                        charge(is_short, parameters.block(b), response.block(b), state.block(b), span, from, partial,
                               KeepCurrent<L>{partial});
                        membrane(state.block(b), span, current, out, v_seq, theta);
                        out_steps.store(out, here, b);
                    }
                    if (v_seq) store_column<L, Plain<L>>(v_seq, here.count, args.v_seq, here, b);
                }
            }
            if (item.end == layout.T && args.v_after) {
                state.store(0, args.v_after, batch.planes(layout, 0, 1));
                state.store(1, args.h_real_after, batch.planes(layout, 0, k));
                state.store(1 + k, args.h_imag_after, batch.planes(layout, 0, k));
            }
            batch = next_batch;
        }
    }

    // Time cut into segments (RESET_MODULO only), before `forward`: what a segment leaves at its end, from rest, goes
    // to the checkpoint there; first the hidden compartments, then (from those before it as they are) the membrane.
    void forward_local(index_t index, void* memory, bool membrane) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, 1 + 4 * k), state = scratch.tile(rows, planes);
        L* const x = scratch.lanes(rows * depth);
        L* const current = scratch.lanes(rows * depth);
        L* const out = scratch.lanes(rows * depth);
        const Steps<L> x_steps(args.x, args.x_storage);
        const Item item(layout, index);
        if (item.end == layout.T) return;
        gather(parameters, item);
        for (Batch batch(layout, item, item.row); batch.rows; batch = Batch(layout, item, batch.row + batch.rows)) {
            if (membrane) load_state(state, batch, item.start);
            if (!membrane) state.load(0, nullptr, batch.planes(layout, 0, planes));
            else if (item.start > 0) state.load(0, nullptr, batch.planes(layout, 0, 1));
            for (index_t start = item.start; start < item.end; start += depth) {
                const Planes here = steps_from(batch, start, item);
                const Span span = {k, batch.rows, here.count};
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    const Columns<L> from = x_steps.read(x, here, b),
                                     partial = Columns<L>::in_cache(current, here.count);
                    const Ahead no_more(x_steps, here, b);
                    const FireModulo<L> fire = {Columns<L>::in_cache(out, here.count),
                                                partial,
                                                false,
                                                Threshold<R>(theta),
                                                theta,
                                                no_more,
                                                no_more,
                                                L{}};
                    if (membrane) hidden_pass(parameters.block(b), state.block(b), span, from, partial, fire);
                    else hidden_pass(parameters.block(b), state.block(b), span, from, partial, KeepCurrent<L>{partial});
                }
            }
            const index_t plane = (item.end / depth - 1) * planes;
            if (membrane) state.store(0, args.checkpoints, batch.planes(layout, plane, 1));
            else state.store(1, args.checkpoints, batch.planes(layout, plane + 1, 2 * k));
        }
    }
    R* border(index_t end, index_t plane, index_t element) const {
        return (R*)args.checkpoints + ((end / depth - 1) * planes + plane) * layout.M + element;
    }
    static R read(const void* memory, index_t i) { return memory ? ((const R*)memory)[i] : R(0); }
    index_t channel(index_t element) const { return element % layout.P / layout.S % layout.C; }

    void carry_hidden() const {
        const index_t M = layout.M, length = layout.segment;
        for (index_t element = 0; element < M; ++element)
            for (index_t j = 0; j < k; ++j) {
                const index_t mode = channel(element) * k + j;
                HiddenCarry<R> h(read(args.E_real, mode), read(args.E_imag, mode), length,
                                 read(args.h_real, j * M + element), read(args.h_imag, j * M + element));
                for (index_t end = length; end < layout.T; end += length)
                    h.step(*border(end, 1 + j, element), *border(end, 1 + k + j, element));
            }
    }
    void carry_membrane() const {
        for (index_t element = 0; element < layout.M; ++element) {
            R before = 0;  // the first segment has been run from the initial membrane
            for (index_t end = layout.segment; end < layout.T; end += layout.segment) {
                R& v = *border(end, 0, element);
                const R charged = before + v;
                before = v = least_nonnegative(charged, charged - theta);
            }
        }
    }

    // The same for `backward`: every segment has left its adjoint, from zero, in `carries`.
    void carry_adjoint() const {
        const index_t M = layout.M, last = segment_count(layout) - 1;
        for (index_t element = 0; element < M; ++element)
            for (index_t j = 0; j < k; ++j) {
                const index_t mode = channel(element) * k + j;
                AdjointCarry<R> carry(read(args.E_real, mode), read(args.E_imag, mode),
                                      read(args.grad_h_real_after, j * M + element),
                                      read(args.grad_h_imag_after, j * M + element));
                for (index_t segment = last; segment > 0; --segment) {
                    const index_t length = segment < last ? layout.segment : layout.T - last * layout.segment;
                    R* at = (R*)args.carries + ((segment - 1) * (1 + 4 * k) + 1 + j) * M + element;
                    carry.step(length, at[0], at[k * M], at[2 * k * M], at[3 * k * M]);
                }
            }
    }

    Planes steps_from(const Batch& batch, index_t start, const Item& item) const {
        return batch.planes(layout, start, item.end - start < depth ? item.end - start : depth);
    }

    index_t backward_scratch() const {
        const index_t tiles = 3 * (1 + 4 * k) + rows * (planes + 1 + 4 * k) + 2 * SHORT_STEPS;
        return sizeof(L) * (blocks * tiles + 6 * Scratch<L>::apart(rows * (depth + 1)));
    }

    // Without `partial` only to find the adjoint at the segment's start, from zero at its end.
    void backward(index_t index, void* memory, void* partial) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, 1 + 4 * k), sums = scratch.tile(1, 1 + 4 * k),
                      initial = scratch.tile(1, 1 + 4 * k);
        const Tile<L> state = scratch.tile(rows, planes), adjoint = scratch.tile(rows, 1 + 4 * k);
        const Tile<L> response = scratch.tile(1, SHORT_STEPS), grad_response = scratch.tile(1, SHORT_STEPS);
        L* const x = scratch.lanes(rows * depth);
        L* const grad_out = scratch.lanes(rows * depth);  // becomes grad_x
        L* const u = scratch.lanes(rows * depth);         // becomes the slopes
        L* const dI = scratch.lanes(rows * (depth + 1));
        L* const current = scratch.lanes(rows * depth);
        L* const grad_v_seq = args.grad_v_seq ? scratch.lanes(rows * depth) : nullptr;
        const Steps<L> x_steps(args.x, args.x_storage), grad_steps(args.grad_out, args.out_storage),
            dx_steps(args.grad_x, args.x_storage);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, KEEP_U);
        const bool is_short =
            layout.T <= SHORT_STEPS && !args.h_real && !args.grad_h_real_after && !args.grad_h_imag_after;
        const Item item(layout, index);
        const bool local = !partial;
        if (local && item.start == 0) return;
        gather(parameters, item);
        if (is_short) respond(parameters, response);
        clear(grad_response.lanes, blocks * grad_response.pitch);
        clear(sums.lanes, blocks * sums.pitch);
        clear(initial.lanes, blocks * initial.pitch);
        for (Batch batch(layout, item, item.row); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows);
            const index_t last = (item.end - 1) / depth * depth;
            adjoint.load(0, args.grad_v_after, batch.planes(layout, 0, 1));
            if (item.end < layout.T) {
                const index_t place = item.start / layout.segment * (1 + 4 * k);
                adjoint.load(0, local ? nullptr : args.carries, batch.planes(layout, place, 1 + 4 * k));
            } else if (local) adjoint.load(0, nullptr, batch.planes(layout, 0, 1 + 4 * k));
            else if (!is_short) {
                adjoint.load(1, args.grad_h_real_after, batch.planes(layout, 0, k));
                adjoint.load(1 + k, args.grad_h_imag_after, batch.planes(layout, 0, k));
                adjoint.load(1 + 2 * k, nullptr, batch.planes(layout, 0, 2 * k));
            }
            for (index_t start = last; start >= item.start; start -= depth) {
                const Planes here = steps_from(batch, start, item);
                const Planes next =
                    start > item.start ? steps_from(batch, start - depth, item) : steps_from(next_batch, last, item);
                const Span span = {k, batch.rows, here.count};
                if (is_short) state.load(0, nullptr, batch.planes(layout, 0, 1));
                else load_state(state, batch, start);
                for (index_t s = 0; s < batch.rows; ++s) dI[s * (here.count + 1)] = L{};
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    const Soon soon(batch, b + 1, here, next, width);
                    x_steps.load(x, here, b);
                    const Columns<L> from = Columns<L>::in_cache(x, here.count),
                                     partial = Columns<L>::in_cache(current, here.count);
                    if (args.reset == RESET_MODULO) {
                        const RecomputeModulo<L> recompute = {
                            Columns<L>::in_cache(u, here.count),        grad_steps.read(grad_out, here, b),
                            Columns<L>::in_cache(grad_out, here.count), Threshold<R>(theta),
                            Ahead(x_steps, soon.planes, soon.block),    Ahead(grad_steps, soon.planes, soon.block),
                            Ahead(dx_steps, soon.planes, soon.block),   L{}};
                        charge(is_short, parameters.block(b), response.block(b), state.block(b), span, from, partial,
                               recompute);
                    } else {
                        grad_steps.load(grad_out, here, b);
                        if (grad_v_seq) load_column<L, Plain<L>>(grad_v_seq, here.count, args.grad_v_seq, here, b);
                        charge(is_short, parameters.block(b), response.block(b), state.block(b), span, from, partial,
                               KeepCurrent<L>{partial});
                        membrane(state.block(b), span, current, u, nullptr, theta);
                    }
                    if (args.slopes) load_column<L, Plain<L>>(u, here.count, args.slopes, here, b);
                    else slope_pass(args, u, span.rows * span.steps, theta);
                    membrane_adjoint_pass(args.reset, adjoint.block(b), span, current, u, grad_out, grad_v_seq, dI,
                                          theta);
                    const Columns<L> dx =
                        local ? Columns<L>::in_cache(grad_out, here.count) : dx_steps.write(grad_out, here, b);
                    if (!is_short)
                        adjoint_pass(parameters.block(b), adjoint.block(b), sums.block(b), span, x, dI,
                                     Columns<L>::in_cache(grad_out, here.count), dx);
                    else if (span.steps == 4)
                        short_adjoint_pass<4>(response.block(b), grad_response.block(b), span.rows, 4, x, dI, dx);
                    else
                        short_adjoint_pass<0>(response.block(b), grad_response.block(b), span.rows, span.steps, x, dI,
                                              dx);
                    if (!local) dx_steps.finish(grad_out, here, b);
                }
            }
            if (local) {
                const index_t place = (item.start / layout.segment - 1) * (1 + 4 * k);
                adjoint.store(0, args.carries, batch.planes(layout, place, 1 + 4 * k));
            } else if (item.start == 0) {
                if (args.h_real) add_initial(initial, state, adjoint, batch);
                adjoint.store(0, args.grad_v, batch.planes(layout, 0, 1));
                adjoint.store(1, args.grad_h_real, batch.planes(layout, 0, k));
                adjoint.store(1 + k, args.grad_h_imag, batch.planes(layout, 0, k));
            }
            batch = next_batch;
        }
        if (local) return;
        for (index_t b = 0; b < blocks; ++b)
            if (is_short)
                short_response_adjoint(parameters.block(b), k, layout.T, grad_response.block(b), sums.block(b));
            else finish(parameters.block(b), sums.block(b), initial.block(b));
        sum_by_channel((R*)partial, sums, layout, item);
    }

    // The last term of dE = conj(K) sum_t mu x + mu[-1] conj(h[-1]).
    void add_initial(const Tile<L>& initial, const Tile<L>& state, const Tile<L>& adjoint, const Batch& batch) const {
        load_state(state, batch, 0);
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.rows; ++s) {
                const L* mu = adjoint.block(b) + s * adjoint.depth + 1 + 2 * k;
                const L* h = state.block(b) + s * planes + 1;
                L* sum = initial.block(b) + 1 + 2 * k;
                for (index_t j = 0; j < k; ++j) {
                    sum[j] += mu[j] * h[j] + mu[k + j] * h[k + j];
                    sum[k + j] += mu[k + j] * h[j] - mu[j] * h[k + j];
                }
            }
    }

    // From sums over lam x and mu x to dK and dE.
    void finish(const L* parameters, L* sums, const L* initial) const {
        for (index_t j = 1 + 2 * k; j < 1 + 3 * k; ++j) {
            const L K_real = parameters[j], K_imag = parameters[k + j], real = sums[j], imag = sums[k + j];
            sums[j] = K_real * real + K_imag * imag + initial[j];
            sums[k + j] = K_real * imag - K_imag * real + initial[k + j];
        }
    }

    void reduce(const void* partials, double* totals) const {
        reduce_channels(layout, (const R*)partials, sums(), totals);
        void* targets[] = {args.grad_K_real, args.grad_K_imag, args.grad_E_real, args.grad_E_imag};
        for (index_t c = 0; c < layout.C; ++c, totals += sums()) {
            ((R*)args.grad_D)[c] = R(totals[0]);
            for (index_t i = 0; i < 4; ++i)
                for (index_t j = 0; j < k; ++j) ((R*)targets[i])[c * k + j] = R(totals[1 + i * k + j]);
        }
    }
};

}  // namespace PMSN_NAMESPACE
