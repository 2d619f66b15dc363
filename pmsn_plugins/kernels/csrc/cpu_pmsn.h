// PMSN on the CPU: tiles in, pmsn.h over them, tiles out.
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

// The passes below run over one block of a tile: `segments` rows of `steps` steps. k hidden compartments have
//     parameters D, E_real, E_imag, K_real, K_imag          1 + 4k lanes
//     state      v, h_real, h_imag                          1 + 2k for each segment
//     adjoint    grad_v, lam_real, lam_imag, mu_real, mu_imag  1 + 4k for each segment
//     sums       D, lam_real, lam_imag, mu_real, mu_imag    1 + 4k, over segments and steps
struct Span {
    index_t k, segments, steps;
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

// Compartments first..first+K.
template <class L, int K>
static void hidden_group(const L* parameters, L* state, Span span, index_t first, const L* x, L* current) {
    const Modes<L, K> modes = load_modes<L, K>(parameters + 1 + first, span.k);
    const L D = first == 0 ? parameters[0] : L{};
    for (index_t s = 0; s < span.segments; ++s, state += 1 + 2 * span.k, x += span.steps, current += span.steps) {
        L* real = state + 1 + first;
        L* imag = real + span.k;
        L h_real[K], h_imag[K];
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h_real[j] = real[j], h_imag[j] = imag[j];
        if (first == 0)
            for (index_t t = 0; t < span.steps; ++t)
                current[t] = hidden_step<L, K>(modes, h_real, h_imag, x[t]) + D * x[t];
        else
            for (index_t t = 0; t < span.steps; ++t) current[t] += hidden_step<L, K>(modes, h_real, h_imag, x[t]);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) real[j] = h_real[j], imag[j] = h_imag[j];
    }
}

// x -> current; advances the hidden part of the state.
template <class L>
static void hidden_pass(const L* parameters, L* state, Span span, const L* x, L* current) {
    index_t j = 0;
    for (; j + FORWARD_GROUP <= span.k; j += FORWARD_GROUP)
        hidden_group<L, FORWARD_GROUP>(parameters, state, span, j, x, current);
    if (FORWARD_GROUP > 2 && span.k - j == 3) hidden_group<L, 3>(parameters, state, span, j, x, current);
    if (FORWARD_GROUP > 2 && span.k - j == 2) hidden_group<L, 2>(parameters, state, span, j, x, current);
    if (span.k - j == 1) hidden_group<L, 1>(parameters, state, span, j, x, current);
}

// dI has a zero before every segment.
template <class L, int K>
static void adjoint_group(const L* parameters, L* adjoint, L* sums, Span span, index_t first, const L* x, const L* dI,
                          L* dx) {
    const index_t k = span.k;
    const Modes<L, K> modes = load_modes<L, K>(parameters + 1 + first, k);
    HiddenSums<L, K> total = {};
    adjoint += 1 + first;
    for (index_t s = 0; s < span.segments;
         ++s, adjoint += 1 + 4 * k, x += span.steps, dI += span.steps + 1, dx += span.steps) {
        HiddenAdjoint<L, K> a;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            a.lam_real[j] = adjoint[j] + dI[span.steps], a.lam_imag[j] = adjoint[k + j];
            a.mu_real[j] = adjoint[2 * k + j], a.mu_imag[j] = adjoint[3 * k + j];
        }
        for (index_t t = span.steps - 1; t >= 0; --t) dx[t] += hidden_adjoint_step<L, K>(modes, a, total, x[t], dI[t]);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            adjoint[j] = a.lam_real[j], adjoint[k + j] = a.lam_imag[j];
            adjoint[2 * k + j] = a.mu_real[j], adjoint[3 * k + j] = a.mu_imag[j];
        }
    }
    sums += 1 + first;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        sums[j] += total.lam_real[j], sums[k + j] += total.lam_imag[j];
        sums[2 * k + j] += total.mu_real[j], sums[3 * k + j] += total.mu_imag[j];
    }
}

