// TC-LIF on the CPU: a work item goes through its strip row by row and interval by interval, a few neighbouring blocks
// at a time, whose state is in registers. Memory is read and written in as many streams as the interval has steps.
//
// Cycles for a lane and one step (Zen 4, one thread, resets detached; kernel and call), and before state, coefficients
// and flags were brought into registers and types:
//                                             AVX-512, 16 float            AVX2, 8 float
//                                           forward     backward        forward     backward
//     [16, 32, 250], in the second cache    8 from 12   16 from 28      6 from 11   11 from 23
//     [4, 32, 256]                          9 from 13   19 from 36      6 from 9    13 from 21
//     [4, 32, 6272], in the third           9 from 13   20 from 38      6 from 9    13 from 22
// A step waits 16 to 20 cycles for the one before (two products, a comparison, a reset, a sum); four blocks at once
// make 4 to 5 of that. Backward, which computes the steps again, waits twice, and has 36 instructions. With AVX-512
// most of them take two of the four units, and a store takes two cycles: 8 for the four of a lane. Beyond the third
// cache it is memory: forward at [250, 40, 352] takes 30 cycles for 64 bytes, as it did. In the reference's order of
// the sums, which without leak gives its bits, a step waits longer: 1.1 to 1.4 times as long forward, and both 1.1
// to 1.2.
#pragma once
#include "cpu_surrogate.h"
#include "cpu_tile.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

enum { TCLIF_PARAMETERS = 2, TCLIF_SUMS = 2, TCLIF_STATE = 2, TCLIF_ADJOINT = 3 };

// Blocks that are done together: each step waits for the one before, and the others fill the wait.
enum { TCLIF_TOGETHER = 4 };

// Time steps of neighbouring blocks as a pass walks through them: in memory, or in cache as [step][block].
template <class L>
struct StepsOfBlocks {
    typedef real_of<L> R;
    char* first;
    index_t stride;  // bytes

    PMSN_FN L load(index_t t, int w) const { return Plain<L>::load(at(t) + w * lane_width<R>()); }
    PMSN_FN void store(index_t t, int w, L lane) const { Plain<L>::store(at(t) + w * lane_width<R>(), lane); }
    // Asks for the lines of W blocks that lie `ahead` elements further on.
    template <int W>
    PMSN_FN void ask(index_t t, index_t ahead) const {
        const char* line = (const char*)(at(t) + ahead + W * lane_width<R>() - 1);  // their end, see Prefetch
        PMSN_UNROLL
        for (int i = 0; i < W * int(sizeof(L)); i += 64) __builtin_prefetch(line - i, 0, 2);
    }

private:
    PMSN_FN R* at(index_t t) const { return (R*)(first + t * stride); }
};

// The lanes of one of the steps. A load waits where a store before it is to an address that ends in the same 12 bits,
// as outputs often lie to inputs. So all come before the first store, where there are registers for them: forward at
// [16, 32, 256] takes up to 0.66 cycles for an element and a step, and 0.85 otherwise.
template <class L, int W>
struct LanesOfStep {
#if PMSN_LANE_BYTES == 64
    L lanes[W];
    PMSN_FN LanesOfStep(StepsOfBlocks<L> steps, index_t t) {
        PMSN_UNROLL
        for (int w = 0; w < W; ++w) lanes[w] = steps.load(t, w);
    }
    PMSN_FN L operator[](int w) const { return lanes[w]; }
#else
    const StepsOfBlocks<L> steps;
    const index_t t;
    PMSN_FN LanesOfStep(StepsOfBlocks<L> all, index_t step) : steps(all), t(step) {}
    PMSN_FN L operator[](int w) const { return steps.load(t, w); }
#endif
};

// A sequence of planes of M elements in memory, of any type: null reads as zero, and is not written.
template <class L>
struct TclifSequence {
    typedef real_of<L> R;
    typedef StepsOfBlocks<L> Blocks;
    void* const memory;
    const index_t storage, M;
    const bool plain;  // of the arithmetic's own type

