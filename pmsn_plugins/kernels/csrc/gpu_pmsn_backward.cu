// PMSN backward on CUDA: pmsn_backward and pmsn_reduce, and before them, where time is cut, the adjoint at the
// segments' borders.
#include "gpu_pmsn_slope.h"

namespace PMSN_NAMESPACE {

enum { BACK = K > 8 ? 1 : K > 4 ? 4 : 8 };  // steps of backward whose loads are under way together
// Steps that are recomputed at a time, into memory of the thread: bounded, for the driver sets it aside for every
// thread that could run. A longer interval is gone through again for each of its parts.
enum { SCRATCH = PMSN_INTERVAL < 128 ? PMSN_INTERVAL : 128 };
// Or, where it is not too much of it, into shared memory: what a thread keeps there never goes to the L2 cache.
#if defined(__CUDACC__) && __CUDA_ARCH__ < 800
enum { IS_SHARED = false };
#else
enum { IS_SHARED = SCRATCH * THREADS * sizeof(R) <= 32768 };
#endif
enum { APART = IS_SHARED ? THREADS : 1 };  // from one step's place to the next

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

// between segments: what enters segment `segment` from the later one
PMSN_FN R* place(const PmsnArgs& args, index_t segment, index_t element) {
    return (R*)args.carries + segment * ADJOINT * args.layout.M + element;
}

// Recompute `steps` steps of the interval from `start` on, of which the first `skipped` leave nothing; the others leave
// dout/dI: dout/du, and 0 where the current is clamped.
PMSN_FN void recompute(const PmsnArgs& args, const Neuron& n, index_t element, index_t start, int skipped, int steps,
                       R* slope) {
    const index_t M = args.layout.M, first = start * M + element;
    const Element* x = (const Element*)args.x + first;
    State state;
    state.load(args, n.threshold, start, element);
    R u, out;
    if (PMSN_INTERVAL > SCRATCH) {
        for_steps<AHEAD>(x, M, skipped, [&](int, R x) { state.step(n, x, u, out); });
        x += skipped * M;
    }
    for_steps<AHEAD>(x, M, steps, [&](int i, R x) {
        const R current = state.step(n, x, u, out);
        const R found = slope_of(args, u, n.threshold.theta, first + (skipped + i) * M);
        slope[i * APART] = PMSN_RESET == RESET_MODULO && current <= 0 ? R(0) : found;
    });
}

template <int COUNT>
struct BackStep {  // what is loaded for so many steps
    static constexpr int count = COUNT;
    R dI[COUNT], x[COUNT], grad_v[COUNT];  // of dI only the gradient of what was sent
    PMSN_FN R last() const { return dI[COUNT - 1]; }
};

// Backward through steps whose `slope` has been recomputed; at_last: the last one's element. LOCAL: only to find
// where it ends. GRAD_V: only the membrane's adjoint.
template <bool LOCAL, bool GRAD_V>
PMSN_FN void back(const PmsnArgs& args, const Neuron& n, index_t at_last, int steps, const R* slope, Adjoint& a,
                  HiddenSums<R, K>& sums, R& sum_D) {
    const index_t M = args.layout.M;
    const Element* x = (const Element*)args.x + at_last;
    const OutElement* grad_out = (const OutElement*)args.grad_out + at_last;
    Element* dx = (Element*)args.grad_x + at_last;
    const R* grad_v_seq = (const R*)args.grad_v_seq + at_last;
    const auto load = [&](auto& to) {
        PMSN_UNROLL
        for (int i = 0; i < to.count; ++i) {
            to.dI[i] = OutMemory::load(grad_out - i * M);
            if (!LOCAL) to.x[i] = Memory::load(x - i * M);
            if (PMSN_RECORDED) to.grad_v[i] = grad_v_seq[-i * M];
        }
        x -= to.count * M, grad_out -= to.count * M, grad_v_seq -= to.count * M;
    };
    in_batches_back<BackStep, BACK>(steps, load, [&](auto loaded, int first) {
        constexpr int N = loaded.count;
        R(&dI)[N] = loaded.dI;
        PMSN_UNROLL
        for (int i = 0; i < N; ++i) {
            const int at = first + N - 1 - i;
            if (PMSN_RECORDED) a.v += loaded.grad_v[i];
            dI[i] = membrane_adjoint_step<PMSN_RESET>(slope[at * APART], dI[i], a.v, n.threshold.theta);
        }
        if (!GRAD_V) {
            a.h.enter(dI[0]);
            PMSN_UNROLL
            for (int i = 0; i < N; ++i) {
                const R x_now = LOCAL ? R(0) : loaded.x[i];
                const R grad_x =
                    hidden_adjoint_step<R, K>(n.modes, a.h, sums, x_now, i + 1 < N ? dI[i + 1] : R(0)) + n.D * dI[i];
                if (LOCAL) continue;
                Memory::store(dx, grad_x);
                dx -= M;
                sum_D += dI[i] * x_now;
            }
        }
    });
}

// Backward through the thread's segment.
template <bool LOCAL, bool GRAD_V>
PMSN_FN void sweep(const PmsnArgs& args, const Neuron& n, index_t element, const WorkItem& item, Adjoint& a,
                   HiddenSums<R, K>& sums, R& sum_D) {
    __shared__ R shared[IS_SHARED ? SCRATCH * THREADS : 1];
    R own[IS_SHARED ? 1 : SCRATCH];
    R* slope = IS_SHARED ? shared + threadIdx.x : own;
    for (index_t start = quotient(item.end - 1, PMSN_INTERVAL) * PMSN_INTERVAL; start >= item.start;
         start -= PMSN_INTERVAL) {
        int end = (int)(item.end - start < PMSN_INTERVAL ? item.end - start : PMSN_INTERVAL);
        while (end > 0) {
            const int skipped = PMSN_INTERVAL > SCRATCH ? (end - 1) / SCRATCH * SCRATCH : 0;
            recompute(args, n, element, start, skipped, end - skipped, slope);
            back<LOCAL, GRAD_V>(args, n, (start + end - 1) * args.layout.M + element, end - skipped, slope, a, sums,
                                sum_D);
            end = skipped;
        }
    }
}

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

// Where the membrane is a sum, dI needs dL/dv first: a plain sum over the later steps.
extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_grad_v_local(const PmsnArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        if (item.start == 0) return;
        Adjoint a;
        HiddenSums<R, K> unused = {};
        R unused_D = 0;
        a.clear();
        sweep<true, true>(args, n, element, item, a, unused, unused_D);
        *place(args, blockIdx.z - 1, element) = a.v;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_grad_v_carry(const PmsnArgs args) {
    const Carrier own(args.layout);
    if (!own.active) return;
    const int segments = (int)quotient(args.layout.T - 1, args.layout.segment);
    const index_t apart = ADJOINT * args.layout.M;
    R grad_v = read(args.grad_v_after, own.element);
    R* at = place(args, segments - 1, own.element);
    in_batches_back<8>(segments, [&](auto batch, int) {
        R local[batch.count];
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) local[i] = at[-i * apart];
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) *at = grad_v += local[i], at -= apart;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_adjoint_local(const PmsnArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        if (item.start == 0) return;
        Adjoint a;
        HiddenSums<R, K> unused = {};
        R unused_D = 0;
        a.clear();
        if (item.end == args.layout.T) a.v = read(args.grad_v_after, element);
        else if (PMSN_RESET == RESET_CUMULATIVE) a.v = *place(args, blockIdx.z, element);
        sweep<true, false>(args, n, element, item, a, unused, unused_D);
        a.store_hidden(place(args, blockIdx.z - 1, element), args.layout.M);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_adjoint_carry(const PmsnArgs args) {
    const Carrier own(args.layout);
    if (!own.active) return;
    const index_t M = args.layout.M, apart = ADJOINT * M, mode = own.mode(args.layout);
    const int segments = (int)quotient(args.layout.T - 1, args.layout.segment);
    const R E_real = read(args.E_real, mode), E_imag = read(args.E_imag, mode);
    const AdjointPower<R> whole(E_real, E_imag, args.layout.segment),
        last(E_real, E_imag, args.layout.T - segments * args.layout.segment);
    AdjointCarry<R> carry(read(args.grad_h_real_after, own.j * M + own.element),
                          read(args.grad_h_imag_after, own.j * M + own.element));
    R* at = place(args, segments - 1, own.element) + (1 + own.j) * M;
    in_batches_back<8>(segments, [&](auto batch, int first) {
        R local[batch.count][4];
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) PMSN_UNROLL
        for (int part = 0; part < 4; ++part) local[i][part] = at[part * K * M - i * apart];
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) {
            carry.step(first + batch.count - i == segments ? last : whole, local[i][0], local[i][1], local[i][2],
                       local[i][3]);
            PMSN_UNROLL
            for (int part = 0; part < 4; ++part) at[part * K * M] = local[i][part];
            at -= apart;
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_backward(const PmsnArgs args) {
    HiddenSums<R, K> sums = {}, initial = {};  // of initial only mu: the last term of dE
    R sum_D = 0;
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        const index_t M = args.layout.M;
        Adjoint a;
        if (item.end == args.layout.T) a.load_final(args, element);
        else a.load(place(args, blockIdx.z, element), M);
        sweep<false, false>(args, n, element, item, a, sums, sum_D);
        if (item.start > 0) return;
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
    const Neuron n(args, WorkItem(args.layout).channel(args.layout));
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

// One block for each channel.
extern "C" __global__ void __launch_bounds__(REDUCERS) pmsn_reduce(const PmsnArgs args) {
    reduce_channel<SUMS>(args.layout, args.partials, [&](int column, R sum) {
        const index_t c = blockIdx.x;
        const int which = (column - 1) / K;
        if (column == 0) ((R*)args.grad_D)[c] = sum;
        else
            ((R*)(which == 0   ? args.grad_K_real
                  : which == 1 ? args.grad_K_imag
                  : which == 2 ? args.grad_E_real
                               : args.grad_E_imag))[c * K + (column - 1) % K] = sum;
    });
}
