// PMSN on the CPU: a work item brings its columns to the passes of cpu_pmsn_passes.h. For a few steps from rest there
// is cpu_pmsn_short.h.
//
// What memory adds to their cycles (see there), in lanes of 32 bytes: forward takes 21 to 25 with lines that do not
// meet in the same sets of the caches and 23 to 29 with steps that lie a power of two apart, where 16 are the pass;
// backward 55 to 61 and 63 to 70, where 44 are the passes, 5 are calls and columns' ends, and 3 lines that come from
// the second cache. What lies a power of two apart is copied first, which takes 8. To ask for it takes 5, and 10 with
// steps 64 pages apart, for a page is then translated anew each time that it is touched. The rest comes too late from
// memory. Slower were: copies within the loops of the passes, asking between these, a whole strip as one group, and
// asking for four lines of a page at once on two threads; stores past the caches took 0.95 to 1.05 of the time.
//
// Forward takes 4 to 6 more where steps lie whole pages apart and out begins at the same place in a page as x: each x
// then has the lowest 12 bits of its address in common with spikes on their way to memory. To hold these back for a
// line won half to three quarters of that, and cost 2 by itself; to allocate out elsewhere in its page won all of it in
// memory that had been used before, and lost as much where pages were new.
#pragma once
#include "cpu_pmsn_passes.h"

namespace PMSN_NAMESPACE {

template <class R>
struct PmsnCpu {
    typedef R real;
    typedef lane_of<R> L;
    const PmsnArgs& args;
    const Layout& layout;
    const index_t k, planes, blocks, rows, depth,
        width;  // planes of the state; rows of a batch; steps between checkpoints
    const R theta;
    // How the hidden compartments are computed: on the shortest way from rest, but not where the final v is asked for,
    // and perhaps its h later: steps that go on from there round otherwise. Where there are checkpoints, these are of
    // Filters or of Modes: backward has to find the same answer as forward. So it asks whether time may be cut: the
    // threads of this call may be others than those of forward.
    const bool from_rest, as_filters, with_signs;

