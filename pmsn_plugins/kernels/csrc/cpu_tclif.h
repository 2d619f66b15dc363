// TC-LIF on the CPU: tiles in, tclif.h over them, tiles out.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

// Lanes of one block, of one segment where there are several.
enum { TCLIF_PARAMETERS = 2, TCLIF_STATE = 2, TCLIF_ADJOINT = 3, TCLIF_SUMS = 2 };

// The passes run over one block of a tile: `segments` rows of `steps` steps.
template <class L>
struct TclifPass {
    typedef const TclifCoefficients<L>& Coefficients;

    // x -> spikes, in place
    template <bool PRE_RESET, bool STRICT>
    static void forward(Coefficients c, L* state, index_t segments, index_t steps, L* x, L* v_seq) {
        for (; segments > 0; --segments, state += TCLIF_STATE) {
            L v = state[0], d = state[1], u_soma, u_dendrite;
            for (index_t t = 0; t < steps; ++t, ++x, ++v_seq) {
                *x = tclif_step<PRE_RESET, STRICT>(c, *x, v, d, u_soma, u_dendrite);
                *v_seq = v;
            }
            state[0] = v, state[1] = d;
        }
    }

    // what the adjoint needs of each step
    template <bool PRE_RESET, bool STRICT>
    static void recompute(Coefficients c, const L* state, index_t segments, index_t steps, const L* x, L* v_before,
                          L* u_soma, L* u_dendrite) {
        for (; segments > 0; --segments, state += TCLIF_STATE) {
            L v = state[0], d = state[1];
            for (index_t t = 0; t < steps; ++t, ++x, ++v_before, ++u_soma, ++u_dendrite) {
                *v_before = v;
                tclif_step<PRE_RESET, STRICT>(c, *x, v, d, *u_soma, *u_dendrite);
            }
        }
    }

    // grad_out -> grad_x, in place; advances the adjoint and the sums
    template <bool PRE_RESET, bool DETACH>
    static void adjoint(Coefficients c, L* adjoint, L* sums, index_t segments, index_t steps, L* grad_out,
                        const L* grad_v_seq, const L* slope, const L* v_before, const L* u_dendrite) {
        TclifSums<L> total = {};
        for (index_t s = 0; s < segments; ++s, adjoint += TCLIF_ADJOINT) {
            TclifAdjoint<L> a = {adjoint[0], adjoint[1], adjoint[2]};
            for (index_t i = (s + 1) * steps - 1; i >= s * steps; --i) {
                if (grad_v_seq) a.v += grad_v_seq[i];
                grad_out[i] = tclif_adjoint_step<PRE_RESET, DETACH>(c, a, total, grad_out[i], slope[i], v_before[i],
                                                                    u_dendrite[i]);
            }
            adjoint[0] = a.v, adjoint[1] = a.d, adjoint[2] = a.spike;
        }
        sums[0] += total.b1, sums[1] += total.b2;
    }
};

template <class R>
struct TclifCpu {
    typedef R real;
    typedef lane_of<R> L;
    typedef TclifPass<L> Pass;
    const TclifArgs& args;
    const Layout& layout;
    const index_t blocks, rows, depth, width;  // rows of a batch; steps of a tile
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

    void gather(const Tile<L>& parameters, const Item& item) const {
        gather_parameters(parameters, 0, layout, item, args.b1, 1);
        gather_parameters(parameters, 1, layout, item, args.b2, 1);
    }
    TclifCoefficients<L> coefficients(const L* parameters) const {
        return {parameters[0], parameters[1], R(args.a1), R(args.a2), R(args.gamma), theta};
    }

    void load_state(const Tile<L>& state, const Batch& batch, index_t start) const {
        if (start > 0)
            return state.load(0, args.checkpoints,
                              batch.planes(layout, (start / depth - 1) * TCLIF_STATE, TCLIF_STATE));
        state.load(0, args.v, batch.planes(layout, 0, 1));
        state.load(1, args.d, batch.planes(layout, 0, 1));
    }

    index_t forward_scratch() const {
        return sizeof(L) * blocks * (TCLIF_PARAMETERS + rows * (TCLIF_STATE + 2 * depth));
    }

