// TC-LIF on the CPU: a work item brings columns of several blocks to the passes, tclif.h over them.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

// Lanes of one block, of one row where there are several.
enum { TCLIF_PARAMETERS = 2, TCLIF_STATE = 2, TCLIF_ADJOINT = 3, TCLIF_SUMS = 2 };

// Blocks that are done together: each step waits for the one before, and the others fill the wait. Where these are four
// lines of memory, a few steps of many rows are more than the first cache holds: there they go through memory row by
// row (over 16 rows of four lines, up to 1.6 times as fast; with lanes of 32 bytes a tenth slower). Four blocks in
// lanes of 32 bytes are 4 to 16 % faster forward from T = 250 on, no faster backward, and a fifth slower at T = 4.
#if PMSN_LANE_BYTES == 64
enum { TCLIF_TOGETHER = 4, TCLIF_ROW_BY_ROW = 1 };
#else
enum { TCLIF_TOGETHER = 2, TCLIF_ROW_BY_ROW = 0 };
#endif

// The passes run over `blocks` neighbouring blocks from b on, W at a time: `rows` rows of `steps` steps. In every array
// the blocks are `pitch` lanes apart.
template <class L, int W>
struct TclifPass {
    TclifCoefficients<L> c;
    const Tile<L>& parameters;
    index_t b, blocks, rows, steps, pitch;

    // x -> spikes
    template <bool PRE_RESET>
    void forward(const Tile<L>& state, Columns<L> x, Columns<L> out, L* v_seq, Prefetch prefetch_x,
                 Prefetch prefetch_out) const {
        for_units(nullptr, [&](index_t s, index_t first, const TclifCoefficients<L>* c,
                               TclifSums<L>*) __attribute__((always_inline)) {
            const Columns<L> from = x.block(first), to = out.block(first);
            const Prefetch ask_x = prefetch_x.shifted(first), ask_out = prefetch_out.shifted(first);
            L* const v_at = v_seq ? v_seq + first * pitch + s * steps : nullptr;
            L v[W], d[W], u_soma, u_dendrite;
            for (int w = 0; w < W; ++w) load(state, first + w, s, v[w], d[w]);
            for (index_t t = 0; t < steps; ++t) {
                ask_x.template ask<W * sizeof(L)>(s, t), ask_out.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const L spike = tclif_step<PRE_RESET>(c[w], from.load(s, t, w), v[w], d[w], u_soma, u_dendrite);
                    to.store(s, t, spike, w);
                    if (v_at) v_at[w * pitch + t] = v[w];
                }
            }
            for (int w = 0; w < W; ++w) {
                L* const after = state.block(b + first + w) + s * TCLIF_STATE;
                after[0] = v[w], after[1] = d[w];
            }
        });
    }

    // what the adjoint needs of each step
    template <bool PRE_RESET>
    void recompute(const Tile<L>& state, Columns<L> x, L* v_before, L* u_soma, L* u_dendrite, Prefetch prefetch_x,
                   Prefetch prefetch_grad) const {
        for_units(nullptr, [&](index_t s, index_t first, const TclifCoefficients<L>* c,
                               TclifSums<L>*) __attribute__((always_inline)) {
            const Columns<L> from = x.block(first);
            const Prefetch ask_x = prefetch_x.shifted(first), ask_grad = prefetch_grad.shifted(first);
            const index_t start = first * pitch + s * steps;
            L v[W], d[W];
            for (int w = 0; w < W; ++w) load(state, first + w, s, v[w], d[w]);
            for (index_t t = 0; t < steps; ++t) {
                ask_x.template ask<W * sizeof(L)>(s, t), ask_grad.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const index_t at = start + w * pitch + t;
                    v_before[at] = v[w];
                    tclif_step<PRE_RESET>(c[w], from.load(s, t, w), v[w], d[w], u_soma[at], u_dendrite[at]);
                }
            }
        });
    }

    // grad_out -> grad_x; advances the adjoint and the sums
    template <bool PRE_RESET, bool DETACH>
    void adjoint(const Tile<L>& adjoint, const Tile<L>& sums, Columns<L> grad_out, Columns<L> grad_x,
                 const L* grad_v_seq, const L* slope, const L* v_before, const L* u_dendrite,
                 Prefetch prefetch_dx) const {
        for_units(&sums, [&](index_t s, index_t first, const TclifCoefficients<L>* c,
                             TclifSums<L>* total) __attribute__((always_inline)) {
            const Columns<L> grads = grad_out.block(first), dx = grad_x.block(first);
            const Prefetch ask_dx = prefetch_dx.shifted(first);
            const index_t start = first * pitch + s * steps;
            TclifAdjoint<L> a[W];
            for (int w = 0; w < W; ++w) {
                const L* from = adjoint.block(b + first + w) + s * TCLIF_ADJOINT;
                a[w] = {from[0], from[1], from[2]};
            }
            for (index_t t = steps - 1; t >= 0; --t) {
                ask_dx.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const index_t at = start + w * pitch + t;
                    if (grad_v_seq) a[w].v += grad_v_seq[at];
                    dx.store(s, t,
                             tclif_adjoint_step<PRE_RESET, DETACH>(c[w], a[w], total[w], grads.load(s, t, w), slope[at],
                                                                   v_before[at], u_dendrite[at]),
                             w);
                }
            }
            for (int w = 0; w < W; ++w) {
                L* const to = adjoint.block(b + first + w) + s * TCLIF_ADJOINT;
                to[0] = a[w].v, to[1] = a[w].d, to[2] = a[w].spike;
            }
        });
    }

