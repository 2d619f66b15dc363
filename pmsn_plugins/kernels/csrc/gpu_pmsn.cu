// PMSN on CUDA. Compiled by NVRTC, besides gpu_common.h, with
//     PMSN_K, PMSN_RESET, PMSN_FIRE, PMSN_SURROGATE    constants of the layer
//     PMSN_INTERVAL                                    layout.interval
//     PMSN_STATE                                       whether an initial state is given
//
// Forward is one kernel, pmsn_forward, and backward pmsn_backward and pmsn_reduce. When time is cut into segments these
// start from the state (the adjoint) at the segment's border, which is found first: every segment is run from zero
// (*_local), and a thread per element goes through the segments and adds what the one before (after) contributes
// (*_carry).
#include "gpu_common.h"
#include "pmsn.h"

namespace PMSN_NAMESPACE {

enum { K = PMSN_K, STATE = 1 + 2 * K, ADJOINT = 1 + 4 * K, SUMS = 1 + 4 * K };
enum { AHEAD = K > 8 ? 2 : 8 };  // steps that x is read ahead: what the registers hold

// The membrane passes floats or, with FIRE_MEMBRANE, the arithmetic's own type.
struct OutIsMembrane {
    typedef Plain type;
};
struct OutIsSpikes {
    typedef Memory type;
};
template <bool>
struct Out : OutIsSpikes {};
template <>
struct Out<true> : OutIsMembrane {};
typedef Out<PMSN_FIRE == FIRE_MEMBRANE>::type OutMemory;

struct Neuron {
    Modes<R, K> modes;
    R D;
    Threshold<R> threshold;

    PMSN_FN Neuron(const PmsnArgs& args, index_t channel)
        : D(read(args.D, channel)),
          threshold(args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta) {
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            modes.E_real[j] = read(args.E_real, channel * K + j), modes.E_imag[j] = read(args.E_imag, channel * K + j);
            modes.K_real[j] = read(args.K_real, channel * K + j), modes.K_imag[j] = read(args.K_imag, channel * K + j);
        }
    }
};

struct State {
    R v, h_real[K], h_imag[K];

    PMSN_FN void clear() {
        v = 0;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h_real[j] = h_imag[j] = 0;
    }
    // at time `start`, a multiple of the interval
    PMSN_FN void load(const PmsnArgs& args, const Threshold<R>& threshold, index_t start, index_t element) {
        const index_t M = args.layout.M;
        const R* from = (const R*)args.checkpoints + (start / args.layout.interval - 1) * STATE * M + element;
        v = start ? from[0] : read(args.v, element);
        if (!start && args.v && PMSN_RESET == RESET_MODULO) v = modulo_of_any(v, threshold);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            h_real[j] = start ? from[(1 + j) * M] : read(args.h_real, j * M + element);
            h_imag[j] = start ? from[(1 + K + j) * M] : read(args.h_imag, j * M + element);
        }
    }
    PMSN_FN void store(const PmsnArgs& args, index_t start, index_t element) const {
        const index_t M = args.layout.M;
        R* to = (R*)args.checkpoints + (start / args.layout.interval - 1) * STATE * M + element;
        to[0] = v;
        store_hidden(to, M);
    }
    PMSN_FN void store_hidden(R* to, index_t M) const {
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) to[(1 + j) * M] = h_real[j], to[(1 + K + j) * M] = h_imag[j];
    }
    // one step from input x; returns the current
    PMSN_FN R step(const Neuron& n, R x, R& u, R& out) {
        R current = hidden_step<R, K>(n.modes, h_real, h_imag, x) + n.D * x;
        membrane_step<PMSN_RESET, PMSN_FIRE>(current, v, u, out, n.threshold);
        return current;
    }
};

struct Adjoint {
    R v;
    HiddenAdjoint<R, K> h;