    void forward(index_t index, void* memory) const {
        const auto pass =
            args.pre_reset ? (args.strict ? Pass::template forward<true, true> : Pass::template forward<true, false>)
                           : (args.strict ? Pass::template forward<false, true> : Pass::template forward<false, false>);
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), state = scratch.tile(rows, TCLIF_STATE);
        const Tile<L> x = scratch.tile(rows, depth), v_seq = scratch.tile(rows, depth);  // x becomes the spikes
        Item item(layout, index);
        gather(parameters, item);
        for (Batch batch(layout, item); batch.segments; item.row += batch.segments, batch = Batch(layout, item)) {
            load_state(state, batch, 0);
            for (index_t start = 0; start < layout.T; start += depth) {
                const index_t steps = layout.T - start < depth ? layout.T - start : depth;
                const Rows here = batch.planes(layout, start, steps);
                const Rows next = batch.planes(layout, start + depth, start + 2 * depth <= layout.T ? depth : 0);
                if (start > 0 && args.checkpoints)
                    state.store(0, args.checkpoints,
                                batch.planes(layout, (start / depth - 1) * TCLIF_STATE, TCLIF_STATE));
                load_as(args.x_storage, x, args.x, here);
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    prefetch_rows(args.x, args.x_storage, next, b, blocks);
                    prefetch_rows(args.out, args.x_storage, here, b, blocks);
                    pass(coefficients(parameters.block(b)), state.block(b), batch.segments, steps, x.block(b),
                         v_seq.block(b));
                }
                store_as(args.x_storage, x, args.out, here);
                v_seq.store(0, args.v_seq, here);
            }
            state.store(0, args.v_after, batch.planes(layout, 0, 1));
            state.store(1, args.d_after, batch.planes(layout, 0, 1));
        }
    }

    index_t backward_scratch() const {
        const index_t tiles = TCLIF_PARAMETERS + TCLIF_SUMS + rows * (TCLIF_STATE + TCLIF_ADJOINT + 3 * depth);
        return sizeof(L) * (blocks * tiles + 3 * rows * depth);
    }

    void backward(index_t index, void* memory, void* partial) const {
        const auto recompute =
            args.pre_reset
                ? (args.strict ? Pass::template recompute<true, true> : Pass::template recompute<true, false>)
                : (args.strict ? Pass::template recompute<false, true> : Pass::template recompute<false, false>);
        const auto adjoint_pass =
            args.pre_reset
                ? (args.detach_reset ? Pass::template adjoint<true, true> : Pass::template adjoint<true, false>)
                : (args.detach_reset ? Pass::template adjoint<false, true> : Pass::template adjoint<false, false>);
        const auto surrogate = surrogate_parameters<R>(args);
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), sums = scratch.tile(1, TCLIF_SUMS);
        const Tile<L> state = scratch.tile(rows, TCLIF_STATE), adjoint = scratch.tile(rows, TCLIF_ADJOINT);
        const Tile<L> x = scratch.tile(rows, depth), grad_out = scratch.tile(rows, depth);  // grad_out becomes grad_x
        const Tile<L> grad_v_seq = scratch.tile(rows, depth);
        L* const v_before = scratch.lanes(rows * depth);
        L* const u_soma = scratch.lanes(rows * depth);  // becomes the slopes
        L* const u_dendrite = scratch.lanes(rows * depth);
        Item item(layout, index);
        gather(parameters, item);
        clear(sums.lanes, blocks * TCLIF_SUMS);
        for (Batch batch(layout, item); batch.segments; item.row += batch.segments, batch = Batch(layout, item)) {
            const Rows plane = batch.planes(layout, 0, 1);
            adjoint.load(0, args.grad_v_after, plane);
            adjoint.load(1, args.grad_d_after, plane);
            adjoint.load(2, nullptr, plane);
            for (index_t start = (layout.T - 1) / depth * depth; start >= 0; start -= depth) {
                const index_t steps = layout.T - start < depth ? layout.T - start : depth;
                const Rows here = batch.planes(layout, start, steps),
                           next = batch.planes(layout, start - depth, start > 0 ? depth : 0);
                load_state(state, batch, start);
                load_as(args.x_storage, x, args.x, here);
                load_as(args.x_storage, grad_out, args.grad_out, here);
                if (args.grad_v_seq) grad_v_seq.load(0, args.grad_v_seq, here);
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    prefetch_rows(args.x, args.x_storage, next, b, blocks);
                    prefetch_rows(args.grad_out, args.x_storage, next, b, blocks);
                    prefetch_rows(args.grad_x, args.x_storage, here, b, blocks);
                    const TclifCoefficients<L> c = coefficients(parameters.block(b));
                    recompute(c, state.block(b), batch.segments, steps, x.block(b), v_before, u_soma, u_dendrite);
                    surrogate_pass(args.surrogate, u_soma, batch.segments * steps, theta, surrogate);
                    adjoint_pass(c, adjoint.block(b), sums.block(b), batch.segments, steps, grad_out.block(b),
                                 args.grad_v_seq ? grad_v_seq.block(b) : nullptr, u_soma, v_before, u_dendrite);
                }
                store_as(args.x_storage, grad_out, args.grad_x, here);
            }
            if (args.pre_reset && args.grad_v) add_first_reset(state, adjoint, batch);
            adjoint.store(0, args.grad_v, plane);
            adjoint.store(1, args.grad_d, plane);
        }
        sum_by_channel((R*)partial, sums, layout, item);
    }

    // With PRE_RESET the initial soma decides the first reset.
    void add_first_reset(const Tile<L>& state, const Tile<L>& adjoint, const Batch& batch) const {
        load_state(state, batch, 0);
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.segments; ++s) {
                L* soma = state.block(b) + s * TCLIF_STATE;
                L* a = adjoint.block(b) + s * TCLIF_ADJOINT;
                surrogate_pass(args.surrogate, soma, 1, theta, surrogate_parameters<R>(args));
                a[0] += a[2] * soma[0];
            }
    }

    void reduce(const void* partials, double* totals) const {
        reduce_channels(layout, (const R*)partials, TCLIF_SUMS, totals);
        for (index_t c = 0; c < layout.C; ++c) {
            ((R*)args.grad_b1)[c] = R(totals[c * TCLIF_SUMS]);
            ((R*)args.grad_b2)[c] = R(totals[c * TCLIF_SUMS + 1]);
        }
    }
};

}  // namespace PMSN_NAMESPACE
