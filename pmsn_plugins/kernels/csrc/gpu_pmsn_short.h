// PMSN on CUDA over PMSN_T steps (plan.gpu_takes_response) from rest, by its impulse response instead of its hidden
// compartments:
//     I[t]  = sum_{s <= t} r[t-s] x[s]         r[m] = Re(sum_j K_j A_j^m) + D [m = 0]
//     dx[t] = sum_{s >= t} r[s-t] dI[s]        dr[m] = sum_t x[t] dI[t+m]
// That is (T + 1) / 2 products per step in place of 6 k, no state, and all loads under way at once.
#pragma once
#include "gpu_pmsn.h"
#include "pmsn_response.h"

namespace PMSN_NAMESPACE {

enum { T = PMSN_T };

struct Response {
    R r[T];
    Threshold<R> threshold;

    PMSN_FN Response(const PmsnArgs& args, index_t channel)
        : threshold(args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta) {
        Modes<R, K> modes;
        read_hidden(args, channel * K, modes);
        PMSN_UNROLL
        for (int m = 0; m < T; ++m) r[m] = m == 0 ? read(args.D, channel) : R(0);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j)
            add_response<R>(modes.E_real[j], modes.E_imag[j], modes.K_real[j], modes.K_imag[j], T, r);
    }
    PMSN_FN R current(const R* x, int t) const {
        R sum = r[0] * x[t];
        PMSN_UNROLL
        for (int m = 1; m < T; ++m)
            if (m <= t) sum += r[m] * x[t - m];
        return sum;
    }
};

}  // namespace PMSN_NAMESPACE