    PMSN_FN void clear() {
        v = 0;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) h.lam_real[j] = h.lam_imag[j] = h.mu_real[j] = h.mu_imag[j] = 0;
    }
    PMSN_FN void load_final(const PmsnArgs& args, index_t element) {
        const index_t M = args.layout.M;
        clear();
        v = read(args.grad_v_after, element);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            h.lam_real[j] = read(args.grad_h_real_after, j * M + element);
            h.lam_imag[j] = read(args.grad_h_imag_after, j * M + element);
        }
    }
    // between segments: what enters segment `segment` from the later one
    PMSN_FN R* place(const PmsnArgs& args, index_t segment, index_t element) const {
        return (R*)args.carries + segment * ADJOINT * args.layout.M + element;
    }
    PMSN_FN void load(const R* from, index_t M) {
        v = PMSN_RESET == RESET_CUMULATIVE ? from[0] : R(0);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            h.lam_real[j] = from[(1 + j) * M], h.lam_imag[j] = from[(1 + K + j) * M];
            h.mu_real[j] = from[(1 + 2 * K + j) * M], h.mu_imag[j] = from[(1 + 3 * K + j) * M];
        }
    }
    PMSN_FN void store_hidden(R* to, index_t M) const {
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            to[(1 + j) * M] = h.lam_real[j], to[(1 + K + j) * M] = h.lam_imag[j];
            to[(1 + 2 * K + j) * M] = h.mu_real[j], to[(1 + 3 * K + j) * M] = h.mu_imag[j];
        }
    }
};

// at step and element `at` of the sequence
PMSN_FN R slope_of(const PmsnArgs& args, R u, R theta, index_t at) {
    if (PMSN_SURROGATE == SURROGATE_GIVEN) return read(args.slopes, at);
    if (PMSN_FIRE == FIRE_MEMBRANE) return 1;
    const SurrogateParameters<R> parameters = {(R)args.surrogate_a, (R)args.surrogate_b, (R)args.surrogate_c};
    if (PMSN_FIRE == FIRE_BURST) return burst_slope<PMSN_SURROGATE>(u, theta, parameters);
    return surrogate_derivative<PMSN_SURROGATE>(u - theta, parameters);
}

// A step of memory: x is read a few steps ahead, for the loads do not wait for the recurrence.
template <class Step>
PMSN_FN void for_steps(const void* x, index_t element, index_t M, index_t start, index_t end, Step step) {
    const Memory::element* from = (const Memory::element*)x + element;
    index_t t = start;
    for (; t + AHEAD <= end; t += AHEAD) {
        R ahead[AHEAD];
        PMSN_UNROLL
        for (int i = 0; i < AHEAD; ++i) ahead[i] = Memory::load(from + (t + i) * M);
        PMSN_UNROLL
        for (int i = 0; i < AHEAD; ++i) step(t + i, ahead[i]);
    }
    for (; t < end; ++t) step(t, Memory::load(from + t * M));
}

// Run `run(neuron, element, part)` for every element of the thread.
template <class Run>
PMSN_FN void for_elements(const PmsnArgs& args, Run run) {
    const Part part(args.layout);
    const Neuron neuron(args, part.channel(args.layout));
    for (index_t row = part.first_row; row < part.end_row; ++row) {
        const index_t element = row * args.layout.P + part.position;
        if (element < args.layout.M) run(neuron, element, part);
    }
}

// Recompute the steps of one interval, and leave dout/dI of each: dout/du, and 0 where the current is clamped.
PMSN_FN void recompute(const PmsnArgs& args, const Neuron& n, index_t element, index_t start, index_t end, R* slope) {
    State state;
    state.load(args, n.threshold, start, element);
    for_steps(args.x, element, args.layout.M, start, end, [&](index_t t, R x) {
        R u, out;
        const R I = state.step(n, x, u, out), g = slope_of(args, u, n.threshold.theta, t * args.layout.M + element);
        slope[t - start] = PMSN_RESET == RESET_MODULO && I <= 0 ? R(0) : g;
    });
}

PMSN_FN R grad_out(const PmsnArgs& args, index_t at) {
    return args.grad_out ? OutMemory::load((const OutMemory::element*)args.grad_out + at) : R(0);
}

// dI of step t of an interval that has been recomputed
PMSN_FN R drive_adjoint(const PmsnArgs& args, const Neuron& n, R slope, index_t at, R& grad_v) {
    if (PMSN_RESET != RESET_MODULO && args.grad_v_seq) grad_v += read(args.grad_v_seq, at);
    return membrane_adjoint_step<PMSN_RESET>(slope, grad_out(args, at), grad_v, n.threshold.theta);
}