private:
    // Calls `run(row, first block, its coefficients, its sums)` for W blocks of a row at a time.
    template <class Run>
    PMSN_FN void for_units(const Tile<L>* sums, const Run& run) const {
        const auto unit = [&](index_t first, index_t begin, index_t end) __attribute__((always_inline)) {
            TclifCoefficients<L> own[W];
            TclifSums<L> total[W] = {};
            for (int w = 0; w < W; ++w) {
                const L* couplings = parameters.block(b + first + w);
                own[w] = c, own[w].b1 = couplings[0], own[w].b2 = couplings[1];
            }
            for (index_t s = begin; s < end; ++s) run(s, first, own, total);
            for (int w = 0; sums && w < W; ++w) {
                L* const to = sums->block(b + first + w);
                to[0] += total[w].b1, to[1] += total[w].b2;
            }
        };
        if (TCLIF_ROW_BY_ROW)
            for (index_t s = 0; s < rows; ++s)
                for (index_t first = 0; first < blocks; first += W) unit(first, s, s + 1);
        else unit(0, 0, rows);  // blocks is W
    }
    void load(const Tile<L>& state, index_t block, index_t s, L& v, L& d) const {
        const L* from = state.block(b + block) + s * TCLIF_STATE;
        v = from[0], d = from[1];
    }
};

template <class R>
struct TclifCpu {
    typedef R real;
    typedef lane_of<R> L;
    const TclifArgs& args;
    const Layout& layout;
    const index_t blocks, depth, width;  // depth: steps between checkpoints
    const index_t group, rows;           // blocks and rows of a batch that are done together: 64 lanes, if T is small
    const R theta;

