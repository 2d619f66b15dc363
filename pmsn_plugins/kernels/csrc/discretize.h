// Zero-order hold for one mode of one channel, and its adjoint; see pmsn_plugins/functional/pmsn.py. In double: the
// coefficients are tiny, and their rounding adds up over thousands of steps.
//
//     A = exp(z), z = dt lam, lam = -exp(log_decay) + i freq, E = A - 1, Q = E / lam, K = B R Q
#pragma once
#include "lane.h"

namespace PMSN_NAMESPACE {

template <class L>
struct Complex {
    L real, imag;
};
template <class L>
PMSN_FN Complex<L> operator*(Complex<L> a, Complex<L> b) {
    return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
template <class L>
PMSN_FN Complex<L> operator+(Complex<L> a, Complex<L> b) {
    return {a.real + b.real, a.imag + b.imag};
}
template <class L>
PMSN_FN Complex<L> conjugate(Complex<L> a) {
    return {a.real, -a.imag};
}

// sin and cos of |x| < 1e5: x = n pi/2 + r
template <class L>
PMSN_FN void sine_and_cosine(L x, L& sine, L& cosine) {
    const L n = nearest(x * 0.63661977236758134308);
    const L r = ((x - n * 1.57079632673412561417) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
    const L r2 = r * r;
    L s = splat<L>(1.0), c = splat<L>(1.0);
    PMSN_UNROLL
    for (int i = 18; i > 0; i -= 2) {
        c = 1.0 - r2 * c * (1.0 / ((i - 1) * i));
        s = 1.0 - r2 * s * (1.0 / (i * (i + 1)));
    }
    s = r * s;
    const L quarter = n - 4.0 * nearest(n * 0.25);  // -2..2: the quarter turn
    const L odd = absolute(quarter), one = splat<L>(1.0);
    const L swapped_s = odd == one ? c : s, swapped_c = odd == one ? s : c;
    // sin(r + q pi/2), cos(r + q pi/2) for q = -2..2
    sine = quarter > one ? -swapped_s : quarter < L{} ? -swapped_s : swapped_s;
    cosine = quarter > L{} ? -swapped_c : quarter < -one ? -swapped_c : swapped_c;
}

template <class L>
struct Mode {
    L dt, decay;
    Complex<L> lam, A, E, Q, gain, inverse_lam;
};

template <class L>
PMSN_FN Mode<L> discretize_mode(L log_dt, L log_decay, L freq, Complex<L> B, Complex<L> R) {
    Mode<L> m;
    m.dt = exponential(log_dt);
    m.decay = exponential(log_decay);
    m.lam = {-m.decay, freq};
    L power, remainder, half_sine, half_cosine;
    exp_parts(-m.dt * m.decay, power, remainder);
    const L size = power + power * remainder, size_minus_one = power * remainder + (power - 1.0);
    sine_and_cosine(m.dt * freq * 0.5, half_sine, half_cosine);
    const L cosine_minus_one = -2.0 * half_sine * half_sine;  // without cancellation, like size_minus_one
    m.E = {size_minus_one * (1.0 + cosine_minus_one) + cosine_minus_one, size * (2.0 * half_sine * half_cosine)};
    m.A = {1.0 + m.E.real, m.E.imag};
    const L norm = m.decay * m.decay + freq * freq;
    m.inverse_lam = {m.lam.real / norm, -m.lam.imag / norm};
    m.Q = m.E * m.inverse_lam;
    m.gain = B * R;
    return m;
}

template <class L>
struct ModeGradient {
    L log_dt, log_decay, freq;  // log_dt: this mode's part
    Complex<L> B, R;
};

template <class L>
PMSN_FN ModeGradient<L> discretize_mode_adjoint(const Mode<L>& m, Complex<L> B, Complex<L> R, Complex<L> grad_E,
                                                Complex<L> grad_K) {
    ModeGradient<L> g;
    const Complex<L> grad_gain = grad_K * conjugate(m.Q), grad_Q = grad_K * conjugate(m.gain);
    g.B = grad_gain * conjugate(R);
    g.R = grad_gain * conjugate(B);
    const Complex<L> over_lam = grad_Q * conjugate(m.inverse_lam), through_lam = over_lam * conjugate(m.Q);
    const Complex<L> grad_z = (grad_E + over_lam) * conjugate(m.A);
    g.log_dt = m.dt * (grad_z.real * m.lam.real + grad_z.imag * m.lam.imag);
    const L grad_lam_real = m.dt * grad_z.real - through_lam.real,
            grad_lam_imag = m.dt * grad_z.imag - through_lam.imag;
    g.log_decay = -m.decay * grad_lam_real;
    g.freq = grad_lam_imag;
    return g;
}

}  // namespace PMSN_NAMESPACE