    TclifSequence(const void* m, index_t type, const Layout& layout)
        : memory((void*)m),
          storage(type),
          M(layout.M),
          plain(m && type == (sizeof(R) == 4 ? STORAGE_FLOAT : STORAGE_DOUBLE)) {}

    // W blocks, the last one with `valid` elements in all, from element `at` on: where they are if that can be, else
    // brought to `lanes`.
    template <int W>
    PMSN_FN Blocks read(index_t at, index_t valid, index_t steps, L* lanes) const {
        if (!direct<W>(valid)) load(at, valid, steps, lanes, W);
        return write<W>(at, valid, lanes);
    }
    // To write to; `finish` brings them to memory if need be.
    template <int W>
    PMSN_FN Blocks write(index_t at, index_t valid, L* lanes) const {
        if (direct<W>(valid)) return {(char*)((R*)memory + at), M * index_t(sizeof(R))};
        return {(char*)lanes, W * index_t(sizeof(L))};
    }
    template <int W>
    PMSN_FN void finish(index_t at, index_t valid, index_t steps, const L* lanes) const {
        if (!direct<W>(valid)) store(at, valid, steps, lanes, W);
    }

    __attribute__((noinline)) void load(index_t at, index_t valid, index_t steps, L* lanes, int W) const {
        if (!memory) return clear(lanes, steps * W);
        for_lanes(at, valid, steps, W, [&](auto type, const auto* from, index_t elements) {
            typedef typename decltype(type)::memory Memory;
            *lanes++ = elements == width ? Memory::load(from) : load_part<L, Memory>(from, elements);
        });
    }
    __attribute__((noinline)) void store(index_t at, index_t valid, index_t steps, const L* lanes, int W) const {
        if (!memory) return;
        for_lanes(at, valid, steps, W, [&](auto type, auto* to, index_t elements) {
            typedef typename decltype(type)::memory Memory;
            elements == width ? Memory::store(to, *lanes) : store_part<L, Memory>(to, *lanes, elements);
            ++lanes;
        });
    }

private:
    static constexpr index_t width = lane_width<R>();

    template <int W>
    PMSN_FN bool direct(index_t valid) const {
        return plain && valid == W * width;
    }
    template <class Memory>
    struct Type {
        typedef Memory memory;
    };
    // Calls move(how they lie in memory, address, elements) for all lanes.
    template <class Move>
    void for_lanes(index_t at, index_t valid, index_t steps, int W, const Move& move) const {
        const auto all = [&](auto type) {
            typename decltype(type)::memory::element* step = (typename decltype(type)::memory::element*)memory + at;
            for (index_t t = 0; t < steps; ++t, step += M)
                for (index_t p = 0; p < W * width; p += width)
                    move(type, step + p, valid - p < width ? valid - p : width);
        };
        if constexpr (sizeof(R) == 4) {
            if (storage == STORAGE_HALF) return all(Type<Half>());
            if (storage == STORAGE_BFLOAT16) return all(Type<Bfloat16>());
        }
        all(Type<Plain<L>>());
    }
};

template <class R>
struct TclifCpu {
    typedef R real;
    typedef lane_of<R> L;
    typedef StepsOfBlocks<L> Blocks;
    typedef TclifSequence<L> Sequence;
    static constexpr index_t width = lane_width<R>();
    const TclifArgs& args;
    const Layout& layout;
    const index_t blocks, depth, together;  // depth: steps between checkpoints; lanes of the blocks' steps
    const R theta;

    explicit TclifCpu(const TclifArgs& a)
        : args(a),
          layout(a.layout),
          blocks(block_count<R>(layout)),
          depth(layout.interval),
          together(Scratch<L>::apart(TCLIF_TOGETHER * depth)),
          theta(a.theta_tensor ? *(const R*)a.theta_tensor : R(a.theta)) {}

    // Threads that are worth waking: that takes 4 us, as long as 2^15 elements and steps forward on one of them.
    static int worth(const TclifArgs& args, int threads) {
        const index_t most = args.layout.T * args.layout.M >> 15;
        return most < 1 ? 1 : most < threads ? int(most) : threads;
    }

