// TC-LIF backward on CUDA. Compiled by NVRTC, besides gpu_tclif.h, with PMSN_DETACH and PMSN_SURROGATE.
#include "gpu_tclif.h"

namespace PMSN_NAMESPACE {

enum { SUMS = 2 };
enum { IS_GIVEN = PMSN_SURROGATE == SURROGATE_GIVEN };
enum { LOADS_MORE = PMSN_RECORDED || IS_GIVEN };      // of a step than x and a gradient
enum { PART = LOADS_MORE && STEPS > 8 ? 8 : STEPS };  // steps for which more is loaded at once
enum { FREED = 8 };
enum { LOOKS_AHEAD = !IS_SHORT && sizeof(R) == 4 };  // where registers are enough
// Blocks of a multiprocessor. Those of long sequences saturate the memory with two: each thread has an interval's loads
// under way.
enum {
    BLOCKS = sizeof(R) == 8                           ? 1
             : !IS_SHORT || (LOADS_MORE && STEPS > 4) ? 2
             : STEPS > 16                             ? 3
             : STEPS > 8                              ? 5
             : STEPS > 4                              ? 7
                                                      : 8
};

PMSN_FN R slope_of(const TclifArgs& args, R u, R theta) {
    return surrogate_derivative<PMSN_SURROGATE>(
        u - theta, SurrogateParameters<R>{(R)args.surrogate_a, (R)args.surrogate_b, (R)args.surrogate_c});
}

struct Interval {
    R before;  // the soma before it
    R u_soma[STEPS], u_dendrite[STEPS], grad_spike[STEPS];

    // Backward through the first `steps` steps, all of them with WHOLE; `first` is the first one's element.
    // `look_ahead` is called when the registers of some steps are free again.
    template <bool WHOLE, class LookAhead>
    PMSN_FN void back(const TclifArgs& args, const Neuron& n, index_t first, int steps, TclifAdjoint<R>& a,
                      TclifSums<R>& sums, LookAhead look_ahead) {
        const index_t M = args.layout.M;
        Element* dx = (Element*)args.grad_x + first + (steps - 1) * M;
        PMSN_UNROLL
        for (int part = (STEPS - 1) / PART * PART; part >= 0; part -= PART) {
            R given[PART], grad_v[PART];
            PMSN_UNROLL
            for (int i = 0; i < PART && part + i < STEPS; ++i) {
                if (!WHOLE && part + i >= steps) continue;
                const index_t at = first + (part + i) * M;
                if (IS_GIVEN) given[i] = read(args.slopes, M + at);
                if (PMSN_RECORDED) grad_v[i] = ((const R*)args.grad_v_seq)[at];
            }
            if (LOADS_MORE) loads_are_issued();
            PMSN_UNROLL
            for (int i = PART - 1; i >= 0; --i) {
                const int t = part + i;
                if (t == STEPS - 1 - FREED) look_ahead();
                if (t >= STEPS || (!WHOLE && t >= steps)) continue;
                if (PMSN_RECORDED) a.v += grad_v[i];
                const R slope = IS_GIVEN ? given[i] : slope_of(args, u_soma[t], n.theta);
                const R v_before = t ? State::after(n, u_soma[t - 1]) : before;
                Memory::store(dx, tclif_adjoint_step<PMSN_PRE_RESET, PMSN_DETACH>(n, a, sums, grad_spike[t], slope,
                                                                                  v_before, u_dendrite[t]));
                advance(dx, -M);
            }
        }
    }
};

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) tclif_backward(const TclifArgs args) {
    TclifSums<R> sums = {};
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem&) {
        const Layout& layout = args.layout;
        const index_t M = layout.M;
        TclifAdjoint<R> a = {read(args.grad_v_after, element), read(args.grad_d_after, element), 0};
        R x[STEPS];
        State state;
        const auto load = [&](index_t start, int steps) {
            load_interval((const Element*)args.x + start * M + element, M, x, steps);
            state.load(args, start, element);
        };
        const auto run = [&](auto is_whole, index_t start, int steps, auto look_ahead) {
            const index_t first = start * M + element;
            Interval interval;
            load_interval((const Element*)args.grad_out + first, M, interval.grad_spike, steps);
            loads_are_issued();
            interval.before = state.v;
            PMSN_UNROLL
            for (int i = 0; i < STEPS; ++i) state.step(n, x[i], interval.u_soma[i], interval.u_dendrite[i]);
            interval.back<is_whole.count>(args, n, first, steps, a, sums, look_ahead);
        };
        const auto nothing = [] {};
        index_t start = IS_SHORT ? STEPS : quotient(layout.T, PMSN_INTERVAL) * PMSN_INTERVAL;
        if (!IS_SHORT && start < layout.T) {
            const int rest = (int)(layout.T - start);
            load(start, rest);
            run(Steps<false>(), start, rest, nothing);
        }
        start -= STEPS;
        if (LOOKS_AHEAD) load(start, STEPS);
        PMSN_AS_IT_IS
        for (; start >= 0; start -= STEPS) {
            if (LOOKS_AHEAD) wait_for(x[0]);
            else load(start, STEPS);
            run(Steps<true>(), start, STEPS, [&] {
                if (!LOOKS_AHEAD || start == 0) return;
                load(start - STEPS, STEPS);
                loads_are_issued();
            });
        }
        if (PMSN_PRE_RESET)  // the initial soma decided the first reset
            a.v += a.spike * (IS_GIVEN ? read(args.slopes, element) : slope_of(args, read(args.v, element), n.theta));
        write(args.grad_v, element, a.v);
        write(args.grad_d, element, a.d);
    });
    const R columns[SUMS] = {sums.b1, sums.b2};
    sum_by_channel<SUMS>(args.layout, columns, args.partials);
}

// One block for each channel.
extern "C" __global__ void __launch_bounds__(REDUCERS) tclif_reduce(const TclifArgs args) {
    reduce_channel<SUMS>(args.layout, args.partials,
                         [&](int column, R sum) { ((R*)(column ? args.grad_b2 : args.grad_b1))[blockIdx.x] = sum; });
}
