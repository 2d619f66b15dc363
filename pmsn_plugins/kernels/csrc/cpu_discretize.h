// discretize.h over all modes of a layer.
#pragma once
#include "cpu_lane.h"
#include "discretize.h"

namespace PMSN_NAMESPACE {

template <class R>
struct DiscretizeCpu {
    typedef double_lane L;
    const DiscretizeArgs& args;
    index_t first, valid;  // the modes of this lane, counted over [C, k]

    L load(const void* from) const {
        L lane = splat<L>(1.0);
        for (index_t i = 0; i < valid; ++i) lane[i] = ((const R*)from)[first + i];
        return lane;
    }
    L load_log_dt() const {
        L lane = splat<L>(1.0);
        for (index_t i = 0; i < valid; ++i) lane[i] = ((const R*)args.log_dt)[(first + i) / args.k];
        return lane;
    }
    void store(void* to, L lane) const {
        for (index_t i = 0; i < valid; ++i) ((R*)to)[first + i] = R(lane[i]);
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

    void backward(double* grad_log_dt) const {
        const ModeGradient<L> g =
            discretize_mode_adjoint(mode(), B(), readout(), {load(args.grad_E_real), load(args.grad_E_imag)},
                                    {load(args.grad_K_real), load(args.grad_K_imag)});
        store(args.grad_log_decay, g.log_decay);
        store(args.grad_freq, g.freq);
        store(args.grad_B_real, g.B.real);
        store(args.grad_B_imag, g.B.imag);
        store(args.grad_R_real, g.R.real);
        store(args.grad_R_imag, g.R.imag);
        for (index_t i = 0; i < valid; ++i) {  // modes come in order: a channel's sum is complete at its last one
            const index_t mode = first + i;
            *grad_log_dt = (mode % args.k ? *grad_log_dt : 0.0) + g.log_dt[i];
            ((R*)args.grad_log_dt)[mode / args.k] = R(*grad_log_dt);
        }
    }

    static void run(const DiscretizeArgs& args, bool back) {
        double grad_log_dt = 0.0;
        const index_t modes = args.C * args.k, width = lane_width<double>();
        for (index_t first = 0; first < modes; first += width) {
            const DiscretizeCpu lane = {args, first, modes - first < width ? modes - first : width};
            if (back) lane.backward(&grad_log_dt);
            else lane.forward();
        }
    }
};

static void run_discretize(const DiscretizeArgs* args, bool back) {
    if (args->is_double) DiscretizeCpu<double>::run(*args, back);
    else DiscretizeCpu<float>::run(*args, back);
}
static void discretize(const DiscretizeArgs* args) { run_discretize(args, false); }
static void discretize_backward(const DiscretizeArgs* args) { run_discretize(args, true); }

}  // namespace PMSN_NAMESPACE