    explicit TclifCpu(const TclifArgs& a)
        : args(a),
          layout(a.layout),
          blocks(block_count<R>(layout)),
          depth(layout.interval),
          width(lane_width<R>()),
          group(ceil_div(TCLIF_ROW_BY_ROW && is_short() ? 64 / layout.T : 1, TCLIF_TOGETHER) * TCLIF_TOGETHER),
          rows(!TCLIF_ROW_BY_ROW || blocks <= TCLIF_TOGETHER ? batch_rows(layout)
               : blocks < group                              ? group / blocks
                                                             : 1),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)) {}

    bool is_short() const { return layout.T <= 32 && layout.T <= layout.interval; }

    index_t sums() const { return TCLIF_SUMS; }

    void gather(const Tile<L>& parameters, const WorkItem& item) const {
        gather_parameters(parameters, 0, layout, item, args.b1, 1);
        gather_parameters(parameters, 1, layout, item, args.b2, 1);
    }
    TclifCoefficients<L> coefficients() const {  // but the couplings
        const R fire_at = args.strict ? next_number(theta) : theta;
        return {L{}, L{}, R(args.a1), R(args.a2), R(args.gamma), theta, fire_at};
    }

    void load_state(const Tile<L>& state, const Batch& batch, index_t start) const {
        if (start > 0) return state.load(0, args.checkpoints, checkpoint(batch, start));
        state.load(0, args.v, batch.planes(layout, 0, 1));
        state.load(1, args.d, batch.planes(layout, 0, 1));
    }
    Planes checkpoint(const Batch& batch, index_t start) const {
        return batch.planes(layout, (start / depth - 1) * TCLIF_STATE, TCLIF_STATE);
    }
    Planes steps_from(const Batch& batch, index_t start) const {
        return batch.planes(layout, start, layout.T - start < depth ? layout.T - start : depth);
    }

    // Calls `run(b, n, W)` for the blocks b..b+n of a batch, W at a time, a number as a type.
    template <class Run>
    void for_blocks(const Batch& batch, Run run) const {
        const index_t count = ceil_div(batch.valid, width), whole = batch.valid / width;
        index_t b = 0;
        for (index_t n; (n = whole - b < group ? (whole - b) / TCLIF_TOGETHER * TCLIF_TOGETHER : group) > 0; b += n)
            run(b, n, Number<TCLIF_TOGETHER>());
        for (; b < count; ++b) run(b, 1, Number<1>());
    }
    template <int W>
    struct Number {
        static constexpr int value = W;
    };
    struct Yes {
        static constexpr bool value = true;
    };
    struct No {
        static constexpr bool value = false;
    };

    // Lanes from one column to the next. Long ones would meet on the same few cache sets.
    index_t pitch_of(const Planes& here) const {
        return is_short() ? here.rows * here.count : Scratch<L>::apart(depth);
    }
    index_t group_lanes() const {
        return (blocks < group ? blocks : group) * (is_short() ? rows * depth : Scratch<L>::apart(depth));
    }

    index_t forward_scratch() const {
        const index_t columns = 2 * Scratch<L>::apart(group_lanes());
        return sizeof(L) * (blocks * (TCLIF_PARAMETERS + rows * TCLIF_STATE) + columns);
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), state = scratch.tile(rows, TCLIF_STATE);
        L* const x = scratch.lanes(group_lanes());  // and the spikes
        L* const v_seq = args.v_seq ? scratch.lanes(group_lanes()) : nullptr;
        const Steps<L> x_steps(args.x, args.x_storage), out_steps(args.out, args.x_storage),
            v_steps(args.v_seq, layout.is_double ? STORAGE_DOUBLE : STORAGE_FLOAT);
        const WorkItem item(layout, index);
        gather(parameters, item);
        for (Batch batch(layout, item, item.row, rows); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows, rows);
            load_state(state, batch, 0);
            for (index_t start = 0; start < layout.T; start += depth) {
                const Planes here = steps_from(batch, start);
                const Planes next =
                    start + depth < layout.T ? steps_from(batch, start + depth) : steps_from(next_batch, 0);
                if (start > 0 && args.checkpoints) state.store(0, args.checkpoints, checkpoint(batch, start));
                for_blocks(batch, [&](index_t b, index_t n, auto number) {
                    constexpr int W = number.value, line = W < LINE_BLOCKS ? W : LINE_BLOCKS;
                    const index_t pitch = pitch_of(here);
                    const Columns<L> from = x_steps.read(x, here, b, n, pitch);
                    const Columns<L> to = out_steps.write(x, here, b, n, pitch);
                    const NextBlock upcoming(batch, b + n, here, next, width);
                    const Prefetch prefetch_x(x_steps, upcoming.planes, upcoming.block, line),
                        prefetch_out(out_steps, upcoming.planes, upcoming.block, line);
                    const TclifPass<L, W> pass = {coefficients(), parameters, b, n, here.rows, here.count, pitch};
                    if (args.pre_reset) pass.template forward<true>(state, from, to, v_seq, prefetch_x, prefetch_out);
                    else pass.template forward<false>(state, from, to, v_seq, prefetch_x, prefetch_out);
                    out_steps.finish(x, here, b, n, pitch);
                    if (v_seq) v_steps.store(v_seq, here, b, n, pitch);
                });
            }
            state.store(0, args.v_after, batch.planes(layout, 0, 1));
            state.store(1, args.d_after, batch.planes(layout, 0, 1));
            batch = next_batch;
        }
    }

    index_t backward_scratch() const {
        const index_t tiles = TCLIF_PARAMETERS + TCLIF_SUMS + rows * (TCLIF_STATE + TCLIF_ADJOINT);
        return sizeof(L) * (blocks * tiles + 6 * Scratch<L>::apart(group_lanes()));
    }

    void backward(index_t index, void* memory, void* partial) const {
        const auto surrogate = surrogate_parameters<R>(args);
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), sums = scratch.tile(1, TCLIF_SUMS);
        const Tile<L> state = scratch.tile(rows, TCLIF_STATE), adjoint = scratch.tile(rows, TCLIF_ADJOINT);
        const index_t together = group_lanes();
        L* const x = scratch.lanes(together);
        L* const grad = scratch.lanes(together);  // of the spikes, then of x
        L* const v_before = scratch.lanes(together);
        L* const u_soma = scratch.lanes(together);  // becomes the slopes
        L* const u_dendrite = scratch.lanes(together);
        L* const grad_v_seq = args.grad_v_seq ? scratch.lanes(together) : nullptr;
        const Steps<L> x_steps(args.x, args.x_storage), grad_steps(args.grad_out, args.x_storage),
            dx_steps(args.grad_x, args.x_storage),
            v_steps(args.grad_v_seq, layout.is_double ? STORAGE_DOUBLE : STORAGE_FLOAT);
        const WorkItem item(layout, index);
        gather(parameters, item);
        clear(sums.lanes, blocks * TCLIF_SUMS);
        for (Batch batch(layout, item, item.row, rows); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows, rows);
            const Planes plane = batch.planes(layout, 0, 1);
            const index_t last = (layout.T - 1) / depth * depth;
            adjoint.load(0, args.grad_v_after, plane);
            adjoint.load(1, args.grad_d_after, plane);
            adjoint.load(2, nullptr, plane);
            for (index_t start = last; start >= 0; start -= depth) {
                const Planes here = steps_from(batch, start);
                const Planes next = start > 0 ? steps_from(batch, start - depth) : steps_from(next_batch, last);
                load_state(state, batch, start);
                for_blocks(batch, [&](index_t b, index_t n, auto number) {
                    constexpr int W = number.value, line = W < LINE_BLOCKS ? W : LINE_BLOCKS;
                    const index_t pitch = pitch_of(here);
                    const Columns<L> from = x_steps.read(x, here, b, n, pitch);
                    const NextBlock upcoming(batch, b + n, here, next, width);
                    const Prefetch prefetch_x(x_steps, upcoming.planes, upcoming.block, line),
                        prefetch_grad(grad_steps, upcoming.planes, upcoming.block, line),
                        prefetch_dx(dx_steps, upcoming.planes, upcoming.block, line);
                    const TclifPass<L, W> pass = {coefficients(), parameters, b, n, here.rows, here.count, pitch};
                    if (args.pre_reset)
                        pass.template recompute<true>(state, from, v_before, u_soma, u_dendrite, prefetch_x,
                                                      prefetch_grad);
                    else
                        pass.template recompute<false>(state, from, v_before, u_soma, u_dendrite, prefetch_x,
                                                       prefetch_grad);
                    const Planes given = batch.planes(layout, start + 1, here.count);
                    if (args.slopes) load_column<L, Plain<L>>(u_soma, here.count, args.slopes, given, b, n, pitch);
                    else if (is_short()) surrogate_pass(args.surrogate, u_soma, n * pitch, theta, surrogate);
                    else
                        for (index_t w = 0; w < n; ++w)
                            surrogate_pass(args.surrogate, u_soma + w * pitch, here.count, theta, surrogate);
                    if (grad_v_seq) v_steps.load(grad_v_seq, here, b, n, pitch);
                    const Columns<L> grad_out = grad_steps.read(grad, here, b, n, pitch);
                    const Columns<L> grad_x = dx_steps.write(grad, here, b, n, pitch);
                    const auto back = [&](auto pre_reset, auto detach) {
                        pass.template adjoint<pre_reset.value, detach.value>(
                            adjoint, sums, grad_out, grad_x, grad_v_seq, u_soma, v_before, u_dendrite, prefetch_dx);
                    };
                    if (args.pre_reset) args.detach ? back(Yes(), Yes()) : back(Yes(), No());
                    else args.detach ? back(No(), Yes()) : back(No(), No());
                    dx_steps.finish(grad, here, b, n, pitch);
                });
            }
            if (args.pre_reset && args.grad_v) add_first_reset(state, adjoint, batch);
            adjoint.store(0, args.grad_v, plane);
            adjoint.store(1, args.grad_d, plane);
            batch = next_batch;
        }
        sum_by_channel((R*)partial, sums, layout, item);
    }

    // With PRE_RESET the initial soma decides the first reset.
    void add_first_reset(const Tile<L>& state, const Tile<L>& adjoint, const Batch& batch) const {
        if (args.slopes) state.load(0, args.slopes, batch.planes(layout, 0, 1));
        else load_state(state, batch, 0);
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.rows; ++s) {
                L* soma = state.block(b) + s * TCLIF_STATE;
                L* a = adjoint.block(b) + s * TCLIF_ADJOINT;
                if (!args.slopes) surrogate_pass(args.surrogate, soma, 1, theta, surrogate_parameters<R>(args));
                a[0] += a[2] * soma[0];
            }
    }

    void reduce(const void* partials, double* totals, index_t begin, index_t end) const {
        reduce_channels(layout, (const R*)partials, TCLIF_SUMS, totals, begin, end);
        for (index_t c = begin; c < end; ++c, ++totals) {
            ((R*)args.grad_b1)[c] = R(totals[0]);
            ((R*)args.grad_b2)[c] = R(totals[end - begin]);
        }
    }
};

}  // namespace PMSN_NAMESPACE
