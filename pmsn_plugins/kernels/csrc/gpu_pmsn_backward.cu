// PMSN backward on CUDA: pmsn_backward and pmsn_reduce, and before them, where time is cut, the adjoint at the
// segments' borders. Compiled by NVRTC, besides gpu_pmsn_slope.h, with PMSN_HIDDEN: whether the final hidden state has
// a gradient, which filters cannot go back from.
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

// The way back of the hidden compartments, in four planes of K numbers each.
struct ByModes {
    typedef HiddenAdjoint<R, K> Adjoint;
    typedef HiddenSums<R, K> Sums;
    template <int COUNT>
    using hidden = Modes<R, COUNT>;
    typedef AdjointPower<R> Power;

    static PMSN_FN Power power(const Modes<R, 1>& mode, index_t length) {
        return Power(mode.E_real[0], mode.E_imag[0], length);
    }
    // of the last segment, which the gradients of the final state enter
    static PMSN_FN Power last_power(const Modes<R, 1>& mode, index_t length, const Power&) {
        return power(mode, length);
    }
    static PMSN_FN AdjointCarry<R> carry(R lam_real, R lam_imag) { return AdjointCarry<R>(lam_real, lam_imag); }
    static PMSN_FN void begin(Adjoint& a, R dI) { a.enter(dI); }
    static PMSN_FN R step(const hidden<K>& m, Adjoint& a, Sums& sums, R x, R, R dI_before) {
        return hidden_adjoint_step<R, K>(m, a, sums, x, dI_before);
    }
    // of K and E, from the sums
    static PMSN_FN void finish(const Modes<R, K>& modes, R* sums) {
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            const R mu_real = sums[2 * K + j], mu_imag = sums[3 * K + j];
            sums[2 * K + j] = modes.K_real[j] * mu_real + modes.K_imag[j] * mu_imag;
            sums[3 * K + j] = modes.K_real[j] * mu_imag - modes.K_imag[j] * mu_real;
        }
    }
};
struct ByFilters {
    typedef FilterRuns<R, K> Adjoint;
    typedef Filters<R, K> Sums;
    template <int COUNT>
    using hidden = Filter<COUNT>;
    typedef FilterPower Power;

    static PMSN_FN Power power(const Filter<1>& filter, index_t length) { return Power(filter, length); }
    static PMSN_FN Power last_power(const Filter<1>&, index_t, const Power& any) { return any; }  // nothing enters it
    static PMSN_FN FilterBackCarry<R> carry(R, R) { return FilterBackCarry<R>(); }
    static PMSN_FN void begin(Adjoint&, R) {}
    static PMSN_FN R step(const hidden<K>& f, Adjoint& a, Sums& sums, R x, R dI, R) {
        return filters_back_step(f, a, sums, x, dI);
    }
    static PMSN_FN void finish(const Modes<R, K>& modes, R* sums) {
        gradients_from_filters((const R*)&modes, K, true, sums);
    }
};
template <bool>
struct BackBy : ByModes {};
template <>
struct BackBy<true> : ByFilters {};
typedef BackBy<AS_FILTERS && !PMSN_HIDDEN> Back;
template <int COUNT>
using BackHidden = typename Back::template hidden<COUNT>;

template <bool OTHER>
struct BackNeuronOf : Neuron {
    PMSN_FN BackNeuronOf(const PmsnArgs& args, index_t channel) : Neuron(args, channel) {}
    PMSN_FN const Hidden<K>& back() const { return hidden; }
};
template <>
struct BackNeuronOf<true> : Neuron {
    BackHidden<K> hidden_back;
    PMSN_FN BackNeuronOf(const PmsnArgs& args, index_t channel) : Neuron(args, channel) {
        read_hidden(args, channel * K, hidden_back);
    }
    PMSN_FN const BackHidden<K>& back() const { return hidden_back; }
};
typedef BackNeuronOf<AS_FILTERS && PMSN_HIDDEN> BackNeuron;

struct Adjoint {
    R v;
    typename Back::Adjoint h;