    explicit PmsnCpu(const PmsnArgs& a)
        : args(a),
          layout(a.layout),
          k(a.k),
          planes(state_planes(k)),
          blocks(block_count<R>(layout)),
          rows(batch_rows(layout)),
          depth(layout.interval),
          width(lane_width<R>()),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)),
          from_rest(!a.h_real),
          as_filters(from_rest && !layout.cuttable && (a.checkpoints || !a.v_after) &&
                     (SIGNS || !any_oscillates_fast())),
          with_signs(SIGNS && as_filters && any_oscillates_fast()) {}

    bool any_oscillates_fast() const {
        for (index_t i = 0; i < layout.C * k; ++i)
            if (oscillates_fast(((const R*)args.E_real)[i])) return true;
        return false;
    }

    index_t sums() const { return coefficient_planes(k); }

    void gather(const Tile<L>& parameters, const WorkItem& item) const {
        gather_parameters(parameters, 0, layout, item, args.D, 1);
        const void* sources[] = {args.E_real, args.E_imag, args.K_real, args.K_imag};
        for (index_t i = 0; i < 4; ++i) gather_parameters(parameters, 1 + i * k, layout, item, sources[i], k);
    }
    void to_filters(const Tile<L>& parameters, const Tile<L>& filters) const {
        for (index_t b = 0; b < blocks; ++b) {
            *filters.block(b) = *parameters.block(b);
            filters_from_modes(parameters.block(b) + 1, k, with_signs, filters.block(b) + 1);
        }
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
                v = modulo_of_any(v, Threshold<R>(theta));
            }
    }
    Planes checkpoint(const Batch& batch, index_t start) const {
        return batch.planes(layout, (start / depth - 1) * planes, planes);
    }

    // x -> current -> sink, one way or another. With CHANGES, Filters leave them in `changes`.
    template <bool CHANGES, class Sink>
    void charge(const L* parameters, L* state, L* changes, Span span, Columns<L> x, Columns<L> partial,
                const Sink& sink) const {
        if constexpr (SIGNS)
            if (with_signs)
                return hidden_pass<SignedFilters, CHANGES>(parameters, state, changes, span, x, partial, sink);
        if (as_filters) hidden_pass<Filters, CHANGES>(parameters, state, changes, span, x, partial, sink);
        else hidden_pass<Modes, false>(parameters, state, changes, span, x, partial, sink);
    }
    // dI -> dx, by the same way or, where what comes after the sequence has a gradient of h, by Modes.
    template <int ALSO>
    void discharge(bool back_as_filters, const L* parameters, L* adjoint, L* sums, Span span, Saved<L> saved,
                   Columns<L> partial, Columns<L> dx, PrefetchBackward prefetch) const {
        if constexpr (SIGNS)
            if (back_as_filters && with_signs)
                return adjoint_pass<SignedFilters, ALSO>(parameters, adjoint, sums, span, saved, partial, dx, prefetch);
        if (back_as_filters) adjoint_pass<Filters, ALSO>(parameters, adjoint, sums, span, saved, partial, dx, prefetch);
        else adjoint_pass<Modes, ALSO>(parameters, adjoint, sums, span, saved, partial, dx, prefetch);
    }
    // Where a line of memory holds several blocks, forward takes few steps with all blocks of a strip, one after the
    // other, before it goes on: lines that lie side by side are used up while they are there, however far steps lie
    // apart. Otherwise one block goes on to the next checkpoint.
    enum { CHUNK_STEPS = 16 };
    bool in_chunks() const { return LINE_BLOCKS > 1 && depth % CHUNK_STEPS == 0; }
    index_t chunk() const { return in_chunks() ? index_t(CHUNK_STEPS) : depth; }
    index_t chunk_lanes() const { return Scratch<L>::apart(rows * chunk()); }

    index_t forward_scratch() const {
        return sizeof(L) * (blocks * (coefficient_planes(k) + filter_planes(k) + rows * planes) +
                            4 * Scratch<L>::apart((in_chunks() ? blocks : 1) * chunk_lanes()));
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k)), filters = scratch.tile(1, filter_planes(k));
        const Tile<L> state = scratch.tile(rows, planes);
        const index_t pitch = chunk_lanes(), lanes = (in_chunks() ? blocks : 1) * pitch;
        L* const x = scratch.lanes(lanes);
        L* const current = scratch.lanes(lanes);
        L* const out = scratch.lanes(lanes);
        L* const v_seq = args.v_seq ? scratch.lanes(lanes) : nullptr;
        const bool fused = args.reset == RESET_MODULO && (args.fire == FIRE_SPIKE || args.fire == FIRE_STRICT);
        const Steps<L> x_steps(args.x, args.x_storage), out_steps(args.out, args.out_storage);
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, v_seq ? KEEP_OUT_AND_V : KEEP_OUT);
        const WorkItem item(layout, index);
        gather(parameters, item);
        if (as_filters) to_filters(parameters, filters);
        const Tile<L>& coefficients = as_filters ? filters : parameters;
        for (Batch batch(layout, item, item.row, rows); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows, rows);
            load_state(state, batch, item.start);
            const index_t count = ceil_div(batch.valid, width), whole = batch.valid / width;
            for (index_t start = item.start; start < item.end; start += chunk()) {
                const Planes here = planes_from(batch, start, item, chunk());
                const index_t end = start + here.count;
                const Planes next = end < item.end ? planes_from(batch, end, item, chunk())
                                                   : planes_from(next_batch, item.start, item, chunk());
                if (args.checkpoints && start % depth == 0 && start > item.start)
                    state.store(0, args.checkpoints, checkpoint(batch, start));
                if (args.checkpoints && end % depth == 0 && end < item.end)
                    for (index_t b = 0; b < count; b += LINE_BLOCKS)
                        ask_planes<L>(args.checkpoints, checkpoint(batch, end), b);
                const Prefetch prefetch_x = Prefetch::ahead(x_steps, here, next, count),
                               prefetch_out = Prefetch::ahead(out_steps, here, next, count);
                for (index_t b = 0, n; b < count; b += n) {
                    n = in_chunks() && b < whole ? whole : 1;  // a part of a lane is done in cache
                    const Span span = {k, batch.rows, here.count, n, coefficients.pitch, state.pitch};
                    const Columns<L> from = x_steps.read(x, here, b, n, pitch),
                                     partial = Columns<L>::in_cache(current, here.count, pitch);
                    if (fused) {
                        with_threshold<L>(theta, [&](auto threshold) {
                            const FireModulo<L, decltype(threshold)> fire = {
                                out_steps.write(out, here, b, n, pitch),
                                Columns<L>::in_cache(v_seq, here.count, pitch),
                                v_seq != nullptr,
                                threshold,
                                args.fire == FIRE_STRICT ? next_number(theta) : theta,
                                prefetch_x.block(b),
                                prefetch_out.block(b),
                                L{}};
                            charge<false>(coefficients.block(b), state.block(b), nullptr, span, from, partial, fire);
                        });
                        out_steps.finish(out, here, b, n, pitch);
                    } else {
                        charge<false>(coefficients.block(b), state.block(b), nullptr, span, from, partial,
                                      KeepCurrent<L>{partial});
                        for (index_t i = 0; i < n; ++i)
                            membrane(state.block(b + i), span, current + i * pitch, out + i * pitch,
                                     v_seq ? v_seq + i * pitch : nullptr, theta);
                        out_steps.store(out, here, b, n, pitch);
                    }
                    if (v_seq) store_column<L, Plain<L>>(v_seq, here.count, args.v_seq, here, b, n, pitch);
                }
            }
            if (item.end == layout.T && args.v_after) {
                if (as_filters) to_hidden(parameters, state, batch);
                state.store(0, args.v_after, batch.planes(layout, 0, 1));
                state.store(1, args.h_real_after, batch.planes(layout, 0, k));
                state.store(1 + k, args.h_imag_after, batch.planes(layout, 0, k));
            }
            batch = next_batch;
        }
    }

    void to_hidden(const Tile<L>& parameters, const Tile<L>& state, const Batch& batch) const {
        for (index_t b = 0; b * width < batch.valid; ++b)
            for (index_t s = 0; s < batch.rows; ++s)
                hidden_from_filters(parameters.block(b) + 1, k, with_signs, state.block(b) + s * planes + 1);
    }

    // Time cut into segments (RESET_MODULO, and RESET_MEMORYLESS, of whose membrane only NaN goes on), before
    // `forward`: what a segment leaves at its end, from rest, goes to the checkpoint there; first the hidden
    // compartments, then (from those before it as they are) the membrane.
    void forward_local(index_t index, void* memory, bool membrane) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k)), state = scratch.tile(rows, planes);
        L* const x = scratch.lanes(rows * chunk());
        L* const current = scratch.lanes(rows * chunk());
        L* const out = scratch.lanes(rows * chunk());
        const Steps<L> x_steps(args.x, args.x_storage);
        const WorkItem item(layout, index);
        if (item.end == layout.T) return;
        gather(parameters, item);
        for (Batch batch(layout, item, item.row, rows); batch.rows;
             batch = Batch(layout, item, batch.row + batch.rows, rows)) {
            if (membrane) load_state(state, batch, item.start);
            if (!membrane) state.load(0, nullptr, batch.planes(layout, 0, planes));
            else if (item.start > 0) state.load(0, nullptr, batch.planes(layout, 0, 1));
            for (index_t start = item.start; start < item.end; start += chunk()) {
                const Planes here = planes_from(batch, start, item, chunk());
                const Span span = {k, batch.rows, here.count};
                for (index_t b = 0; b * width < batch.valid; ++b) {
                    const Columns<L> from = x_steps.read(x, here, b),
                                     partial = Columns<L>::in_cache(current, here.count);
                    const Prefetch no_more(x_steps, here, b);
                    L* const no_changes = nullptr;
                    const FireModulo<L, Threshold<R>> fire = {Columns<L>::in_cache(out, here.count),
                                                              partial,
                                                              false,
                                                              Threshold<R>(theta),
                                                              theta,
                                                              no_more,
                                                              no_more,
                                                              L{}};
                    if (membrane)
                        hidden_pass<Modes, false>(parameters.block(b), state.block(b), no_changes, span, from, partial,
                                                  fire);
                    else
                        hidden_pass<Modes, false>(parameters.block(b), state.block(b), no_changes, span, from, partial,
                                                  KeepCurrent<L>{partial});
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
                const R E_real = read(args.E_real, mode), E_imag = read(args.E_imag, mode);
                const AdjointPower<R> whole(E_real, E_imag, layout.segment),
                    rest(E_real, E_imag, layout.T - last * layout.segment);
                AdjointCarry<R> carry(read(args.grad_h_real_after, j * M + element),
                                      read(args.grad_h_imag_after, j * M + element));
                for (index_t segment = last; segment > 0; --segment) {
                    R* at = (R*)args.carries + ((segment - 1) * coefficient_planes(k) + 1 + j) * M + element;
                    carry.step(segment < last ? whole : rest, at[0], at[k * M], at[2 * k * M], at[3 * k * M]);
                }
            }
    }

    Planes planes_from(const Batch& batch, index_t start, const WorkItem& item, index_t most) const {
        return batch.planes(layout, start, item.end - start < most ? item.end - start : most);
    }
    Planes steps_from(const Batch& batch, index_t start, const WorkItem& item) const {
        return planes_from(batch, start, item, depth);
    }

    // What backward begins an item with; nothing where there is no such item.
    Planes last_steps(index_t index) const {
        if (index >= item_count(layout)) return {};
        const WorkItem item(layout, index);
        return steps_from(Batch(layout, item, item.row, rows), (item.end - 1) / depth * depth, item);
    }

    // Blocks that are brought to cache together, from `first` on; their columns are `pitch` lanes apart there.
    struct Group {
        index_t first;
        int count;
    };
    index_t pitch() const { return Scratch<L>::apart(rows * depth); }

    // Whether they are several. A copy costs more than the line that it saves, up to a fifth of backward, except where
    // steps lie a multiple of eight pages apart: there their lines meet in the same few sets of every cache, and their
    // pages in those of the translation of addresses. With fewer than three blocks nobody would ask for grad_x, see
    // below.
    bool in_groups() const {
        const bool collide = layout.M * sizeof(R) % (8 * 4096) == 0;
        return collide && blocks > 2;
    }

    static Columns<L> in_cache(L* lanes, const Planes& planes) { return Columns<L>::in_cache(lanes, planes.count); }

    // Calls `run(b, group)` for the blocks of a batch, and before and after those of a group `bring` and `send`.
    template <class Bring, class Run, class Send>
    void for_blocks(const Batch& batch, int most, const Bring& bring, const Run& run, const Send& send) const {
        const index_t last = ceil_div(batch.valid, width);
        for (index_t b = 0; b < last;) {
            const Group group = {b, int(last - b < most ? last - b : most)};
            bring(group);
            for (; b < group.first + group.count; ++b) run(b, group);
            send(group);
        }
    }

    index_t backward_scratch() const {
        const index_t tiles = 3 * coefficient_planes(k) + filter_planes(k) + rows * (planes + coefficient_planes(k));
        return sizeof(L) * (blocks * tiles + 2 * Scratch<L>::apart(TOGETHER * pitch()) +
                            5 * Scratch<L>::apart(rows * (depth + 1)) + 2 * Scratch<L>::apart(rows * depth * k));
    }

    // Without `partial` only to find the adjoint at the segment's start, from zero at its end.
    void backward(index_t index, void* memory, void* partial) const {
        if constexpr (TOGETHER > 1)
            if (in_groups()) return backward_by<TOGETHER>(index, memory, partial);
        backward_by<1>(index, memory, partial);
    }

    // By groups of MOST blocks, which are copied to cache and back, or by blocks that are read where they are.
    template <int MOST>
    void backward_by(index_t index, void* memory, void* partial) const {
        constexpr bool copied = MOST > 1;
        const bool from_zero = !args.grad_h_real_after && !args.grad_h_imag_after;
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k)), filters = scratch.tile(1, filter_planes(k)),
                      sums = scratch.tile(1, coefficient_planes(k)), initial = scratch.tile(1, coefficient_planes(k));
        const Tile<L> state = scratch.tile(rows, planes), adjoint = scratch.tile(rows, coefficient_planes(k));
        L* const xs = scratch.lanes(MOST * pitch());
        L* const grads = scratch.lanes(MOST * pitch());  // of what is sent; become those of x
        L* const u = scratch.lanes(rows * depth);
        L* const dI = scratch.lanes(rows * (depth + 1));
        L* const current = scratch.lanes(rows * depth);
        L* const changes = as_filters ? scratch.lanes(rows * depth * k) : nullptr;
        L* const grad_changes = as_filters && APART ? scratch.lanes(rows * depth * k) : nullptr;
        // What comes next is asked for while the currents are computed again, which is the longest of the loops: of a
        // group by one block after the other, parts of x, of grad_out and of grad_x, two lines of a page at a time, and
        // every other part from the last step to the first: so the pages come first that have just been translated. A
        // block on its own asks there for its x, and for the others on the way back.
        const bool in_turns = copied && args.reset == RESET_MODULO;
        const index_t parts = ceil_div(blocks < MOST ? blocks : MOST, ASKED_BLOCKS);
        const bool back_as_filters = as_filters && from_zero;
        const bool bursts = args.fire == FIRE_BURST && !args.slopes;
        L* const slopes = args.slopes || bursts ? scratch.lanes(rows * depth) : nullptr;
        L* const grad_v_seq = args.grad_v_seq ? scratch.lanes(rows * depth) : nullptr;
        const Steps<L> x_steps(args.x, args.x_storage), grad_steps(args.grad_out, args.out_storage),
            dx_steps(args.grad_x, args.x_storage);
        const Steps<L> tensors[] = {x_steps, grad_steps, dx_steps};
        const auto membrane = MembranePass<L>::select(args.reset, args.fire, KEEP_U);
        const auto membrane_adjoint = membrane_adjoint_of<L>(args.reset);
        const WorkItem item(layout, index);
        const bool local = !partial;
        if (local && item.start == 0) return;
        gather(parameters, item);
        if (as_filters) to_filters(parameters, filters);
        const Tile<L>& coefficients = as_filters ? filters : parameters;
        const Tile<L>& back_coefficients = back_as_filters ? filters : parameters;
        if (!back_as_filters) clear(initial.lanes, blocks * initial.pitch);
        clear(sums.lanes, blocks * sums.pitch);
        for (Batch batch(layout, item, item.row, rows); batch.rows;) {
            const Batch next_batch(layout, item, batch.row + batch.rows, rows);
            const index_t last = (item.end - 1) / depth * depth;
            adjoint.load(0, args.grad_v_after, batch.planes(layout, 0, 1));
            if (item.end < layout.T) {
                const index_t place = item.start / layout.segment * coefficient_planes(k);
                adjoint.load(0, local ? nullptr : args.carries, batch.planes(layout, place, coefficient_planes(k)));
            } else if (local) adjoint.load(1, nullptr, batch.planes(layout, 0, 4 * k));
            else {
                adjoint.load(1, args.grad_h_real_after, batch.planes(layout, 0, k));
                adjoint.load(1 + k, args.grad_h_imag_after, batch.planes(layout, 0, k));
                adjoint.load(1 + 2 * k, nullptr, batch.planes(layout, 0, 2 * k));
            }
            for (index_t start = last; start >= item.start; start -= depth) {
                const Planes here = steps_from(batch, start, item);
                const Planes next = start > item.start ? steps_from(batch, start - depth, item)
                                    : next_batch.rows  ? steps_from(next_batch, last, item)
                                                       : last_steps(index + 1);
                const Span span = {k, batch.rows, here.count};
                load_state(state, batch, start);
                for (index_t s = 0; s < batch.rows; ++s) dI[s * (here.count + 1)] = L{};
                const auto bring = [&](Group group) {
                    if (copied) x_steps.load(xs, here, group.first, group.count, pitch());
                    if (copied) grad_steps.load(grads, here, group.first, group.count, pitch());
                };
                const auto send = [&](Group group) {
                    if (copied && !local) dx_steps.store(grads, here, group.first, group.count, pitch());
                };
                for_blocks(
                    batch, MOST, bring,
                    [&](index_t b, Group group) {
                        const NextBlock upcoming(batch, group.first + MOST, here, next, width);
                        const index_t in_group = b - group.first;
                        const index_t tensor = in_turns ? in_group / parts : 0, part = in_turns ? in_group % parts : 0;
                        const Prefetch forth(tensors[tensor % 3], tensor < 3 ? upcoming.planes : Planes{},
                                             upcoming.block + part * ASKED_BLOCKS, in_turns ? LINE_BLOCKS : 1);
                        const bool turns = part % 2 && upcoming.planes.count == here.count;
                        const Prefetch prefetch_lines = turns ? forth.backwards(here.count) : forth;
                        const PrefetchBackward prefetch = {
                            Prefetch(grad_steps, upcoming.planes, upcoming.block + in_group),
                            Prefetch(dx_steps, upcoming.planes, upcoming.block + in_group)};
                        // what comes next may have more steps than the loops have here
                        for (index_t s = 0; s < upcoming.planes.rows; ++s)
                            for (index_t t = here.count; t < upcoming.planes.count; ++t) {
                                prefetch_lines.template ask<copied ? ASKED_BLOCKS * sizeof(L) : 64>(s, t);
                                if (!in_turns) prefetch.ask(s, t);
                            }
                        if (start - depth > item.start)
                            ask_planes<L>(args.checkpoints, checkpoint(batch, start - depth), b);
                        L *const x = xs + in_group * pitch(), *const grad = grads + in_group * pitch();
                        const Columns<L> in_x = in_cache(x, here), in_grad = in_cache(grad, here),
                                         partial = in_cache(current, here);
                        if (args.reset == RESET_MODULO) {
                            with_threshold<L>(theta, [&](auto threshold) {
                                const RecomputeModulo<copied, L, decltype(threshold)> recompute = {
                                    in_x, in_cache(u, here), threshold, prefetch_lines, L{}};
                                charge<true>(coefficients.block(b), state.block(b), changes, span,
                                             copied ? in_x : x_steps.read(x, here, b), partial, recompute);
                            });
                            if (args.slopes) load_column<L, Plain<L>>(slopes, here.count, args.slopes, here, b);
                            if (bursts) burst_slope_pass(args, u, slopes, span.rows * span.steps, theta);
                            modulo_adjoint_pass(args, span, u, slopes,
                                                copied ? in_grad : grad_steps.read(grad, here, b), dI, theta);
                        } else {
                            if (!copied) x_steps.load(x, here, b);
                            if (!copied) grad_steps.load(grad, here, b);
                            if (grad_v_seq) load_column<L, Plain<L>>(grad_v_seq, here.count, args.grad_v_seq, here, b);
                            charge<true>(coefficients.block(b), state.block(b), changes, span, in_x, partial,
                                         KeepCurrent<L>{partial});
                            membrane(state.block(b), span, current, u, nullptr, theta);
                            if (args.slopes) load_column<L, Plain<L>>(slopes, here.count, args.slopes, here, b);
                            if (bursts) burst_slope_pass(args, u, slopes, span.rows * span.steps, theta);
                            membrane_adjoint(args, adjoint.block(b), span, u, slopes, grad, grad_v_seq, dI, theta);
                        }
                        const Columns<L> dx = copied || local ? in_grad : dx_steps.write(grad, here, b);
                        const Saved<L> saved = {x, dI, state.block(b), changes, grad_changes};
                        const auto go_back = [&](auto also) {
                            discharge<decltype(also)::value>(back_as_filters, back_coefficients.block(b),
                                                             adjoint.block(b), sums.block(b), span, saved, in_grad, dx,
                                                             prefetch);
                        };
                        if constexpr (copied) in_turns ? go_back(Constant<0>()) : go_back(Constant<ASK>());
                        else go_back(Constant<ASK>());
                        if (!copied && !local) dx_steps.finish(grad, here, b);
                    },
                    send);
            }
            if (local) {
                const index_t place = (item.start / layout.segment - 1) * coefficient_planes(k);
                adjoint.store(0, args.carries, batch.planes(layout, place, coefficient_planes(k)));
            } else if (item.start == 0) {
                if (args.h_real) add_initial(initial, state, adjoint, batch);
                adjoint.store(0, args.grad_v, batch.planes(layout, 0, 1));
                adjoint.store(1, args.grad_h_real, batch.planes(layout, 0, k));
                adjoint.store(1 + k, args.grad_h_imag, batch.planes(layout, 0, k));
            }
            batch = next_batch;
        }
        if (local) return;
        for (index_t b = 0; b < blocks; ++b) {
            if (back_as_filters) gradients_from_filters(parameters.block(b) + 1, k, with_signs, sums.block(b) + 1);
            else finish(parameters.block(b), sums.block(b), initial.block(b));
        }
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

    void reduce(const void* partials, double* totals, index_t begin, index_t end) const {
        reduce_channels(layout, (const R*)partials, sums(), totals, begin, end);
        void* targets[] = {args.grad_K_real, args.grad_K_imag, args.grad_E_real, args.grad_E_imag};
        for (index_t c = begin; c < end; ++c, ++totals) {
            ((R*)args.grad_D)[c] = R(totals[0]);
            for (index_t i = 0; i < 4; ++i)
                for (index_t j = 0; j < k; ++j)
                    ((R*)targets[i])[c * k + j] = R(totals[(1 + i * k + j) * (end - begin)]);
        }
    }
};

}  // namespace PMSN_NAMESPACE