    index_t sums() const { return TCLIF_SUMS; }

    Sequence sequence(const void* memory) const { return {memory, args.x_storage, layout}; }
    Sequence real_sequence(const void* memory) const {
        return {memory, sizeof(R) == 4 ? STORAGE_FLOAT : STORAGE_DOUBLE, layout};
    }

    void gather(const Tile<L>& parameters, const WorkItem& item) const {
        gather_parameters(parameters, 0, layout, item, args.b1, 1);
        gather_parameters(parameters, 1, layout, item, args.b2, 1);
    }
    TclifCoefficients<L> coefficients() const {  // but the couplings
        const R fire_at = args.strict ? next_number(theta) : theta;
        return {L{}, L{}, R(args.a1), R(args.a2), R(args.gamma), theta, fire_at};
    }
    typedef Constant<1> Yes;
    typedef Constant<0> No;
    // Calls use(PRE_RESET, LEAK), flags as types.
    template <class Use>
    void with_neuron(const Use& use) const {
        if (args.pre_reset) use(Yes(), Yes());
        else if (args.a1 != 1 || args.a2 != 1) use(No(), Yes());
        else use(No(), No());
    }

    // Some components of the state of a strip, each where its elements lie in memory; null reads as zero and
    // is not written.
    template <int COUNT>
    struct Components {
        R* planes[COUNT];

        template <int W>
        PMSN_FN void load(int component, index_t p, index_t valid, L (&lanes)[W]) const {
            const R* from = planes[component];
            for (int w = 0; w < W; ++w)
                lanes[w] = !from                ? L{}
                           : valid == W * width ? Plain<L>::load(from + p + w * width)
                                                : load_part<L, Plain<L>>(from + p, valid);
        }
        template <int W>
        PMSN_FN void store(int component, index_t p, index_t valid, const L (&lanes)[W]) const {
            R* to = planes[component];
            if (!to) return;
            for (int w = 0; w < W; ++w)
                valid == W* width ? Plain<L>::store(to + p + w * width, lanes[w])
                                  : store_part<L, Plain<L>>(to + p, lanes[w], valid);
        }
    };
    static R* from(const void* memory, index_t first) { return memory ? (R*)memory + first : nullptr; }
    Components<TCLIF_STATE> checkpoint(index_t start, index_t first) const {
        R* const plane = (R*)args.checkpoints + (start / depth - 1) * TCLIF_STATE * layout.M + first;
        return {{plane, plane + layout.M}};
    }

    // A strip of a row, during an interval.
    struct Strip {
        index_t first, valid, start, steps;  // first element in a plane; elements of the row; the interval
        index_t next;                        // elements from here to the strip that comes then
    };
    // Calls run(strip) for all rows of an item.
    template <class Run>
    void for_rows(const WorkItem& item, const Run& run) const {
        for (index_t row = item.row; row < item.end_row; ++row) {
            const index_t first = row * layout.P + item.position, rest = layout.M - first;
            if (rest > 0) run(first, rest < item.width ? rest : item.width);
        }
    }
    // Calls run(number W, first block, its first element, elements, elements to the next unit) for W blocks at a time.
    template <class Run>
    static PMSN_FN void for_units(const Strip& strip, const Run& run) {
        constexpr index_t unit = TCLIF_TOGETHER * width;
        const index_t valid = strip.valid, whole = valid / width * width, next = strip.next;
        index_t p = 0;
        for (; p + unit <= whole; p += unit)
            run(Constant<TCLIF_TOGETHER>(), p / width, p, unit, p + 2 * unit <= whole ? unit : next - p);
        for (; p < valid; p += width)
            run(Constant<1>(), p / width, p, p < whole ? width : valid - p, p + width < valid ? width : next - p);
    }
    template <int W>
    static PMSN_FN void set_couplings(TclifCoefficients<L> (&c)[W], const TclifCoefficients<L>& same,
                                      const L* parameters, index_t b) {
        for (int w = 0; w < W; ++w) {
            const L* couplings = parameters + (b + w) * TCLIF_PARAMETERS;
            c[w] = same, c[w].b1 = couplings[0], c[w].b2 = couplings[1];
        }
    }