// dI -> dx; advances the hidden part of the adjoint, and the sums.
template <class L>
static void adjoint_pass(const L* parameters, L* adjoint, L* sums, Span span, const L* x, const L* dI, L* dx) {
    const L D = parameters[0];
    L sum = L{};
    for (index_t s = 0; s < span.segments; ++s)
        for (index_t t = 0; t < span.steps; ++t) {
            const L drive = dI[s * (span.steps + 1) + 1 + t];
            dx[s * span.steps + t] = D * drive;
            sum += drive * x[s * span.steps + t];
        }
    sums[0] += sum;
    index_t j = 0;
    for (; j + ADJOINT_GROUP <= span.k; j += ADJOINT_GROUP)
        adjoint_group<L, ADJOINT_GROUP>(parameters, adjoint, sums, span, j, x, dI, dx);
    if (j < span.k) adjoint_group<L, 1>(parameters, adjoint, sums, span, j, x, dI, dx);
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
        for (index_t s = 0; s < span.segments; ++s, state += 1 + 2 * span.k) {
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
    for (index_t s = 0; s < span.segments; ++s, adjoint += 1 + 4 * span.k) {
        L grad_v = adjoint[0];
        for (index_t t = span.steps - 1; t >= 0; --t) {
            const index_t i = s * span.steps + t;
            if (RESET != RESET_MODULO && grad_v_seq) grad_v += grad_v_seq[i];
            dI[i + s + 1] = membrane_adjoint_step<RESET>(current[i], slope[i], grad_out[i], grad_v, theta);
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
        if (start > 0)
            return state.load(0, args.checkpoints, batch.planes(layout, (start / depth - 1) * planes, planes));
        state.load(0, args.v, batch.planes(layout, 0, 1));
        state.load(1, args.h_real, batch.planes(layout, 0, k));
        state.load(1 + k, args.h_imag, batch.planes(layout, 0, k));
        if (!args.v || args.reset != RESET_MODULO) return;
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.segments; ++s) {
                L& v = state.block(b)[s * planes];
                v = modulo(v, Threshold<R>(theta));
            }
    }

    index_t forward_scratch() const {
        return sizeof(L) * (blocks * (1 + 4 * k + rows * (planes + 2 * depth)) + rows * depth);
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, 1 + 4 * k), state = scratch.tile(rows, planes);
        const Tile<L> x = scratch.tile(rows, depth), v_seq = scratch.tile(rows, depth);  // x becomes out
        L* const current = scratch.lanes(rows * depth);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, args.v_seq ? KEEP_OUT_AND_V : KEEP_OUT);
        Item item(layout, index);
        gather(parameters, item);
        for (Batch batch(layout, item); batch.segments; item.row += batch.segments, batch = Batch(layout, item)) {
            load_state(state, batch, 0);
            for (index_t start = 0; start < layout.T; start += depth) {
                const index_t steps = layout.T - start < depth ? layout.T - start : depth;
                const Rows here = batch.planes(layout, start, steps);
                const Rows next = batch.planes(layout, start + depth, start + 2 * depth <= layout.T ? depth : 0);
                const Span span = {k, batch.segments, steps};
                if (start > 0 && args.checkpoints)
                    state.store(0, args.checkpoints, batch.planes(layout, (start / depth - 1) * planes, planes));
                load_as(args.x_storage, x, args.x, here);
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    prefetch_rows(args.x, args.x_storage, next, b, blocks);
                    prefetch_rows(args.out, args.out_storage, here, b, blocks);
                    hidden_pass(parameters.block(b), state.block(b), span, x.block(b), current);
                    membrane(state.block(b), span, current, x.block(b), v_seq.block(b), theta);
                }
                store_as(args.out_storage, x, args.out, here);
                if (args.v_seq) v_seq.store(0, args.v_seq, here);
            }
            state.store(0, args.v_after, batch.planes(layout, 0, 1));
            state.store(1, args.h_real_after, batch.planes(layout, 0, k));
            state.store(1 + k, args.h_imag_after, batch.planes(layout, 0, k));
        }
    }

    index_t backward_scratch() const {
        const index_t tiles = 3 * (1 + 4 * k) + rows * (planes + 1 + 4 * k + 3 * depth);
        return sizeof(L) * (blocks * tiles + rows * (3 * depth + 1));
    }

    void backward(index_t index, void* memory, void* partial) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, 1 + 4 * k), sums = scratch.tile(1, 1 + 4 * k),
                      initial = scratch.tile(1, 1 + 4 * k);
        const Tile<L> state = scratch.tile(rows, planes), adjoint = scratch.tile(rows, 1 + 4 * k);
        const Tile<L> x = scratch.tile(rows, depth), grad_out = scratch.tile(rows, depth);  // grad_out becomes grad_x
        const Tile<L> grad_v_seq = scratch.tile(rows, depth);
        L* const current = scratch.lanes(rows * depth);
        L* const u = scratch.lanes(rows * depth);  // becomes the slopes
        L* const dI = scratch.lanes(rows * (depth + 1));
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, KEEP_U);
        Item item(layout, index);
        gather(parameters, item);
        clear(sums.lanes, blocks * sums.pitch);
        clear(initial.lanes, blocks * initial.pitch);
        for (Batch batch(layout, item); batch.segments; item.row += batch.segments, batch = Batch(layout, item)) {
            adjoint.load(0, args.grad_v_after, batch.planes(layout, 0, 1));
            adjoint.load(1, args.grad_h_real_after, batch.planes(layout, 0, k));
            adjoint.load(1 + k, args.grad_h_imag_after, batch.planes(layout, 0, k));
            adjoint.load(1 + 2 * k, nullptr, batch.planes(layout, 0, 2 * k));
            for (index_t start = (layout.T - 1) / depth * depth; start >= 0; start -= depth) {
                const index_t steps = layout.T - start < depth ? layout.T - start : depth;
                const Rows here = batch.planes(layout, start, steps),
                           next = batch.planes(layout, start - depth, start > 0 ? depth : 0);
                const Span span = {k, batch.segments, steps};
                load_state(state, batch, start);
                load_as(args.x_storage, x, args.x, here);
                load_as(args.out_storage, grad_out, args.grad_out, here);
                if (args.grad_v_seq) grad_v_seq.load(0, args.grad_v_seq, here);
                for (index_t s = 0; s < batch.segments; ++s) dI[s * (steps + 1)] = L{};
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    prefetch_rows(args.x, args.x_storage, next, b, blocks);
                    prefetch_rows(args.grad_out, args.out_storage, next, b, blocks);
                    prefetch_rows(args.grad_x, args.x_storage, here, b, blocks);
                    hidden_pass(parameters.block(b), state.block(b), span, x.block(b), current);
                    membrane(state.block(b), span, current, u, nullptr, theta);
                    slope_pass(args, u, span.segments * steps, theta);
                    membrane_adjoint_pass(args.reset, adjoint.block(b), span, current, u, grad_out.block(b),
                                          args.grad_v_seq ? grad_v_seq.block(b) : nullptr, dI, theta);
                    adjoint_pass(parameters.block(b), adjoint.block(b), sums.block(b), span, x.block(b), dI,
                                 grad_out.block(b));
                }
                store_as(args.x_storage, grad_out, args.grad_x, here);
            }
            if (args.h_real) add_initial(initial, state, adjoint, batch);
            adjoint.store(0, args.grad_v, batch.planes(layout, 0, 1));
            adjoint.store(1, args.grad_h_real, batch.planes(layout, 0, k));
            adjoint.store(1 + k, args.grad_h_imag, batch.planes(layout, 0, k));
        }
        for (index_t b = 0; b < blocks; ++b) finish(parameters.block(b), sums.block(b), initial.block(b));
        sum_by_channel((R*)partial, sums, layout, item);
    }

    // The last term of dE = conj(K) sum_t mu x + mu[-1] conj(h[-1]).
    void add_initial(const Tile<L>& initial, const Tile<L>& state, const Tile<L>& adjoint, const Batch& batch) const {
        load_state(state, batch, 0);
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.segments; ++s) {
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