// The way back through the thread's segment; LOCAL: from a zero adjoint, and only to find where it ends.
template <bool LOCAL>
PMSN_FN void sweep(const PmsnArgs& args, const Neuron& n, index_t element, const Part& part, Adjoint& a,
                   HiddenSums<R, K>& sums, R& sum_D) {
    const index_t M = args.layout.M, interval = args.layout.interval;
    R slope[PMSN_INTERVAL];
    const Memory::element* x = (const Memory::element*)args.x + element;
    for (index_t start = (part.end - 1) / interval * interval; start >= part.start; start -= interval) {
        const index_t end = part.end < start + interval ? part.end : start + interval;
        recompute(args, n, element, start, end, slope);
        R dI = drive_adjoint(args, n, slope[end - 1 - start], (end - 1) * M + element, a.v);
        a.h.enter(dI);
        for (index_t t = end - 1; t >= start; --t) {
            const R before =
                t > start ? drive_adjoint(args, n, slope[t - 1 - start], (t - 1) * M + element, a.v) : R(0);
            const R x_t = LOCAL ? R(0) : Memory::load(x + t * M);
            const R dx = hidden_adjoint_step<R, K>(n.modes, a.h, sums, x_t, before) + n.D * dI;
            if (!LOCAL) {
                Memory::store((Memory::element*)args.grad_x + t * M + element, dx);
                sum_D += dI * x_t;
            }
            dI = before;
        }
    }
}

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void pmsn_forward(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        const index_t M = args.layout.M, interval = args.layout.interval;
        State state;
        state.load(args, n.threshold, part.start, element);
        for (index_t start = part.start; start < part.end; start += interval) {
            if (start > part.start && args.checkpoints) state.store(args, start, element);
            for_steps(args.x, element, M, start, part.end < start + interval ? part.end : start + interval,
                      [&](index_t t, R x) {
                          R u, out;
                          state.step(n, x, u, out);
                          OutMemory::store((OutMemory::element*)args.out + t * M + element, out);
                          write(args.v_seq, t * M + element, state.v);
                      });
        }
        if (part.end < args.layout.T || !args.v_after) return;
        write(args.v_after, element, state.v);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            write(args.h_real_after, j * M + element, state.h_real[j]);
            write(args.h_imag_after, j * M + element, state.h_imag[j]);
        }
    });
}

extern "C" __global__ void pmsn_hidden_local(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        if (part.end == args.layout.T) return;
        State state;
        state.clear();
        for_steps(args.x, element, args.layout.M, part.start, part.end,
                  [&](index_t, R x) { hidden_step<R, K>(n.modes, state.h_real, state.h_imag, x); });
        state.store(args, part.end, element);
    });
}

extern "C" __global__ void pmsn_hidden_carry(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part&) {
        const index_t M = args.layout.M, length = args.layout.segment;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            HiddenCarry<R> h(n.modes.E_real[j], n.modes.E_imag[j], length, read(args.h_real, j * M + element),
                             read(args.h_imag, j * M + element));
            for (index_t end = length; end < args.layout.T; end += length) {
                R* at = (R*)args.checkpoints + ((end / args.layout.interval - 1) * STATE + 1 + j) * M + element;
                h.step(at[0], at[K * M]);
            }
        }
    });
}

extern "C" __global__ void pmsn_membrane_local(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        if (part.end == args.layout.T) return;
        State state;
        state.load(args, n.threshold, part.start, element);
        state.v = 0;
        for_steps(args.x, element, args.layout.M, part.start, part.end, [&](index_t, R x) {
            R u, out;
            state.step(n, x, u, out);
        });
        ((R*)args.checkpoints)[(part.end / args.layout.interval - 1) * STATE * args.layout.M + element] = state.v;
    });
}

extern "C" __global__ void pmsn_membrane_carry(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part&) {
        State state;
        state.load(args, n.threshold, 0, element);
        for (index_t end = args.layout.segment; end < args.layout.T; end += args.layout.segment) {
            R* at = (R*)args.checkpoints + (end / args.layout.interval - 1) * STATE * args.layout.M + element;
            const R charged = membrane_before<PMSN_RESET>(state.v) + *at;
            *at = state.v =
                PMSN_RESET == RESET_MODULO ? least_nonnegative(charged, charged - n.threshold.theta) : charged;
        }
    });
}

// Where the membrane is a sum, dI needs dL/dv first: a plain sum over the later steps.
extern "C" __global__ void pmsn_grad_v_local(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        if (part.start == 0) return;
        Adjoint a;
        a.clear();
        R slope[PMSN_INTERVAL];
        const index_t interval = args.layout.interval;
        for (index_t start = (part.end - 1) / interval * interval; start >= part.start; start -= interval) {
            const index_t end = part.end < start + interval ? part.end : start + interval;
            recompute(args, n, element, start, end, slope);
            for (index_t t = end - 1; t >= start; --t)
                drive_adjoint(args, n, slope[t - start], t * args.layout.M + element, a.v);
        }
        *a.place(args, blockIdx.z - 1, element) = a.v;
    });
}

