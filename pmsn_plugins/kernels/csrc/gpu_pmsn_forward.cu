// PMSN forward on CUDA: pmsn_forward, and before it, where time is cut, the state at the segments' borders.
#include "gpu_pmsn.h"

namespace PMSN_NAMESPACE {

// Twice as many loads under way: few threads are then slowed down by their own arithmetic, not by the memory.
enum { FAR_AHEAD = K <= 4 && sizeof(R) == 4 && PMSN_INTERVAL % (4 * AHEAD) == 0 ? 2 * AHEAD : AHEAD };

PMSN_FN HiddenCarry<R> carry_of(const Modes<R, 1>& mode, index_t length, R real, R imag) {
    return HiddenCarry<R>(mode.E_real[0], mode.E_imag[0], length, real, imag);
}
PMSN_FN FilterCarry<R> carry_of(const Filter<1>& filter, index_t length, R, R) {
    return FilterCarry<R>(filter, length);
}

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_forward(const PmsnArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        const index_t M = args.layout.M;
        const Element* x = (const Element*)args.x + item.start * M + element;
        OutElement* out = (OutElement*)args.out + item.start * M + element;
        State state;
        state.load(args, n.threshold, item.start, element);
        const auto keep = [&](int i) {
            if (!args.checkpoints) return;
            state.store(checkpoint(args, item.start + i, element), M);
        };
        const auto step = [&](int i, R x) {
            R u, sent;
            state.step(n, x, u, sent);
            OutMemory::store(out, sent);
            out += M;
            if (PMSN_RECORDED) write(args.v_seq, (item.start + i) * M + element, state.v);
        };
        for_steps<FAR_AHEAD>(x, M, (int)(item.end - item.start), step, keep);
        if (item.end == args.layout.T && args.v_after) state.store_final(args, item.channel(args.layout), element);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, resident(PMSN_STATE ? 7 : 8))
    pmsn_hidden_local(const PmsnArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        if (item.end == args.layout.T) return;
        const index_t M = args.layout.M;
        State state;
        state.clear();
        for_steps<AHEAD>((const Element*)args.x + item.start * M + element, M, (int)args.layout.segment,
                         [&](int, R x) { hidden_step(n.hidden, state.h_real, state.h_imag, x); });
        state.store(checkpoint(args, item.end, element), M);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_hidden_carry(const PmsnArgs args) {
    const Carrier own(args.layout);
    if (!own.active) return;
    const index_t M = args.layout.M, length = args.layout.segment;
    Hidden<1> hidden;
    read_hidden(args, own.mode(args.layout), hidden);
    auto carry = carry_of(hidden, length, read(args.h_real, own.j * M + own.element),
                          read(args.h_imag, own.j * M + own.element));
    R* at = checkpoint(args, length, own.element) + (1 + own.j) * M;
    const index_t apart = quotient(length, PMSN_INTERVAL) * STATE * M;
    in_batches<8>((int)quotient(args.layout.T - 1, length), [&](auto batch, int) {
        R real[batch.count], imag[batch.count];
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) real[i] = at[i * apart], imag[i] = at[i * apart + K * M];
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) {
            carry.step(real[i], imag[i]);
            at[0] = real[i], at[K * M] = imag[i];
            at += apart;
        }
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, resident(6)) pmsn_membrane_local(const PmsnArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem& item) {
        if (item.end == args.layout.T) return;
        const index_t M = args.layout.M;
        State state;
        state.load(args, n.threshold, item.start, element);
        state.v = 0;
        for_steps<AHEAD>((const Element*)args.x + item.start * M + element, M, (int)args.layout.segment, [&](int, R x) {
            R u, out;
            state.step(n, x, u, out);
        });
        *checkpoint(args, item.end, element) = state.v;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_membrane_carry(const PmsnArgs args) {
    const Carrier own(args.layout);
    if (!own.active) return;
    const index_t M = args.layout.M, length = args.layout.segment;
    const Threshold<R> threshold(args.theta_tensor ? *(const R*)args.theta_tensor : (R)args.theta);
    R v = read(args.v, own.element);
    if (PMSN_STATE && PMSN_RESET == RESET_MODULO) v = modulo_of_any(v, threshold);
    R* at = checkpoint(args, length, own.element);
    const index_t apart = quotient(length, PMSN_INTERVAL) * STATE * M;
    in_batches<8>((int)quotient(args.layout.T - 1, length), [&](auto batch, int) {
        R local[batch.count];
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) local[i] = at[i * apart];
        loads_are_issued();
        PMSN_UNROLL
        for (int i = 0; i < batch.count; ++i) {
            const R charged = membrane_before<PMSN_RESET>(v) + local[i];
            *at = v = PMSN_RESET == RESET_MODULO ? least_nonnegative(charged, charged - threshold.theta) : charged;
            at += apart;
        }
    });
}
