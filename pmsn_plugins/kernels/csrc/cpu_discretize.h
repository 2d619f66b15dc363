// discretize.h over all modes of a layer. Thousands of channels (an image, flattened) have tens of thousands of modes,
// each with three exponentials, a sine and a cosine in double: items of a few channels are for all threads.
#pragma once
#include "cpu_lane.h"
#include "discretize.h"

namespace PMSN_NAMESPACE {

// Numbers of type R in memory, a lane of double at a time.
template <class R>
struct AsDouble;
template <>
struct AsDouble<double> {
    static PMSN_FN double_lane load(const double* from) { return Plain<double_lane>::load(from); }
    static PMSN_FN void store(double* to, double_lane lane) { Plain<double_lane>::store(to, lane); }
};
template <>
struct AsDouble<float> {
    typedef float half_lane __attribute__((vector_size(PMSN_LANE_BYTES / 2)));
    static PMSN_FN double_lane load(const float* from) {
        half_lane lane;
        __builtin_memcpy(&lane, from, sizeof(lane));
        return __builtin_convertvector(lane, double_lane);
    }
    static PMSN_FN void store(float* to, double_lane lane) {
        const half_lane low = __builtin_convertvector(lane, half_lane);
        __builtin_memcpy(to, &low, sizeof(low));
    }
};

template <class R>
struct DiscretizeCpu {
    typedef double_lane L;
    static constexpr index_t WIDTH = lane_width<double>();
    const DiscretizeArgs& args;
    index_t first, valid;    // the modes of this lane, counted over [C, k]
    index_t channel, inner;  // of its first one, and which of its channel that is

    PMSN_FN L load(const void* memory) const {
        const R* from = (const R*)memory + first;
        if (valid == WIDTH) return AsDouble<R>::load(from);
        R part[WIDTH];
        for (index_t i = 0; i < WIDTH; ++i) part[i] = i < valid ? from[i] : R(1);
        return AsDouble<R>::load(part);
    }
    PMSN_FN void store(void* memory, L lane) const {
        R* to = (R*)memory + first;
        if (valid == WIDTH) return AsDouble<R>::store(to, lane);
        R part[WIDTH];
        AsDouble<R>::store(part, lane);
        for (index_t i = 0; i < valid; ++i) to[i] = part[i];
    }
    PMSN_FN L load_log_dt() const {
        const R* from = (const R*)args.log_dt + channel;
        if (inner + WIDTH <= args.k) return splat<L>(double(*from));
        R part[WIDTH];
        for (index_t i = 0, j = inner; i < WIDTH; ++i) {
            part[i] = i < valid ? *from : R(1);
            if (++j == args.k) j = 0, ++from;
        }
        return AsDouble<R>::load(part);
    }
    Complex<L> B() const { return {load(args.B_real), load(args.B_imag)}; }
    Complex<L> readout() const { return {load(args.R_real), load(args.R_imag)}; }
    Mode<L> mode() const {
        return discretize_mode(load_log_dt(), load(args.log_decay), load(args.freq), B(), readout());
    }

    void forward() const {
        const Mode<L> m = mode();
        const Complex<L> K = m.gain * m.Q;
        store(args.E_real, m.E.real);
        store(args.E_imag, m.E.imag);
        store(args.K_real, K.real);
        store(args.K_imag, K.imag);
    }

    void backward(double& grad_log_dt) const {
        const ModeGradient<L> g =
            discretize_mode_adjoint(mode(), B(), readout(), {load(args.grad_E_real), load(args.grad_E_imag)},
                                    {load(args.grad_K_real), load(args.grad_K_imag)});
        store(args.grad_log_decay, g.log_decay);
        store(args.grad_freq, g.freq);
        store(args.grad_B_real, g.B.real);
        store(args.grad_B_imag, g.B.imag);
        store(args.grad_R_real, g.R.real);
        store(args.grad_R_imag, g.R.imag);
        double part[WIDTH];
        Plain<L>::store(part, g.log_dt);
        R* to = (R*)args.grad_log_dt + channel;
        for (index_t i = 0, j = inner; i < valid; ++i) {  // modes come in order: a sum is complete at its last one
            grad_log_dt = (j ? grad_log_dt : 0.0) + part[i];
            if (++j == args.k) *to++ = R(grad_log_dt), j = 0;
        }
    }

    static index_t item_channels(const DiscretizeArgs& args) { return args.k < 512 ? 512 / args.k : 1; }
    static index_t items(const DiscretizeArgs& args) {
        return (args.C + item_channels(args) - 1) / item_channels(args);
    }
    static void run(const DiscretizeArgs& args, bool back, index_t item) {
        const index_t begin = item * item_channels(args),
                      end = args.C - begin < item_channels(args) ? args.C : begin + item_channels(args);
        DiscretizeCpu lane = {args, begin * args.k, 0, begin, 0};
        double grad_log_dt = 0.0;
        for (; lane.first < end * args.k; lane.first += WIDTH) {
            const index_t rest = end * args.k - lane.first;
            lane.valid = rest < WIDTH ? rest : WIDTH;
            if (back) lane.backward(grad_log_dt);
            else lane.forward();
            for (lane.inner += WIDTH; lane.inner >= args.k; lane.inner -= args.k) ++lane.channel;
        }
    }
};

}  // namespace PMSN_NAMESPACE
