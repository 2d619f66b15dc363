// TC-LIF on the CPU: a work item brings columns of several blocks to the passes, tclif.h over them.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

// Lanes of one block, of one row where there are several.
enum { TCLIF_PARAMETERS = 2, TCLIF_STATE = 2, TCLIF_ADJOINT = 3, TCLIF_SUMS = 2 };

// Blocks that are done together: each step waits for the one before, and the others fill the wait.
#if PMSN_LANE_BYTES == 64
enum { TCLIF_TOGETHER = 4 };
#else
enum { TCLIF_TOGETHER = 2 };
#endif

// The passes run over W neighbouring blocks: `rows` rows of `steps` steps. In every array the blocks are `pitch` lanes
// apart.
template <class L, int W>
struct TclifPass {
    const TclifCoefficients<L>* c;
    index_t rows, steps, pitch;

    // x -> spikes
    template <bool PRE_RESET>
    void forward(const Tile<L>& state, index_t b, Columns<L> x, Columns<L> out, L* v_seq, Prefetch prefetch_x,
                 Prefetch prefetch_out) const {
        for (index_t s = 0; s < rows; ++s) {
            L v[W], d[W], u_soma, u_dendrite;
            for (int w = 0; w < W; ++w) load(state, b + w, s, v[w], d[w]);
            for (index_t t = 0; t < steps; ++t) {
                prefetch_x.template ask<W * sizeof(L)>(s, t), prefetch_out.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const L spike = tclif_step<PRE_RESET>(c[w], x.load(s, t, w), v[w], d[w], u_soma, u_dendrite);
                    out.store(s, t, spike, w);
                    if (v_seq) v_seq[w * pitch + s * steps + t] = v[w];
                }
            }
            for (int w = 0; w < W; ++w) {
                L* to = state.block(b + w) + s * TCLIF_STATE;
                to[0] = v[w], to[1] = d[w];
            }
        }
    }

    // what the adjoint needs of each step
    template <bool PRE_RESET>
    void recompute(const Tile<L>& state, index_t b, Columns<L> x, L* v_before, L* u_soma, L* u_dendrite,
                   Prefetch prefetch_x, Prefetch prefetch_grad, Prefetch prefetch_dx) const {
        for (index_t s = 0; s < rows; ++s) {
            L v[W], d[W];
            for (int w = 0; w < W; ++w) load(state, b + w, s, v[w], d[w]);
            for (index_t t = 0; t < steps; ++t) {
                prefetch_x.template ask<W * sizeof(L)>(s, t), prefetch_grad.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const index_t at = w * pitch + s * steps + t;
                    v_before[at] = v[w];
                    tclif_step<PRE_RESET>(c[w], x.load(s, t, w), v[w], d[w], u_soma[at], u_dendrite[at]);
                }
            }
        }
    }

    // grad_out -> grad_x; advances the adjoint and the sums
    template <bool PRE_RESET, bool DETACH>
    void adjoint(const Tile<L>& adjoint, const Tile<L>& sums, index_t b, Columns<L> grad_out, Columns<L> grad_x,
                 const L* grad_v_seq, const L* slope, const L* v_before, const L* u_dendrite,
                 Prefetch prefetch_dx) const {
        TclifSums<L> total[W] = {};
        for (index_t s = 0; s < rows; ++s) {
            TclifAdjoint<L> a[W];
            for (int w = 0; w < W; ++w) {
                const L* from = adjoint.block(b + w) + s * TCLIF_ADJOINT;
                a[w] = {from[0], from[1], from[2]};
            }
            for (index_t t = steps - 1; t >= 0; --t) {
                prefetch_dx.template ask<W * sizeof(L)>(s, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const index_t at = w * pitch + s * steps + t;
                    if (grad_v_seq) a[w].v += grad_v_seq[at];
                    const L dx = tclif_adjoint_step<PRE_RESET, DETACH>(c[w], a[w], total[w], grad_out.load(s, t, w),
                                                                       slope[at], v_before[at], u_dendrite[at]);
                    grad_x.store(s, t, dx, w);
                }
            }
            for (int w = 0; w < W; ++w) {
                L* to = adjoint.block(b + w) + s * TCLIF_ADJOINT;
                to[0] = a[w].v, to[1] = a[w].d, to[2] = a[w].spike;
            }
        }
        for (int w = 0; w < W; ++w) {
            L* to = sums.block(b + w);
            to[0] += total[w].b1, to[1] += total[w].b2;
        }
    }

private:
    static void load(const Tile<L>& state, index_t b, index_t s, L& v, L& d) {
        const L* from = state.block(b) + s * TCLIF_STATE;
        v = from[0], d = from[1];
    }
};

template <class R>
struct TclifCpu {
    typedef R real;
    typedef lane_of<R> L;
    const TclifArgs& args;
    const Layout& layout;
    const index_t blocks, rows, depth, width;  // rows of a batch; steps between checkpoints
    const R theta;

