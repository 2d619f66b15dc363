// TC-LIF on CUDA. Compiled by NVRTC, besides gpu_common.h, with
//     PMSN_PRE_RESET, PMSN_DETACH, PMSN_STRICT, PMSN_SURROGATE, PMSN_INTERVAL    constants of the layer
#include "gpu_common.h"
#include "tclif.h"

namespace PMSN_NAMESPACE {

enum { STATE = 2, SUMS = 2 };

PMSN_FN TclifCoefficients<R> coefficients(const TclifArgs& args, index_t channel) {
    const R theta = args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta;
    const R fire_at = PMSN_STRICT ? next_number(theta) : theta;
    return {read(args.b1, channel), read(args.b2, channel), (R)args.a1, (R)args.a2, (R)args.gamma, theta, fire_at};
}
// `at` counts from the initial soma
PMSN_FN R slope_of(const TclifArgs& args, R u, R theta, index_t at) {
    if (PMSN_SURROGATE == SURROGATE_GIVEN) return read(args.slopes, at);
    return surrogate_derivative<PMSN_SURROGATE>(
        u - theta, SurrogateParameters<R>{(R)args.surrogate_a, (R)args.surrogate_b, (R)args.surrogate_c});
}
PMSN_FN R* checkpoint(const TclifArgs& args, index_t start, index_t element) {
    return (R*)args.checkpoints + (start / args.layout.interval - 1) * STATE * args.layout.M + element;
}

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void tclif_forward(const TclifArgs args) {
    const Layout& layout = args.layout;
    const Part part(layout);
    const TclifCoefficients<R> c = coefficients(args, part.channel(layout));
    for (index_t row = part.first_row; row < part.end_row; ++row) {
        const index_t M = layout.M, element = row * layout.P + part.position;
        if (element >= M) break;
        const Memory::element* x = (const Memory::element*)args.x + element;
        R v = read(args.v, element), d = read(args.d, element), u_soma, u_dendrite;
        for (index_t start = 0; start < layout.T; start += layout.interval) {
            if (start && args.checkpoints)
                checkpoint(args, start, element)[0] = v, checkpoint(args, start, element)[M] = d;
            for (index_t t = start; t < layout.T && t < start + layout.interval; ++t) {
                const R spike = tclif_step<PMSN_PRE_RESET>(c, Memory::load(x + t * M), v, d, u_soma, u_dendrite);
                Memory::store((Memory::element*)args.out + t * M + element, spike);
                write(args.v_seq, t * M + element, v);
            }
        }
        write(args.v_after, element, v);
        write(args.d_after, element, d);
    }
}

extern "C" __global__ void tclif_backward(const TclifArgs args) {
    const Layout& layout = args.layout;
    const Part part(layout);
    const TclifCoefficients<R> c = coefficients(args, part.channel(layout));
    TclifSums<R> sums = {};
    for (index_t row = part.first_row; row < part.end_row; ++row) {
        const index_t M = layout.M, element = row * layout.P + part.position;
        if (element >= M) break;
        const Memory::element* x = (const Memory::element*)args.x + element;
        TclifAdjoint<R> a = {read(args.grad_v_after, element), read(args.grad_d_after, element), 0};
        R v_before[PMSN_INTERVAL], u_soma[PMSN_INTERVAL], u_dendrite[PMSN_INTERVAL];
        for (index_t start = (layout.T - 1) / layout.interval * layout.interval; start >= 0; start -= layout.interval) {
            const int steps = (int)(layout.T - start < layout.interval ? layout.T - start : layout.interval);
            R v = start ? checkpoint(args, start, element)[0] : read(args.v, element);
            R d = start ? checkpoint(args, start, element)[M] : read(args.d, element);
            for (int t = 0; t < steps; ++t) {
                v_before[t] = v;
                tclif_step<PMSN_PRE_RESET>(c, Memory::load(x + (start + t) * M), v, d, u_soma[t], u_dendrite[t]);
            }
            for (int t = steps - 1; t >= 0; --t) {
                const index_t at = (start + t) * M + element;
                a.v += read(args.grad_v_seq, at);
                const R grad_spike = args.grad_out ? Memory::load((const Memory::element*)args.grad_out + at) : R(0);
                const R slope = slope_of(args, u_soma[t], c.theta, M + at);
                const R dx = tclif_adjoint_step<PMSN_PRE_RESET, PMSN_DETACH>(c, a, sums, grad_spike, slope, v_before[t],
                                                                             u_dendrite[t]);
                Memory::store((Memory::element*)args.grad_x + at, dx);
            }
        }
        if (PMSN_PRE_RESET)
            a.v += a.spike * slope_of(args, read(args.v, element), c.theta, element);  // it decided the first reset
        write(args.grad_v, element, a.v);
        write(args.grad_d, element, a.d);
    }
    const R columns[SUMS] = {sums.b1, sums.b2};
    sum_by_channel<SUMS>(layout, columns, args.partials);
}

// One thread for each channel and column.
extern "C" __global__ void tclif_reduce(const TclifArgs args) {
    const index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x, c = i / SUMS;
    if (c >= args.layout.C) return;
    const R sum = total<SUMS>(args.layout, args.partials, c, (int)(i % SUMS));
    ((R*)(i % SUMS ? args.grad_b2 : args.grad_b1))[c] = sum;
}
