// PMSN over a few steps from rest on the CPU: a work item goes through its strip row by row, in groups of neighbouring
// blocks (of several rows, where these are short). So memory is read and written in as many streams as there are steps,
// each line at once, however far steps and rows lie apart.
#pragma once
#include "cpu_pmsn.h"
#include "cpu_short.h"

namespace PMSN_NAMESPACE {

template <class R>
struct PmsnShortCpu {
    typedef R real;
    typedef lane_of<R> L;
    const PmsnCpu<R> kernel;
    const PmsnArgs& args;
    const Layout& layout;
    const index_t k, T, blocks, width;
    const index_t group, rows;  // blocks and rows done together: about 128 lanes of steps
    const R theta;

    explicit PmsnShortCpu(const PmsnArgs& a)
        : kernel(a),
          args(a),
          layout(a.layout),
          k(a.k),
          T(layout.T),
          blocks(kernel.blocks),
          width(kernel.width),
          group(ceil_div(128 / T, LINE_BLOCKS) * LINE_BLOCKS),
          rows(blocks < group ? group / blocks : 1),
          theta(kernel.theta) {}

    static bool from_rest(const PmsnArgs& args) { return args.layout.T <= SHORT_STEPS && !args.v && !args.h_real; }
    // The hidden state is not worth its memory when nobody asks for it.
    static bool suits_forward(const PmsnArgs& args) { return from_rest(args) && !args.v_after; }
    // Also after a forward that went through the hidden state because it was asked for: the same u up to rounding.
    static bool suits_backward(const PmsnArgs& args) {
        return from_rest(args) && !args.grad_h_real_after && !args.grad_h_imag_after;
    }

    index_t sums() const { return kernel.sums(); }
    void reduce(const void* partials, double* totals, index_t begin, index_t end) const {
        kernel.reduce(partials, totals, begin, end);
    }

    void respond(const Tile<L>& parameters, const Tile<L>& response) const {
        for (index_t b = 0; b < blocks; ++b) short_response(parameters.block(b), k, T, response.block(b));
    }

    // Calls `run(here, span, b, upcoming)` for blocks b..b+span.blocks of the rows of a batch; the last one may be a
    // part of a lane.
    template <class Run>
    void for_groups(const WorkItem& item, const Run& run) const {
        for (Batch batch(layout, item, item.row, rows); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows, rows);
            const Planes here = batch.planes(layout, 0, T), next = next_batch.planes(layout, 0, T);
            const index_t whole = batch.valid / width, count = ceil_div(batch.valid, width);
            for (index_t b = 0, n; b < count; b += n) {
                n = b >= whole ? 1 : whole - b < group ? whole - b : group;
                run(here, Span{0, batch.rows, T, n, T}, b, NextBlock(batch, b + n, here, next, width));
            }
            batch = next_batch;
        }
    }
    Columns<L> in_cache(L* lanes, Span span) const { return Columns<L>::in_cache(lanes, T, span.rows * T); }
    // A function for T steps.
    template <class Use>
    void with_steps(const Use& use) const {
        if (T == 4) use(Constant<4>());
        else if (T == 8) use(Constant<8>());
        else if (T == 16) use(Constant<16>());
        else use(Constant<0>());
    }