    explicit TclifCpu(const TclifArgs& a)
        : args(a),
          layout(a.layout),
          blocks(block_count<R>(layout)),
          rows(batch_rows(layout)),
          depth(layout.interval),
          width(lane_width<R>()),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)) {}

    index_t sums() const { return TCLIF_SUMS; }

    void gather(const Tile<L>& parameters, const WorkItem& item) const {
        gather_parameters(parameters, 0, layout, item, args.b1, 1);
        gather_parameters(parameters, 1, layout, item, args.b2, 1);
    }
    TclifCoefficients<L> coefficients(const L* parameters) const {
        const R fire_at = args.strict ? next_number(theta) : theta;
        return {parameters[0], parameters[1], R(args.a1), R(args.a2), R(args.gamma), theta, fire_at};
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

    // Run `run` over the blocks of a batch, several at a time: run(block, number as a type).
    template <class Run>
    void for_blocks(const Batch& batch, Run run) const {
        const index_t count = ceil_div(batch.valid, width);
        index_t b = 0;
        for (; b + TCLIF_TOGETHER <= count; b += TCLIF_TOGETHER) run(b, Number<TCLIF_TOGETHER>());
        for (; b < count; ++b) run(b, Number<1>());
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

    index_t pitch() const { return Scratch<L>::apart(rows * depth); }

    index_t forward_scratch() const {
        const index_t columns = 2 * Scratch<L>::apart(TCLIF_TOGETHER * pitch());
        return sizeof(L) * (blocks * (TCLIF_PARAMETERS + rows * TCLIF_STATE) + columns);
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), state = scratch.tile(rows, TCLIF_STATE);
        L* const x = scratch.lanes(TCLIF_TOGETHER * pitch());  // and the spikes
        L* const v_seq = args.v_seq ? scratch.lanes(TCLIF_TOGETHER * pitch()) : nullptr;
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
                for_blocks(batch, [&](index_t b, auto number) {
                    constexpr int W = number.value;
                    TclifCoefficients<L> c[W];
                    for (int w = 0; w < W; ++w) c[w] = coefficients(parameters.block(b + w));
                    const Columns<L> from = x_steps.read(x, here, b, W, pitch());
                    const Columns<L> to = out_steps.write(x, here, b, W, pitch());
                    const NextBlock upcoming(batch, b + W, here, next, width);
                    const Prefetch prefetch_x(x_steps, upcoming.planes, upcoming.block),
                        prefetch_out(out_steps, upcoming.planes, upcoming.block);
                    const TclifPass<L, W> pass = {c, here.rows, here.count, pitch()};
                    if (args.pre_reset)
                        pass.template forward<true>(state, b, from, to, v_seq, prefetch_x, prefetch_out);
                    else pass.template forward<false>(state, b, from, to, v_seq, prefetch_x, prefetch_out);
                    out_steps.finish(x, here, b, W, pitch());
                    for (int w = 0; v_seq && w < W; ++w) v_steps.store(v_seq + w * pitch(), here, b + w);
                });
            }
            state.store(0, args.v_after, batch.planes(layout, 0, 1));
            state.store(1, args.d_after, batch.planes(layout, 0, 1));
            batch = next_batch;
        }
    }

    index_t backward_scratch() const {
        const index_t tiles = TCLIF_PARAMETERS + TCLIF_SUMS + rows * (TCLIF_STATE + TCLIF_ADJOINT);
        return sizeof(L) * (blocks * tiles + 6 * Scratch<L>::apart(TCLIF_TOGETHER * pitch()));
    }

    void backward(index_t index, void* memory, void* partial) const {
        const auto surrogate = surrogate_parameters<R>(args);
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), sums = scratch.tile(1, TCLIF_SUMS);
        const Tile<L> state = scratch.tile(rows, TCLIF_STATE), adjoint = scratch.tile(rows, TCLIF_ADJOINT);
        const index_t together = TCLIF_TOGETHER * pitch();
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
                for_blocks(batch, [&](index_t b, auto number) {
                    constexpr int W = number.value;
                    TclifCoefficients<L> c[W];
                    for (int w = 0; w < W; ++w) c[w] = coefficients(parameters.block(b + w));
                    const Columns<L> from = x_steps.read(x, here, b, W, pitch());
                    const NextBlock upcoming(batch, b + W, here, next, width);
                    const Prefetch prefetch_x(x_steps, upcoming.planes, upcoming.block),
                        prefetch_grad(grad_steps, upcoming.planes, upcoming.block),
                        prefetch_dx(dx_steps, upcoming.planes, upcoming.block);
                    const TclifPass<L, W> pass = {c, here.rows, here.count, pitch()};
                    if (args.pre_reset)
                        pass.template recompute<true>(state, b, from, v_before, u_soma, u_dendrite, prefetch_x,
                                                      prefetch_grad, prefetch_dx);
                    else
                        pass.template recompute<false>(state, b, from, v_before, u_soma, u_dendrite, prefetch_x,
                                                       prefetch_grad, prefetch_dx);
                    for (int w = 0; w < W; ++w) {
                        L* const slopes = u_soma + w * pitch();
                        const Planes given = batch.planes(layout, start + 1, here.count);
                        if (args.slopes) load_column<L, Plain<L>>(slopes, here.count, args.slopes, given, b + w);
                        else surrogate_pass(args.surrogate, slopes, here.rows * here.count, theta, surrogate);
                    }
                    for (int w = 0; grad_v_seq && w < W; ++w) v_steps.load(grad_v_seq + w * pitch(), here, b + w);
                    const Columns<L> grad_out = grad_steps.read(grad, here, b, W, pitch());
                    const Columns<L> grad_x = dx_steps.write(grad, here, b, W, pitch());
                    const auto back = [&](auto pre_reset, auto detach) {
                        pass.template adjoint<pre_reset.value, detach.value>(
                            adjoint, sums, b, grad_out, grad_x, grad_v_seq, u_soma, v_before, u_dendrite, prefetch_dx);
                    };
                    if (args.pre_reset) args.detach ? back(Yes(), Yes()) : back(Yes(), No());
                    else args.detach ? back(No(), Yes()) : back(No(), No());
                    dx_steps.finish(grad, here, b, W, pitch());
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