    index_t forward_scratch() const {
        return sizeof(L) * (blocks * (TCLIF_PARAMETERS + TCLIF_STATE) + 2 * Scratch<L>::apart(together));
    }

    void forward(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS);
        R* const kept = (R*)scratch.lanes(blocks * TCLIF_STATE);
        L* const lanes = scratch.next;
        const WorkItem item(layout, index);
        gather(parameters, item);
        with_neuron([&](auto pre_reset, auto leak) {
            forward_as<pre_reset.value, leak.value>(item, parameters.lanes, kept, lanes);
        });
    }
    template <bool PRE_RESET, bool LEAK>
    void forward_as(const WorkItem& item, const L* parameters, R* kept, L* lanes) const {
        for_rows(item, [&](index_t first, index_t valid) {
            Components<TCLIF_STATE> before = {{from(args.v, first), from(args.d, first)}};
            for (index_t start = 0; start < layout.T; start += depth) {
                const bool last = start + depth >= layout.T;
                const Components<TCLIF_STATE> after =
                    last               ? Components<TCLIF_STATE>{{from(args.v_after, first), from(args.d_after, first)}}
                    : args.checkpoints ? checkpoint(start + depth, first)
                                       : Components<TCLIF_STATE>{{kept, kept + blocks * width}};
                const Strip strip = {first, valid, start, last ? layout.T - start : depth,
                                     last ? layout.P - start * layout.M : depth * layout.M};
                forward_pass<PRE_RESET, LEAK>(strip, parameters, before, after, lanes);
                before = after;
            }
        });
    }

    // x -> spikes
    template <bool PRE_RESET, bool LEAK>
    PMSN_FN void forward_pass(const Strip& strip, const L* parameters, Components<TCLIF_STATE> before,
                              Components<TCLIF_STATE> after, L* x_lanes) const {
        const TclifCoefficients<L> same = coefficients();
        const Sequence all_x = sequence(args.x), all_out = sequence(args.out), all_v = real_sequence(args.v_seq);
        L* const v_lanes = x_lanes + together;
        const index_t begin = strip.start * layout.M + strip.first, steps = strip.steps;
        const bool with_v_seq = args.v_seq;
        for_units(
            strip, [&](auto number, index_t b, index_t p, index_t valid, index_t ahead) __attribute__((always_inline)) {
                constexpr int W = number.value;
                const Blocks x = all_x.template read<W>(begin + p, valid, steps, x_lanes);
                const Blocks out = all_out.template write<W>(begin + p, valid, x_lanes);
                const Blocks v_seq = all_v.template write<W>(begin + p, valid, v_lanes);
                TclifCoefficients<L> c[W];
                L v[W], d[W];
                set_couplings(c, same, parameters, b);
                before.load(0, p, valid, v), before.load(1, p, valid, d);
                for (index_t t = 0; t < steps; ++t) {
                    x.template ask<W>(t, ahead), out.template ask<W>(t, ahead);
                    const LanesOfStep<L, W> now(x, t);
                    PMSN_UNROLL
                    for (int w = 0; w < W; ++w) {
                        L u_soma, u_dendrite;
                        out.store(t, w, tclif_step<PRE_RESET, LEAK>(c[w], now[w], v[w], d[w], u_soma, u_dendrite));
                    }
                    if (with_v_seq)
                        for (int w = 0; w < W; ++w) v_seq.store(t, w, v[w]);
                }
                all_out.template finish<W>(begin + p, valid, steps, x_lanes);
                all_v.template finish<W>(begin + p, valid, steps, v_lanes);
                after.store(0, p, valid, v), after.store(1, p, valid, d);
            });
    }

    index_t backward_scratch() const {
        const index_t tiles = TCLIF_PARAMETERS + TCLIF_SUMS + TCLIF_ADJOINT;
        return sizeof(L) * (blocks * tiles + 7 * Scratch<L>::apart(together));
    }

    void backward(index_t index, void* memory, void* partial) const {
        Scratch<L> scratch = {(L*)memory, blocks};
        const Tile<L> parameters = scratch.tile(1, TCLIF_PARAMETERS), sums = scratch.tile(1, TCLIF_SUMS);
        R* const kept = (R*)scratch.lanes(blocks * TCLIF_ADJOINT);
        L* const lanes = scratch.next;
        const WorkItem item(layout, index);
        gather(parameters, item);
        clear(sums.lanes, blocks * TCLIF_SUMS);
        const bool triangle = args.surrogate == SURROGATE_TRIANGLE && !args.slopes;
        with_neuron([&](auto pre_reset, auto leak) {
            const auto as = [&](auto detach, auto by_triangle) {
                backward_as<pre_reset.value, detach.value, leak.value, by_triangle.value>(item, parameters.lanes,
                                                                                          sums.lanes, kept, lanes);
            };
            if constexpr (!leak.value)
                if (triangle) return args.detach ? as(Yes(), Yes()) : as(No(), Yes());
            args.detach ? as(Yes(), No()) : as(No(), No());
        });
        sum_by_channel((R*)partial, sums, layout, item);
    }
    template <bool PRE_RESET, bool DETACH, bool LEAK, bool TRIANGLE>
    void backward_as(const WorkItem& item, const L* parameters, L* sums, R* kept, L* lanes) const {
        const index_t last = (layout.T - 1) / depth * depth, plane = blocks * width;
        for_rows(item, [&](index_t first, index_t valid) {
            Components<TCLIF_ADJOINT> later = {
                {from(args.grad_v_after, first), from(args.grad_d_after, first), nullptr}};
            for (index_t start = last; start >= 0; start -= depth) {
                const Components<TCLIF_STATE> before =
                    start > 0 ? checkpoint(start, first)
                              : Components<TCLIF_STATE>{{from(args.v, first), from(args.d, first)}};
                const Components<TCLIF_ADJOINT> earlier = {{start > 0 ? kept : from(args.grad_v, first),
                                                            start > 0 ? kept + plane : from(args.grad_d, first),
                                                            start > 0 || args.grad_v ? kept + 2 * plane : nullptr}};
                const Strip strip = {first, valid, start, layout.T - start < depth ? layout.T - start : depth,
                                     start > 0 ? -depth * layout.M : last * layout.M + layout.P};
                backward_pass<PRE_RESET, DETACH, LEAK, TRIANGLE>(strip, parameters, sums, before, later, earlier,
                                                                 lanes);
                later = earlier;
            }
            if (PRE_RESET && args.grad_v) add_first_reset(first, valid, kept + 2 * plane);
        });
    }

    // grad_out -> grad_x, by what the adjoint needs of each step, computed again; advances the adjoint and the sums.
    template <bool PRE_RESET, bool DETACH, bool LEAK, bool TRIANGLE>
    PMSN_FN void backward_pass(const Strip& strip, const L* parameters, L* sums, Components<TCLIF_STATE> before,
                               Components<TCLIF_ADJOINT> later, Components<TCLIF_ADJOINT> earlier, L* lanes) const {
        const TclifCoefficients<L> same = coefficients();
        const auto surrogate = surrogate_parameters<R>(args);
        const Sequence all_x = sequence(args.x), all_grad = sequence(args.grad_out), all_dx = sequence(args.grad_x),
                       all_grad_v = real_sequence(args.grad_v_seq), all_slopes = real_sequence(args.slopes);
        const index_t apart = Scratch<L>::apart(together), kind = args.surrogate;
        L *const v_before = lanes, *const u_soma = lanes + apart, *const u_dendrite = lanes + 2 * apart;
        L *const x_lanes = lanes + 3 * apart, *const grad_lanes = lanes + 4 * apart, *const v_lanes = lanes + 5 * apart;
        const index_t begin = strip.start * layout.M + strip.first, M = layout.M, steps = strip.steps;
        const R theta_ = theta;
        const bool with_v_seq = args.grad_v_seq, with_slopes = args.slopes;
        for_units(strip, [&](auto number, index_t b, index_t p, index_t valid,
                             index_t ahead) __attribute__((always_inline)) {
            constexpr int W = number.value;
            const Blocks x = all_x.template read<W>(begin + p, valid, steps, x_lanes);
            TclifCoefficients<L> c[W];
            L v[W], d[W], spike[W];
            set_couplings(c, same, parameters, b);
            before.load(0, p, valid, v), before.load(1, p, valid, d);
            for (index_t t = 0; t < steps; ++t) {
                x.template ask<W>(t, ahead);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    L soma, dendrite;  // not the places in memory: they would be read again
                    v_before[t * W + w] = v[w];
                    tclif_step<PRE_RESET, LEAK>(c[w], x.load(t, w), v[w], d[w], soma, dendrite);
                    u_soma[t * W + w] = soma, u_dendrite[t * W + w] = dendrite;
                }
            }
            L* const slopes = u_soma;
            if (with_slopes) all_slopes.load(begin + M + p, valid, steps, slopes, W);
            else if (!TRIANGLE) surrogate_pass(kind, slopes, steps * W, theta_, surrogate);
            const Blocks grad = all_grad.template read<W>(begin + p, valid, steps, grad_lanes);
            const Blocks dx = all_dx.template write<W>(begin + p, valid, x_lanes);
            if (with_v_seq) all_grad_v.load(begin + p, valid, steps, v_lanes, W);
            TclifAdjoint<L> a[W];
            TclifSums<L> total[W];
            later.load(0, p, valid, v), later.load(1, p, valid, d);
            if (PRE_RESET) later.load(2, p, valid, spike);
            for (int w = 0; w < W; ++w) {
                const L* so_far = sums + (b + w) * TCLIF_SUMS;
                a[w] = {v[w], d[w], PRE_RESET ? spike[w] : L{}};
                total[w] = {so_far[0], so_far[1]};
            }
            for (index_t t = steps - 1; t >= 0; --t) {
                grad.template ask<W>(t, ahead), dx.template ask<W>(t, ahead);
                if (with_v_seq)
                    for (int w = 0; w < W; ++w) a[w].v += v_lanes[t * W + w];
                const LanesOfStep<L, W> grads(grad, t);
                PMSN_UNROLL
                for (int w = 0; w < W; ++w) {
                    const index_t at = t * W + w;
                    const L slope = TRIANGLE ? surrogate_derivative<SURROGATE_TRIANGLE>(u_soma[at] - theta_, surrogate)
                                             : slopes[at];
                    dx.store(t, w,
                             tclif_adjoint_step<PRE_RESET, DETACH, LEAK>(c[w], a[w], total[w], grads[w], slope,
                                                                         v_before[at], u_dendrite[at]));
                }
            }
            all_dx.template finish<W>(begin + p, valid, steps, x_lanes);
            for (int w = 0; w < W; ++w) {
                L* const to = sums + (b + w) * TCLIF_SUMS;
                to[0] = total[w].b1, to[1] = total[w].b2;
                v[w] = a[w].v, d[w] = a[w].d, spike[w] = a[w].spike;
            }
            earlier.store(0, p, valid, v), earlier.store(1, p, valid, d);
            if (PRE_RESET) earlier.store(2, p, valid, spike);
        });
    }

    // With PRE_RESET the initial soma decides the first reset.
    void add_first_reset(index_t first, index_t valid, const R* spike) const {
        const Components<1> soma = {{from(args.slopes ? args.slopes : args.v, first)}},
                            adjoint = {{from(args.grad_v, first)}}, sent = {{(R*)spike}};
        for (index_t p = 0; p < valid; p += width) {
            const index_t elements = valid - p < width ? valid - p : width;
            L slope[1], v[1], s[1];
            soma.load(0, p, elements, slope), adjoint.load(0, p, elements, v), sent.load(0, p, elements, s);
            if (!args.slopes) surrogate_pass(args.surrogate, slope, 1, theta, surrogate_parameters<R>(args));
            v[0] += s[0] * slope[0];
            adjoint.store(0, p, elements, v);
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
