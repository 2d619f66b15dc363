// PMSN backward on CUDA, for a short sequence from rest.
#include "gpu_pmsn_short.h"
#include "gpu_pmsn_slope.h"

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_short_backward(const PmsnArgs args) {
    R grad_response[T] = {};
    for_elements<Response>(args, [&](const Response& response, index_t element, const WorkItem&) {
        const index_t M = args.layout.M;
        const Element* from = (const Element*)args.x + element;
        const OutElement* grad_out = (const OutElement*)args.grad_out + element;
        Element* grad_x = (Element*)args.grad_x + element;
        R x[T], dI[T], grad_v[T], slope[T], v = 0;
        PMSN_UNROLL
        for (int t = 0; t < T; ++t) {
            x[t] = Memory::load(from + t * M), dI[t] = OutMemory::load(grad_out + t * M);
            if (PMSN_RECORDED) grad_v[t] = ((const R*)args.grad_v_seq)[t * M + element];
        }
        loads_are_issued();
        PMSN_UNROLL
        for (int t = 0; t < T; ++t) {
            R current = response.current(x, t), u, out;
            membrane_step<PMSN_RESET, PMSN_FIRE>(current, v, u, out, response.threshold);
            slope[t] = slope_of(args, u, response.threshold.theta, t * M + element);
            if (PMSN_RESET == RESET_MODULO && current <= 0) slope[t] = 0;
        }
        R later = read(args.grad_v_after, element);
        PMSN_UNROLL
        for (int t = T - 1; t >= 0; --t) {
            if (PMSN_RECORDED) later += grad_v[t];
            dI[t] = membrane_adjoint_step<PMSN_RESET>(slope[t], dI[t], later, response.threshold.theta);
        }
        PMSN_UNROLL
        for (int t = 0; t < T; ++t) {
            R dx = 0;
            PMSN_UNROLL
            for (int m = 0; m < T; ++m) {
                if (t + m >= T) continue;
                dx += response.r[m] * dI[t + m];
                grad_response[m] += x[t] * dI[t + m];
            }
            Memory::store(grad_x + t * M, dx);
        }
    });
    sum_by_channel<T>(args.layout, grad_response, args.partials);
}

// One block for each channel.
extern "C" __global__ void __launch_bounds__(REDUCERS) pmsn_short_reduce(const PmsnArgs args) {
    __shared__ R grad_response[T];
    reduce_channel<T>(args.layout, args.partials, [&](int m, R sum) { grad_response[m] = sum; });
    __syncthreads();
    const index_t c = blockIdx.x;
    if (threadIdx.x == 0) ((R*)args.grad_D)[c] = grad_response[0];
    for (index_t at = c * K + threadIdx.x; at < (c + 1) * K; at += REDUCERS) {
        const ModeSums<R> sums = response_adjoint<R>(read(args.E_real, at), read(args.E_imag, at),
                                                     read(args.K_real, at), read(args.K_imag, at), T, grad_response);
        ((R*)args.grad_K_real)[at] = sums.K_real, ((R*)args.grad_K_imag)[at] = sums.K_imag;
        ((R*)args.grad_E_real)[at] = sums.E_real, ((R*)args.grad_E_imag)[at] = sums.E_imag;
    }
}
