// TC-LIF backward on CUDA. Compiled by NVRTC, besides gpu_tclif.h, with PMSN_DETACH and PMSN_SURROGATE.
#include "gpu_tclif.h"

namespace PMSN_NAMESPACE {

enum { SUMS = 2 };

// `at` counts from the initial soma
PMSN_FN R slope_of(const TclifArgs& args, R u, R theta, index_t at) {
    if (PMSN_SURROGATE == SURROGATE_GIVEN) return read(args.slopes, at);
    return surrogate_derivative<PMSN_SURROGATE>(
        u - theta, SurrogateParameters<R>{(R)args.surrogate_a, (R)args.surrogate_b, (R)args.surrogate_c});
}

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(R) == 4 ? 4 : 1) tclif_backward(const TclifArgs args) {
    TclifSums<R> sums = {};
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem&) {
        const Layout& layout = args.layout;
        const index_t M = layout.M;
        TclifAdjoint<R> a = {read(args.grad_v_after, element), read(args.grad_d_after, element), 0};
        R v_before[PMSN_INTERVAL], u_soma[PMSN_INTERVAL], u_dendrite[PMSN_INTERVAL];
        for (index_t start = quotient(layout.T - 1, PMSN_INTERVAL) * PMSN_INTERVAL; start >= 0;
             start -= PMSN_INTERVAL) {
            const int steps = (int)(layout.T - start < PMSN_INTERVAL ? layout.T - start : PMSN_INTERVAL);
            const R* kept = checkpoint(args, start, element);
            R v = start ? kept[0] : read(args.v, element), d = start ? kept[M] : read(args.d, element);
            for_steps<AHEAD>((const Element*)args.x + start * M + element, M, steps, [&](int i, R x) {
                v_before[i] = v;
                tclif_step<PMSN_PRE_RESET>(n, x, v, d, u_soma[i], u_dendrite[i]);
            });
            index_t at = (start + steps - 1) * M + element;
            in_batches_back<AHEAD>(steps, [&](auto batch, int first) {
                constexpr int N = batch.count;
                R grad_spike[N], grad_v[N];
                PMSN_UNROLL
                for (int i = 0; i < N; ++i) {
                    grad_spike[i] = Memory::load((const Element*)args.grad_out + at - i * M);
                    if (PMSN_RECORDED) grad_v[i] = ((const R*)args.grad_v_seq)[at - i * M];
                }
                loads_are_issued();
                PMSN_UNROLL
                for (int i = 0; i < N; ++i) {
                    const int t = first + N - 1 - i;
                    if (PMSN_RECORDED) a.v += grad_v[i];
                    const R slope = slope_of(args, u_soma[t], n.theta, M + at);
                    const R dx = tclif_adjoint_step<PMSN_PRE_RESET, PMSN_DETACH>(n, a, sums, grad_spike[i], slope,
                                                                                 v_before[t], u_dendrite[t]);
                    Memory::store((Element*)args.grad_x + at, dx);
                    at -= M;
                }
            });
        }
        if (PMSN_PRE_RESET)
            a.v += a.spike * slope_of(args, read(args.v, element), n.theta, element);  // it decided the first reset
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