    PMSN_FN R* part(int i) { return (R*)&h + i * K; }
    PMSN_FN void clear() {
        v = 0;
        PMSN_UNROLL
        for (int i = 0; i < 4 * K; ++i) part(0)[i] = 0;
    }
    PMSN_FN void load_final(const PmsnArgs& args, index_t element) {
        const index_t M = args.layout.M;
        clear();
        v = read(args.grad_v_after, element);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            part(0)[j] = read(args.grad_h_real_after, j * M + element);
            part(1)[j] = read(args.grad_h_imag_after, j * M + element);
        }
    }
    PMSN_FN void load(const R* from, index_t M) {
        v = PMSN_RESET == RESET_CUMULATIVE ? from[0] : R(0);
        PMSN_UNROLL
        for (int i = 0; i < 4 * K; ++i) part(0)[i] = from[(1 + i) * M];
    }
    PMSN_FN void store_hidden(R* to, index_t M) {
        PMSN_UNROLL
        for (int i = 0; i < 4 * K; ++i) to[(1 + i) * M] = part(0)[i];
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
PMSN_FN void back(const PmsnArgs& args, const BackNeuron& n, index_t at_last, int steps, const R* slope, Adjoint& a,
                  typename Back::Sums& sums, R& sum_D) {
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
            Back::begin(a.h, dI[0]);
            PMSN_UNROLL
            for (int i = 0; i < N; ++i) {
                const R x_now = LOCAL ? R(0) : loaded.x[i];
                const R grad_x =
                    Back::step(n.back(), a.h, sums, x_now, dI[i], i + 1 < N ? dI[i + 1] : R(0)) + n.D * dI[i];
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
PMSN_FN void sweep(const PmsnArgs& args, const BackNeuron& n, index_t element, const WorkItem& item, Adjoint& a,
                   typename Back::Sums& sums, R& sum_D) {
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
    for_elements<BackNeuron>(args, [&](const BackNeuron& n, index_t element, const WorkItem& item) {
        if (item.start == 0) return;
        Adjoint a;
        typename Back::Sums unused = {};
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

extern "C" __global__ void __launch_bounds__(THREADS, resident(4)) pmsn_adjoint_local(const PmsnArgs args) {
    for_elements<BackNeuron>(args, [&](const BackNeuron& n, index_t element, const WorkItem& item) {
        if (item.start == 0) return;
        Adjoint a;
        typename Back::Sums unused = {};
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
    BackHidden<1> hidden;
    read_hidden(args, mode, hidden);
    const typename Back::Power whole = Back::power(hidden, args.layout.segment),
                               last = Back::last_power(hidden, args.layout.T - segments * args.layout.segment, whole);
    auto carry = Back::carry(read(args.grad_h_real_after, own.j * M + own.element),
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
    typename Back::Sums sums = {};
    R initial[2 * K] = {};  // the last term of dE
    R sum_D = 0;
    for_elements<BackNeuron>(args, [&](const BackNeuron& n, index_t element, const WorkItem& item) {
        const index_t M = args.layout.M;
        Adjoint a;
        if (item.end == args.layout.T) a.load_final(args, element);
        else a.load(place(args, blockIdx.z, element), M);
        sweep<false, false>(args, n, element, item, a, sums, sum_D);
        if (item.start > 0) return;
        write(args.grad_v, element, a.v);
        PMSN_UNROLL
        for (int j = 0; j < (PMSN_STATE ? K : 0); ++j) {
            write(args.grad_h_real, j * M + element, a.part(0)[j]);
            write(args.grad_h_imag, j * M + element, a.part(1)[j]);
            const R mu_real = a.part(2)[j], mu_imag = a.part(3)[j];
            const R h_real = read(args.h_real, j * M + element), h_imag = read(args.h_imag, j * M + element);
            initial[j] += mu_real * h_real + mu_imag * h_imag;
            initial[K + j] += mu_imag * h_real - mu_real * h_imag;
        }
    });
    Modes<R, K> modes;
    read_hidden(args, WorkItem(args.layout).channel(args.layout) * K, modes);
    R columns[SUMS];
    columns[0] = sum_D;
    PMSN_UNROLL
    for (int i = 0; i < 4 * K; ++i) columns[1 + i] = ((const R*)&sums)[i];
    Back::finish(modes, columns + 1);
    PMSN_UNROLL
    for (int i = 0; i < 2 * K; ++i) columns[1 + 2 * K + i] += initial[i];
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