    index_t forward_scratch() const {
        return sizeof(L) * (blocks * (coefficient_planes(k) + T) + group * (1 + 4 * T) + 4 * Scratch<L>::apart(0));
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k)), response = scratch.tile(1, T);
        L* const x = scratch.lanes(group * T);
        L* const current = scratch.lanes(group * T);
        L* const out = scratch.lanes(group * T);
        L* const v_seq = args.v_seq ? scratch.lanes(group * T) : nullptr;
        L* const v = scratch.next;
        const bool fused = args.reset == RESET_MODULO && (args.fire == FIRE_SPIKE || args.fire == FIRE_STRICT);
        const R fire_at = args.fire == FIRE_STRICT ? next_number(theta) : theta;
        const Steps<L> x_steps(args.x, args.x_storage), out_steps(args.out, args.out_storage);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, v_seq ? KEEP_OUT_AND_V : KEEP_OUT);
        const WorkItem item(layout, index);
        kernel.gather(parameters, item);
        respond(parameters, response);
        for_groups(item, [&](const Planes& here, Span span, index_t b, const NextBlock& upcoming) {
            const index_t n = span.blocks, rows_of_blocks = n * span.rows, pitch = span.rows * T;
            const Span flat = {0, rows_of_blocks, T};
            const Columns<L> from = x_steps.read(x, here, b, n, pitch), kept = in_cache(current, span);
            const auto charge = [&](const auto& sink) {
                with_steps(
                    [&](auto steps) { short_pass<decltype(steps)::value>(response.block(b), span, from, sink); });
            };
            if (fused) {
                const Prefetch prefetch_x = Prefetch(x_steps, upcoming.planes, upcoming.block),
                               prefetch_out = Prefetch(out_steps, upcoming.planes, upcoming.block);
                const Columns<L> to = out_steps.write(out, here, b, n, pitch);
                with_threshold<L>(theta, [&](auto threshold) {
                    charge(FireModulo<L, decltype(threshold), false>{to, in_cache(v_seq, span), v_seq != nullptr,
                                                                     threshold, fire_at, prefetch_x, prefetch_out,
                                                                     L{}});
                });
                out_steps.finish(out, here, b, n, pitch);
            } else {
                clear(v, rows_of_blocks);
                charge(KeepCurrent<L>{kept});
                membrane(v, flat, current, out, v_seq, theta);
                out_steps.store(out, here, b, n, pitch);
            }
            if (v_seq) store_column<L, Plain<L>>(v_seq, T, args.v_seq, here, b, n, pitch);
        });
    }

    index_t backward_scratch() const {
        return sizeof(L) *
               (blocks * (2 * coefficient_planes(k) + 2 * T) + 2 * group + 6 * Scratch<L>::apart(group * (T + 1)));
    }

    void backward(index_t index, void* memory, void* partial) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k)),
                      sums = scratch.tile(1, coefficient_planes(k));
        const Tile<L> response = scratch.tile(1, T), grad_response = scratch.tile(1, T);
        L* const x = scratch.lanes(group * T);
        L* const grads = scratch.lanes(group * T);  // of what is sent; become those of x
        L* const u = scratch.lanes(group * T);
        L* const dI = scratch.lanes(group * (T + 1));
        const bool bursts = args.fire == FIRE_BURST && !args.slopes;
        L* const slopes = args.slopes || bursts ? scratch.lanes(group * T) : nullptr;
        L* const grad_v_seq = args.grad_v_seq ? scratch.lanes(group * T) : nullptr;
        L* const v = scratch.next;
        L* const grad_v = v + group;
        const Steps<L> x_steps(args.x, args.x_storage), grad_steps(args.grad_out, args.out_storage),
            dx_steps(args.grad_x, args.x_storage);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, KEEP_U);
        const auto membrane_adjoint = membrane_adjoint_of<L>(args.reset);
        const WorkItem item(layout, index);
        kernel.gather(parameters, item);
        respond(parameters, response);
        clear(grad_response.lanes, blocks * grad_response.pitch);
        for_groups(item, [&](const Planes& here, Span span, index_t b, const NextBlock& upcoming) {
            const index_t n = span.blocks, rows_of_blocks = n * span.rows, pitch = span.rows * T;
            const Span flat = {0, rows_of_blocks, T};
            const Planes plane = {here.offset, here.valid, here.rows, here.row_stride, 1, here.stride};
            const Columns<L> from = x_steps.read(x, here, b, n, pitch);
            const Prefetch prefetch_x = Prefetch(x_steps, upcoming.planes, upcoming.block);
            const PrefetchBackward prefetch = {Prefetch(grad_steps, upcoming.planes, upcoming.block),
                                               Prefetch(dx_steps, upcoming.planes, upcoming.block)};
            const auto charge = [&](const auto& sink) {
                with_steps(
                    [&](auto steps) { short_pass<decltype(steps)::value>(response.block(b), span, from, sink); });
            };
            if (args.reset == RESET_MODULO)
                with_threshold<L>(theta, [&](auto threshold) {
                    charge(RecomputeShort<L, decltype(threshold)>{in_cache(u, span), threshold, prefetch_x, L{}});
                });
            else {
                clear(v, rows_of_blocks);
                charge(KeepCurrent<L>{in_cache(grads, span)});
                membrane(v, flat, grads, u, nullptr, theta);
            }
            if (args.slopes) load_column<L, Plain<L>>(slopes, T, args.slopes, here, b, n, pitch);
            if (bursts) burst_slope_pass(args, u, slopes, rows_of_blocks * T, theta);
            for (index_t s = 0; s < rows_of_blocks; ++s) dI[s * (T + 1)] = L{};
            if (args.reset == RESET_MODULO)
                modulo_adjoint_pass(args, span, u, slopes, grad_steps.read(grads, here, b, n, pitch), dI, theta);
            else {
                grad_steps.load(grads, here, b, n, pitch);
                if (grad_v_seq) load_column<L, Plain<L>>(grad_v_seq, T, args.grad_v_seq, here, b, n, pitch);
                if (args.grad_v_after) load_column<L, Plain<L>>(grad_v, 1, args.grad_v_after, plane, b, n, span.rows);
                else clear(grad_v, rows_of_blocks);
                membrane_adjoint(args, grad_v, flat, u, slopes, grads, grad_v_seq, dI, theta);
            }
            const Columns<L> dx = dx_steps.write(grads, here, b, n, pitch);
            with_steps([&](auto steps) {
                short_adjoint_pass<decltype(steps)::value>(response.block(b), grad_response.block(b), span, from, dI,
                                                           dx, prefetch);
            });
            dx_steps.finish(grads, here, b, n, pitch);
        });
        for (index_t b = 0; b < blocks; ++b)
            short_response_adjoint(parameters.block(b), k, T, grad_response.block(b), sums.block(b));
        sum_by_channel((R*)partial, sums, layout, item);
    }
};

}  // namespace PMSN_NAMESPACE