extern "C" __global__ void pmsn_grad_v_carry(const PmsnArgs args) {
    for_elements(args, [&](const Neuron&, index_t element, const Part&) {
        Adjoint a;
        R grad_v = read(args.grad_v_after, element);
        for (index_t segment = (args.layout.T - 1) / args.layout.segment - 1; segment >= 0; --segment) {
            R* at = a.place(args, segment, element);
            *at = grad_v += *at;
        }
    });
}

extern "C" __global__ void pmsn_adjoint_local(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        if (part.start == 0) return;
        Adjoint a;
        a.clear();
        if (part.end == args.layout.T) a.v = read(args.grad_v_after, element);
        else if (PMSN_RESET == RESET_CUMULATIVE) a.v = *a.place(args, blockIdx.z, element);
        HiddenSums<R, K> unused = {};
        R unused_D = 0;
        sweep<true>(args, n, element, part, a, unused, unused_D);
        a.store_hidden(a.place(args, blockIdx.z - 1, element), args.layout.M);
    });
}

extern "C" __global__ void pmsn_adjoint_carry(const PmsnArgs args) {
    for_elements(args, [&](const Neuron& n, index_t element, const Part&) {
        const index_t M = args.layout.M, last = (args.layout.T - 1) / args.layout.segment;
        Adjoint a;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            AdjointCarry<R> carry(n.modes.E_real[j], n.modes.E_imag[j], read(args.grad_h_real_after, j * M + element),
                                  read(args.grad_h_imag_after, j * M + element));
            for (index_t segment = last; segment > 0; --segment) {
                const index_t length =
                    segment < last ? args.layout.segment : args.layout.T - last * args.layout.segment;
                R* at = a.place(args, segment - 1, element) + (1 + j) * M;
                carry.step(length, at[0], at[K * M], at[2 * K * M], at[3 * K * M]);
            }
        }
    });
}

extern "C" __global__ void pmsn_backward(const PmsnArgs args) {
    HiddenSums<R, K> sums = {}, initial = {};  // of initial only mu: the last term of dE
    R sum_D = 0;
    for_elements(args, [&](const Neuron& n, index_t element, const Part& part) {
        const index_t M = args.layout.M;
        Adjoint a;
        if (part.end == args.layout.T) a.load_final(args, element);
        else a.load(a.place(args, blockIdx.z, element), M);
        sweep<false>(args, n, element, part, a, sums, sum_D);
        if (part.start > 0) return;
        write(args.grad_v, element, a.v);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            write(args.grad_h_real, j * M + element, a.h.lam_real[j]);
            write(args.grad_h_imag, j * M + element, a.h.lam_imag[j]);
            if (!PMSN_STATE) continue;
            const R h_real = read(args.h_real, j * M + element), h_imag = read(args.h_imag, j * M + element);
            initial.mu_real[j] += a.h.mu_real[j] * h_real + a.h.mu_imag[j] * h_imag;
            initial.mu_imag[j] += a.h.mu_imag[j] * h_real - a.h.mu_real[j] * h_imag;
        }
    });
    const Neuron n(args, Part(args.layout).channel(args.layout));
    R columns[SUMS];
    columns[0] = sum_D;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        columns[1 + j] = sums.lam_real[j];
        columns[1 + K + j] = sums.lam_imag[j];
        columns[1 + 2 * K + j] =
            n.modes.K_real[j] * sums.mu_real[j] + n.modes.K_imag[j] * sums.mu_imag[j] + initial.mu_real[j];
        columns[1 + 3 * K + j] =
            n.modes.K_real[j] * sums.mu_imag[j] - n.modes.K_imag[j] * sums.mu_real[j] + initial.mu_imag[j];
    }
    sum_by_channel<SUMS>(args.layout, columns, args.partials);
}

// One thread for each channel and column.
extern "C" __global__ void pmsn_reduce(const PmsnArgs args) {
    const index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x, c = i / SUMS;
    if (c >= args.layout.C) return;
    const int column = (int)(i % SUMS);
    const R sum = total<SUMS>(args.layout, args.partials, c, column);
    if (column == 0) {
        ((R*)args.grad_D)[c] = sum;
        return;
    }
    void* const targets[] = {args.grad_K_real, args.grad_K_imag, args.grad_E_real, args.grad_E_imag};
    ((R*)targets[(column - 1) / K])[c * K + (column - 1) % K] = sum;
}
