// A recurrent layer of TC-LIF on the CPU: the current x[t] + bias + W s[t-1] into the steps of tclif.h; see
// pmsn_plugins/functional/tclif_recurrent.py.
//
// Samples are independent, so a work item is some of them, over all time, and a few of those at a time. Few neurons
// fire in a step: forward adds the rows of W^T that belong to them, and in backward dW gets the current's gradient
// in the same rows. What is left is one product per step, of the current's gradient with W, and that is what bounds it
// from about 100 neurons on.
//
// Kept for backward are the dendrites of all steps, from which the somata follow without another product, and one
// soma in `interval` steps to begin from; x is not needed.
#pragma once
#include "cpu_rows.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

template <class R>
struct TclifRecurrentCpu {
    typedef lane_of<R> L;
    typedef typename Rows<L>::Span Span;
    const TclifRecurrentArgs& args;
    const Layout& layout;
    const index_t T, N, C, width, blocks, padded;  // lanes, and numbers, that hold a row of C
    const R theta;
    const index_t items;
    const index_t real_storage = sizeof(R) == 4 ? STORAGE_FLOAT : STORAGE_DOUBLE;

    explicit TclifRecurrentCpu(const TclifRecurrentArgs& a)
        : args(a),
          layout(a.layout),
          T(layout.T),
          N(layout.M / layout.C),
          C(layout.C),
          width(lane_width<R>()),
          blocks(ceil_div(C, width)),
          padded(blocks * width),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)),
          items(item_number()) {}

    // Every item leaves a dW of its own. The number of threads plays no part, so neither does it in the sums; a
    // multiple of four divides well among them.
    index_t item_number() const {
        const index_t wanted = ceil_div(ceil_div(N, PRODUCT_SAMPLES), 4) * 4, room = (1 << 24) / (C * padded);
        const index_t most = room > 32 ? 32 : room < 1 ? 1 : room, number = wanted < most ? wanted : most;
        return number < N ? number : N;
    }
    // Runs `run` on the samples of an item, a batch at a time.
    template <class Run>
    void for_batches(index_t item, void* memory, const Run& run) const {
        const index_t first = N * item / items, samples = N * (item + 1) / items - first;
        const index_t batches = ceil_div(samples, PRODUCT_SAMPLES);
        for (index_t i = 0; i < batches; ++i) {
            const index_t begin = first + samples * i / batches, end = first + samples * (i + 1) / batches;
            run(Batch{begin, end - begin, (end - begin) * blocks, (L*)memory});
        }
    }

    Rows<L> rows(const void* memory) const { return {memory, real_storage, C}; }
    Rows<L> rows(const void* memory, index_t storage) const { return {memory, storage, C}; }

    // What all items read: bias, b1, b2 [padded], and W.
    enum { VECTORS = 3 };
    index_t shared_bytes() const { return sizeof(R) * padded * (C + VECTORS); }
    const R* vector(const void* shared, int which) const { return (const R*)shared + which * padded; }
    const R* matrix(const void* shared) const { return (const R*)shared + VECTORS * padded; }

    void share_vectors(void* shared) const {
        const void* const vectors[VECTORS] = {args.bias, args.b1, args.b2};
        for (int i = 0; i < VECTORS; ++i) {
            const Span row = rows(vectors[i]).read(0, 1, (L*)shared + i * blocks);
            for (index_t b = 0; b < blocks; ++b) store_lane((R*)vector(shared, i), b, load_lane<L>(row.first, b));
        }
    }
    // W^T as rows [C][padded].
    void share_rows(void* shared) const {
        share_vectors(shared);
        const R* const weight = (const R*)args.weight;
        R* const to = (R*)matrix(shared);
        const index_t tile = 16;
        for (index_t i = 0; i < padded; i += tile)
            for (index_t j = 0; j < C; j += tile)
                for (index_t n = j; n < j + tile && n < C; ++n)
                    for (index_t m = i; m < i + tile && m < padded; ++m)
                        to[n * padded + m] = m < C ? weight[m * C + n] : R(0);
    }
    // W as `product` takes it.
    void share_panels(void* shared) const {
        share_vectors(shared);
        const R* const weight = (const R*)args.weight;
        R* to = (R*)matrix(shared);
        for (index_t b = 0; b < blocks; b += PRODUCT_LANES) {
            const index_t first = b * width, wide = (blocks - b < PRODUCT_LANES ? blocks - b : PRODUCT_LANES) * width;
            for (index_t j = 0; j < C; ++j, to += wide)
                for (index_t i = 0; i < wide; ++i) to[i] = first + i < C ? weight[j * C + first + i] : R(0);
        }
    }

    TclifCoefficients<L> coefficients() const {  // without b1 and b2
        const R fire_at = args.strict ? next_number(theta) : theta;
        return {L{}, L{}, R(args.a1), R(args.a2), R(args.gamma), theta, fire_at};
    }

    // Rows of the checkpoints: the dendrites of step t from sample n on, and the somata of an interval's last step.
    Span dendrites(index_t t, index_t n) const {
        const index_t pitch = ceil_div(C, 16) * 16;
        return {(R*)args.checkpoints + (t * N + n) * pitch, pitch};
    }
    Span somata(index_t t, index_t n) const { return dendrites(T + t / layout.interval, n); }
    bool is_kept(index_t t) const { return (t + 1) % layout.interval == 0 && t + 1 < T; }

    // Some samples, and their rows in the thread's memory.
    struct Batch {
        index_t begin, samples, lanes;
        L* next;

        L* rows(index_t steps = 1) {
            L* const first = next;
            next += steps * lanes;
            return first;
        }
    };
    index_t scratch_bytes(index_t arrays) const {
        return PRODUCT_SAMPLES * (sizeof(L) * blocks * arrays + sizeof(Fired) + sizeof(int) * (padded + 16));
    }
    // What comes last in that memory.
    Fired* fired_lists(const Batch& batch) const {
        Fired* const fired = (Fired*)batch.next;
        for (index_t n = 0; n < batch.samples; ++n) fired[n] = {(int*)(fired + batch.samples) + n * (padded + 16), 0};
        return fired;
    }
    R* row_of(L* lanes, index_t n) const { return (R*)(lanes + n * blocks); }
    const R* row_of(const L* lanes, index_t n) const { return (const R*)(lanes + n * blocks); }

    // Rows of the state, or of its gradient.
    void bring(const void* memory, const Batch& batch, index_t row, L* lanes) const {
        const Span from = rows(memory).read(row, batch.samples, lanes);
        if (from.first != (R*)lanes) copy(from, batch.samples, lanes);
    }
    void copy(Span from, index_t samples, L* lanes) const {
        for (index_t n = 0; n < samples; ++n)
            for (index_t b = 0; b < blocks; ++b) lanes[n * blocks + b] = load_lane<L>(from.row(n), b);
    }
    void send(const L* lanes, void* memory, const Batch& batch) const {
        const Rows<L> to = rows(memory);
        const Span span = to.write(batch.begin, (L*)lanes);
        for (index_t n = 0; to.direct() && n < batch.samples; ++n)
            for (index_t b = 0; b < blocks; ++b) store_lane(span.row(n), b, lanes[n * blocks + b]);
        to.finish(batch.begin, batch.samples, lanes);
    }

    index_t forward_scratch() const { return scratch_bytes(6); }

    void forward(index_t item, void* memory, const void* shared) const {
        for_batches(item, memory, [&](Batch batch) { forward(batch, shared); });
    }
    void forward(Batch batch, const void* shared) const {
        L *const v = batch.rows(), *const d = batch.rows(), *const last = batch.rows();  // `last`: spikes
        L *const x_lanes = batch.rows(), *const out_lanes = batch.rows(), *const v_lanes = batch.rows();
        Fired* const fired = fired_lists(batch);
        const Rows<L> x = rows(args.x, args.x_storage), out = rows(args.out, args.x_storage), v_seq = rows(args.v_seq);
        bring(args.v, batch, batch.begin, v);
        bring(args.d, batch, batch.begin, d);
        bring(args.s, batch, batch.begin, last);
        for (index_t n = 0; n < batch.samples; ++n) fired[n].list(row_of(last, n), blocks);
        for (index_t t = 0; t < T; ++t) {
            const index_t row = t * N + batch.begin;
            const Span from = x.read(row, batch.samples, x_lanes), to = out.write(row, out_lanes);
            const Span membranes = v_seq.write(row, v_lanes), kept = dendrites(t, batch.begin);
            const Span kept_soma = somata(t, batch.begin);
            const bool keeps_soma = args.checkpoints && is_kept(t);
            for (index_t n = 0; n < batch.samples; ++n) {
                if (t + 1 < T) {
                    x.ask(row + N + n), out.ask(row + N + n);
                    if (args.checkpoints) ask_bytes(kept.row(N + n), padded * sizeof(R));
                }
                const ForwardRow at = {from.row(n),
                                       to.row(n),
                                       args.v_seq ? membranes.row(n) : nullptr,
                                       args.checkpoints ? kept.row(n) : nullptr,
                                       keeps_soma ? kept_soma.row(n) : nullptr,
                                       row_of(v, n),
                                       row_of(d, n),
                                       row_of(last, n),
                                       fired[n]};
                // only a state that was made by hand has other spikes than 0 and 1
                if (args.pre_reset) t ? step<true, false>(at, shared) : step<true, true>(at, shared);
                else t ? step<false, false>(at, shared) : step<false, true>(at, shared);
                fill_up(at.dendrite, kept.pitch), fill_up(at.soma, kept.pitch);
                fired[n].list(at.out, blocks);
            }
            if (t + 1 == T && args.s_after) copy(to, batch.samples, last);
            out.finish(row, batch.samples, out_lanes);
            v_seq.finish(row, batch.samples, v_lanes);
        }
        send(v, args.v_after, batch);
        send(d, args.d_after, batch);
        send(last, args.s_after, batch);
    }

    // Zeros behind a row of the checkpoints, as far as the next one.
    void fill_up(R* row, index_t pitch) const {
        for (index_t b = blocks; row && b * width < pitch; ++b) store_lane(row, b, L{});
    }

    // A sample in one step; null where it is not wanted.
    struct ForwardRow {
        const R* x;
        R *out, *v_seq, *dendrite, *soma, *v, *d;
        const R* last;
        Fired fired;
    };
    template <bool PRE_RESET, bool WEIGHTED>
    void step(const ForwardRow& row, const void* shared) const {
        const TclifCoefficients<L> c = coefficients();
        const R *const bias = vector(shared, 0), *const b1 = vector(shared, 1), *const b2 = vector(shared, 2);
        const R* const weights = matrix(shared);
        const index_t pitch = padded;
        for (index_t b = 0; b < blocks;)
            b += with_at_most<ROW_LANES>(blocks - b, [=](auto number) {
                step_lanes<PRE_RESET, WEIGHTED, number.value>(row, b, c, bias, b1, b2, weights, pitch);
            });
    }
    // By value, and not through `this`: what is stored could be any of it, for all the compiler knows.
    template <bool PRE_RESET, bool WEIGHTED, int W>
    static PMSN_FN void step_lanes(ForwardRow row, index_t b, TclifCoefficients<L> c, const R* bias, const R* b1,
                                   const R* b2, const R* weights, index_t pitch) {
        L current[W];
        for (int w = 0; w < W; ++w) current[w] = load_lane<L>(row.x, b + w) + load_lane<L>(bias, b + w);
        add_rows<WEIGHTED>(current, weights + b * lane_width<R>(), pitch, row.fired, row.last);
        PMSN_UNROLL
        for (int w = 0; w < W; ++w) {
            c.b1 = load_lane<L>(b1, b + w), c.b2 = load_lane<L>(b2, b + w);
            L v = load_lane<L>(row.v, b + w), d = load_lane<L>(row.d, b + w), soma, dendrite;
            const L spike = tclif_step<PRE_RESET>(c, current[w], v, d, soma, dendrite);
            store_lane(row.v, b + w, v), store_lane(row.d, b + w, d), store_lane(row.out, b + w, spike);
            if (row.dendrite) store_lane(row.dendrite, b + w, dendrite);
            if (row.soma) store_lane(row.soma, b + w, soma);
            if (row.v_seq) store_lane(row.v_seq, b + w, v);
        }
    }

    // An item's sums: dW^T as rows [C][padded], then dbias, db1, db2 [padded].
    index_t partial_bytes() const { return sizeof(R) * padded * (C + VECTORS); }
    index_t backward_scratch() const { return scratch_bytes(10 + layout.interval + 1); }

    void backward(index_t item, void* memory, const void* shared, void* partial) const {
        clear((L*)partial, (C + VECTORS) * blocks);
        for_batches(item, memory, [&](Batch batch) { backward(batch, shared, (R*)partial); });
    }
    void backward(Batch batch, const void* shared, R* partial) const {
        L *const v = batch.rows(), *const d = batch.rows(), *const spike = batch.rows();  // of TclifAdjoint
        L *const first_v = batch.rows(), *const sent = batch.rows();
        L *const current = batch.rows(), *const fed = batch.rows();  // gradient of the current, and that times W
        L *const grad_lanes = batch.rows(), *const v_lanes = batch.rows(), *const dx_lanes = batch.rows();
        L* const soma = batch.rows(layout.interval + 1);  // of an interval's steps, and the one before
        Fired* const fired = fired_lists(batch);
        R* const sums = partial + C * padded;
        const Rows<L> grad_out = rows(args.grad_out, args.x_storage), dx = rows(args.grad_x, args.x_storage);
        const Rows<L> grad_v_seq = rows(args.grad_v_seq);
        bring(args.v, batch, batch.begin, first_v);
        bring(args.grad_v_after, batch, batch.begin, v);
        bring(args.grad_d_after, batch, batch.begin, d);
        bring(args.grad_s_after, batch, batch.begin, fed);
        clear(spike, batch.lanes);
        const auto soma_of = [=](index_t t) { return soma + (t % layout.interval + 1) * batch.lanes; };
        for (index_t t = T - 1; t >= 0; --t) {
            const index_t row = t * N + batch.begin, start = t / layout.interval * layout.interval;
            if (t == T - 1 || t + 1 == start + layout.interval) {
                if (start) copy(somata(start - 1, batch.begin), batch.samples, soma);
                for (index_t s = start; s <= t; ++s)
                    args.pre_reset
                        ? recompute<true>(batch, s, shared, s ? soma_of(s) - batch.lanes : first_v, soma_of(s))
                        : recompute<false>(batch, s, shared, s ? soma_of(s) - batch.lanes : first_v, soma_of(s));
            }
            if (t < T - 1) product<L>((const R*)current, batch.samples, C, blocks, matrix(shared), (R*)fed);
            slopes_of(t, batch, soma_of(t));
            if (t == 0) bring(args.s, batch, batch.begin, sent);
            const Span grads = grad_out.read(row, batch.samples, grad_lanes), to = dx.write(row, dx_lanes);
            const Span membranes = grad_v_seq.read(row, batch.samples, v_lanes);
            const BackwardStep step = {t,
                                       batch.samples,
                                       blocks,
                                       grads,
                                       args.grad_v_seq ? membranes : Span{nullptr, 0},
                                       to,
                                       dendrites(t, batch.begin),
                                       t ? (const R*)(soma_of(t) - batch.lanes) : (const R*)first_v,
                                       (const R*)soma_of(t),
                                       (const R*)fed,
                                       (R*)v,
                                       (R*)d,
                                       (R*)spike,
                                       (R*)sent,
                                       (R*)current,
                                       sums,
                                       vector(shared, 1),
                                       vector(shared, 2)};
            for (index_t n = 0; n < batch.samples; ++n) {
                if (t) grad_out.ask(row - N + n), dx.ask(row - N + n);
                if (t >= layout.interval)
                    ask_bytes(dendrites(t - layout.interval, batch.begin).row(n), padded * sizeof(R));
            }
            const TclifCoefficients<L> c = coefficients();
            if (args.pre_reset) args.detach ? back<true, true>(step, c) : back<true, false>(step, c);
            else args.detach ? back<false, true>(step, c) : back<false, false>(step, c);
            dx.finish(row, batch.samples, dx_lanes);
            for (index_t n = 0; n < batch.samples; ++n) {
                const R *const of = row_of(current, n), *const by = row_of(sent, n);
                fired[n].list(by, blocks);
                if (t) add_to_rows<false, L>(of, blocks, partial, padded, fired[n], by);
                else add_to_rows<true, L>(of, blocks, partial, padded, fired[n], by);
            }
        }
        if (args.pre_reset && args.grad_v) {  // the initial soma decides the first reset
            slopes_of(-1, batch, first_v);
            for (index_t i = 0; i < batch.lanes; ++i) v[i] += spike[i] * first_v[i];
        }
        send(v, args.grad_v, batch);
        send(d, args.grad_d, batch);
        if (args.grad_s) product<L>((const R*)current, batch.samples, C, blocks, matrix(shared), (R*)fed);
        send(fed, args.grad_s, batch);
    }

    // The somata of step t, before their reset, from those of the step before (t = 0: from the state) and the
    // dendrites: the same operations as in tclif_step.
    template <bool PRE_RESET>
    void recompute(const Batch& batch, index_t t, const void* shared, const L* before, L* soma) const {
        TclifCoefficients<L> c = coefficients();
        const R *const b1 = vector(shared, 1), *const b2 = vector(shared, 2);
        const Span from = dendrites(t, batch.begin);
        for (index_t n = 0; n < batch.samples; ++n)
            for (index_t b = 0; b < blocks; ++b) {
                c.b1 = load_lane<L>(b1, b), c.b2 = load_lane<L>(b2, b);
                L v = before[n * blocks + b];
                if (!PRE_RESET && t) v -= tclif_reset(v, c, c.theta);
                soma[n * blocks + b] = tclif_soma<PRE_RESET>(c, v, load_lane<L>(from.row(n), b));
            }
    }

    // dS/du of step t in place of its somata, -1 being the state.
    void slopes_of(index_t t, const Batch& batch, L* soma) const {
        if (args.slopes) bring(args.slopes, batch, (t + 1) * N + batch.begin, soma);
        else surrogate_pass(args.surrogate, soma, batch.lanes, theta, surrogate_parameters<R>(args));
    }

    // One step of an item: what goes into it, the adjoint of the state, and what comes out: the gradient of the
    // current, sums, and the spikes of the step before.
    struct BackwardStep {
        index_t t, samples, blocks;
        Span grad_out, grad_v_seq, dx, dendrites;
        const R *before, *slopes, *fed;
        R *v, *d, *spike, *sent, *current, *sums;
        const R *b1, *b2;
    };
    template <bool PRE_RESET, bool DETACH>
    static void back(BackwardStep step, TclifCoefficients<L> c) {
        for (index_t b = 0; b < step.blocks; ++b) {
            c.b1 = load_lane<L>(step.b1, b), c.b2 = load_lane<L>(step.b2, b);
            TclifSums<L> total = {};
            L bias = L{};
            for (index_t n = 0; n < step.samples; ++n) {
                const index_t at = n * step.blocks + b;
                L v_before = load_lane<L>(step.before, at);
                if (step.t > 0) {
                    const L spike = tclif_fire(v_before, c);
                    store_lane(step.sent, at, spike);
                    if (!PRE_RESET) v_before -= spike * c.theta;
                }
                TclifAdjoint<L> a = {load_lane<L>(step.v, at), load_lane<L>(step.d, at),
                                     PRE_RESET ? load_lane<L>(step.spike, at) : L{}};
                if (step.grad_v_seq.first) a.v += load_lane<L>(step.grad_v_seq.row(n), b);
                const L grad_spike = load_lane<L>(step.grad_out.row(n), b) + load_lane<L>(step.fed, at);
                const L dx =
                    tclif_adjoint_step<PRE_RESET, DETACH>(c, a, total, grad_spike, load_lane<L>(step.slopes, at),
                                                          v_before, load_lane<L>(step.dendrites.row(n), b));
                store_lane(step.v, at, a.v), store_lane(step.d, at, a.d);
                if (PRE_RESET) store_lane(step.spike, at, a.spike);
                store_lane(step.current, at, dx), store_lane(step.dx.row(n), b, dx);
                bias += dx;
            }
            const L more[VECTORS] = {bias, total.b1, total.b2};
            for (int i = 0; i < VECTORS; ++i)
                store_lane(step.sums, i * step.blocks + b, load_lane<L>(step.sums, i * step.blocks + b) + more[i]);
        }
    }

    // The sums of all items, in their order: dW, column by column of lanes.
    void reduce_weight(index_t b, const void* partials) const {
        R* const to = (R*)args.grad_weight + b * width * C;
        const index_t valid = C - b * width < width ? C - b * width : width;
        for (index_t k = 0; k < C; ++k) {
            L total = L{};
            for (index_t i = 0; i < items; ++i) total += load_lane<L>(partial(partials, i), k * blocks + b);
            for (index_t j = 0; j < valid; ++j) to[j * C + k] = total[j];
        }
    }
    void reduce_vectors(const void* partials) const {
        R* const results[VECTORS] = {(R*)args.grad_bias, (R*)args.grad_b1, (R*)args.grad_b2};
        for (int v = 0; v < VECTORS; ++v)
            for (index_t c = 0; c < C; ++c) {
                double total = 0;
                for (index_t i = 0; i < items; ++i) total += partial(partials, i)[(C + v) * padded + c];
                results[v][c] = R(total);
            }
    }

private:
    const R* partial(const void* partials, index_t item) const {
        return (const R*)((const char*)partials + item * partial_bytes());
    }
};

}  // namespace PMSN_NAMESPACE
