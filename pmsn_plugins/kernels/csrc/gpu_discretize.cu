// Discretisation on CUDA: one thread for each channel. Compiled by NVRTC with PMSN_REAL; arithmetic in double.
#include "args.h"
#include "discretize.h"

namespace PMSN_NAMESPACE {

typedef PMSN_REAL R;

PMSN_FN double read(const void* memory, index_t i) { return ((const R*)memory)[i]; }
PMSN_FN void write(void* memory, index_t i, double value) { ((R*)memory)[i] = (R)value; }

struct Parameters {
    Complex<double> B, readout;
    Mode<double> mode;
    PMSN_FN Parameters(const DiscretizeArgs& args, index_t c, index_t i)
        : B{read(args.B_real, i), read(args.B_imag, i)},
          readout{read(args.R_real, i), read(args.R_imag, i)},
          mode(discretize_mode(read(args.log_dt, c), read(args.log_decay, i), read(args.freq, i), B, readout)) {}
};

}  // namespace PMSN_NAMESPACE

using namespace PMSN_NAMESPACE;

extern "C" __global__ void discretize_forward(const DiscretizeArgs args) {
    const index_t c = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= args.C) return;
    for (index_t i = c * args.k; i < (c + 1) * args.k; ++i) {
        const Parameters p(args, c, i);
        const Complex<double> K = p.mode.gain * p.mode.Q;
        write(args.E_real, i, p.mode.E.real);
        write(args.E_imag, i, p.mode.E.imag);
        write(args.K_real, i, K.real);
        write(args.K_imag, i, K.imag);
    }
}

extern "C" __global__ void discretize_backward(const DiscretizeArgs args) {
    const index_t c = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= args.C) return;
    double grad_log_dt = 0;
    for (index_t i = c * args.k; i < (c + 1) * args.k; ++i) {
        const Parameters p(args, c, i);
        const Complex<double> grad_E = {read(args.grad_E_real, i), read(args.grad_E_imag, i)};
        const Complex<double> grad_K = {read(args.grad_K_real, i), read(args.grad_K_imag, i)};
        const ModeGradient<double> g = discretize_mode_adjoint(p.mode, p.B, p.readout, grad_E, grad_K);
        grad_log_dt += g.log_dt;
        write(args.grad_log_decay, i, g.log_decay);
        write(args.grad_freq, i, g.freq);
        write(args.grad_B_real, i, g.B.real);
        write(args.grad_B_imag, i, g.B.imag);
        write(args.grad_R_real, i, g.R.real);
        write(args.grad_R_imag, i, g.R.imag);
    }
    write(args.grad_log_dt, c, grad_log_dt);
}
