// PMSN, one time step forward and one back, for one lane of elements. The equations and their adjoint are derived in
// pmsn_plugins/functional/pmsn.py and below; the CPU and the CUDA sources only move data to and from these functions.
#pragma once
#include "surrogate.h"

namespace PMSN_NAMESPACE {

// Planes of a layer with k hidden compartments: its state is v and Re h, Im h of each; its coefficients are D and
// Re E, Im E, Re K, Im K of each. The adjoint of a state and the sums over time have as many as the coefficients.
PMSN_FN constexpr index_t state_planes(index_t k) { return 1 + 2 * k; }
PMSN_FN constexpr index_t coefficient_planes(index_t k) { return 1 + 4 * k; }

template <class L, int K>
struct HiddenAdjoint {
    L lam_real[K], lam_imag[K], mu_real[K], mu_imag[K];

    PMSN_FN void enter(L dI) {  // of the last step
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) lam_real[j] += dI;
    }
};
template <class L, int K>
struct HiddenSums {  // over time
    L lam_real[K], lam_imag[K], mu_real[K], mu_imag[K];
};

// Coefficients of K of the hidden compartments: E = A - 1 and K = R B (A - 1) / lam.
template <class L, int K>
struct Modes {
    typedef HiddenAdjoint<L, K> Adjoint;
    typedef HiddenSums<L, K> Sums;
    static constexpr bool are_filters = false;
    L E_real[K], E_imag[K], K_real[K], K_imag[K];
};

// h += E h + K x; returns Re(sum_j h_j). The change is summed first, so that a slow mode is rounded once per step.
template <class L, int K>
PMSN_FN L hidden_step(const Modes<L, K>& m, L* h_real, L* h_imag, L x) {
    L current = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L kept_real = minus_product(m.E_real[j] * h_real[j], m.E_imag[j], h_imag[j]);
        const L kept_imag = plus_product(m.E_real[j] * h_imag[j], m.E_imag[j], h_real[j]);
        const L change_real = plus_product(kept_real, m.K_real[j], x);
        const L change_imag = plus_product(kept_imag, m.K_imag[j], x);
        h_real[j] += change_real;
        h_imag[j] += change_imag;
        current = j ? current + h_real[j] : h_real[j];
    }
    return current;
}

// Adjoint of the hidden compartments. With dI[t] = dL/dI[t], backwards in time:
//     lam[t]   = dI[t] + conj(A) lam[t+1]          dL/dh[t]; conj(A) lam[T] stands for dL/d(final h)
//     mu[t-1]  = lam[t] + conj(A) mu[t]            mu[T-1] = 0
//     dK       = sum_t lam[t] x[t]
//     dE       = conj(K) sum_t mu[t] x[t] + mu[-1] conj(h[-1])
//     dx[t]    = Re(sum_j conj(K_j) lam_j[t]) + D dI[t]
// One step back, from lam[t] and mu[t] to those of t - 1; dI_before is dI[t-1]. Returns the hidden compartments' part
// of dx[t]. With dI_before = 0, conj(A) lam[t] is left: dL/dh before the step, and where the steps before it go on
// from.
template <class L, int K>
PMSN_FN L hidden_adjoint_step(const Modes<L, K>& m, HiddenAdjoint<L, K>& a, HiddenSums<L, K>& sums, L x, L dI_before) {
    L dx_real, dx_imag;
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        const L lam_real = a.lam_real[j], lam_imag = a.lam_imag[j], mu_real = a.mu_real[j], mu_imag = a.mu_imag[j];
        dx_real = j ? plus_product(dx_real, m.K_real[j], lam_real) : m.K_real[j] * lam_real;
        dx_imag = j ? plus_product(dx_imag, m.K_imag[j], lam_imag) : m.K_imag[j] * lam_imag;
        sums.lam_real[j] += lam_real * x;
        sums.lam_imag[j] += lam_imag * x;
        sums.mu_real[j] += mu_real * x;
        sums.mu_imag[j] += mu_imag * x;
        a.lam_real[j] += plus_product(plus_product(dI_before, m.E_imag[j], lam_imag), m.E_real[j], lam_real);
        a.lam_imag[j] += minus_product(m.E_real[j] * lam_imag, m.E_imag[j], lam_real);
        a.mu_real[j] += plus_product(plus_product(lam_real, m.E_imag[j], mu_imag), m.E_real[j], mu_real);
        a.mu_imag[j] += plus_product(minus_product(lam_imag, m.E_imag[j], mu_real), m.E_real[j], mu_imag);
    }
    return dx_real + dx_imag;
}

// Time cut into segments: each is first run from rest, and then one element after the other carries over what the
// segments before (for the adjoint: after) add. Numbers, not lanes.

// A^L - 1 in double, by squaring A - 1.
struct Power {
    double real, imag;
    PMSN_FN Power(double E_real, double E_imag, index_t L) : real(0), imag(0) {
        for (; L; L >>= 1) {
            if (L & 1) multiply(E_real, E_imag);
            const double square = E_real * E_real - E_imag * E_imag;
            E_imag = 2 * E_imag + 2 * E_real * E_imag;
            E_real = 2 * E_real + square;
        }
    }
    PMSN_FN void multiply(double E_real, double E_imag) {  // (1 + this) (1 + E) - 1
        const double old = real;
        real += E_real + (old * E_real - imag * E_imag);
        imag += E_imag + (old * E_imag + imag * E_real);
    }
};

// A hidden compartment over segments of equal length: h -> A^L h + what the segment leaves from rest.
template <class R>
struct HiddenCarry {
    R F_real, F_imag, h_real, h_imag;

    PMSN_FN HiddenCarry(R E_real, R E_imag, index_t length, R real, R imag) : h_real(real), h_imag(imag) {
        const Power power(E_real, E_imag, length);
        F_real = (R)power.real, F_imag = (R)power.imag;
    }
    PMSN_FN void step(R& real, R& imag) {  // from the state left from rest to the state
        const R change_real = F_real * h_real - F_imag * h_imag + real;
        const R change_imag = F_real * h_imag + F_imag * h_real + imag;
        real = h_real += change_real;
        imag = h_imag += change_imag;
    }
};

// Its adjoint. Over L steps lam and mu, the lam of later steps, go on as conj(A)^L lam and
// conj(A)^L mu + L conj(A)^(L-1) lam.
template <class R>
struct AdjointPower {
    R F_real, F_imag, slow_real, slow_imag;

    PMSN_FN AdjointPower(R E_real, R E_imag, index_t length) {
        Power power(E_real, E_imag, length - 1);
        slow_real = (R)(length * (1 + power.real)), slow_imag = (R)(length * power.imag);
        power.multiply(E_real, E_imag);
        F_real = (R)power.real, F_imag = (R)power.imag;
    }
};
template <class R>
struct AdjointCarry {
    R lam_real, lam_imag, mu_real, mu_imag;

    PMSN_FN AdjointCarry(R real, R imag) : lam_real(real), lam_imag(imag), mu_real(0), mu_imag(0) {}
    PMSN_FN void step(const AdjointPower<R>& p, R& to_lam_real, R& to_lam_imag, R& to_mu_real, R& to_mu_imag) {
        const R mu_change_real =
            p.F_real * mu_real + p.F_imag * mu_imag + (p.slow_real * lam_real + p.slow_imag * lam_imag) + to_mu_real;
        const R mu_change_imag =
            p.F_real * mu_imag - p.F_imag * mu_real + (p.slow_real * lam_imag - p.slow_imag * lam_real) + to_mu_imag;
        const R lam_change_real = p.F_real * lam_real + p.F_imag * lam_imag + to_lam_real;
        const R lam_change_imag = p.F_real * lam_imag - p.F_imag * lam_real + to_lam_imag;
        to_lam_real = lam_real += lam_change_real;
        to_lam_imag = lam_imag += lam_change_imag;
        to_mu_real = mu_real += mu_change_real;
        to_mu_imag = mu_imag += mu_change_imag;
    }
};

enum Reset { RESET_MODULO, RESET_CUMULATIVE, RESET_MEMORYLESS, RESET_SERIAL };

// What is sent out of u: spikes where u >= theta, where u > theta (STRICT), their number (BURST), or u itself
// (MEMBRANE).
enum Fire { FIRE_SPIKE, FIRE_STRICT, FIRE_BURST, FIRE_MEMBRANE };

template <int FIRE, class L>
PMSN_FN L fire(L u, real_of<L> theta) {
    const L one = splat<L>(1), threshold = splat<L>(theta);
    if (FIRE == FIRE_SPIKE) return u >= threshold ? one : L{};
    if (FIRE == FIRE_STRICT) return u > threshold ? one : L{};
    if (FIRE == FIRE_BURST) {
        const L number = u / threshold;
        return number > L{} ? floor_nonnegative(number) : L{};
    }
    return u;
}

// d out / d u of FIRE_BURST: the surrogate's, around the last multiple of theta that u has passed (the first, before
// it). None below zero, nor at infinity.
template <int KIND, class L>
PMSN_FN L burst_slope(L u, real_of<L> theta, const SurrogateParameters<real_of<L>>& parameters) {
    const L one = splat<L>(1), number = fire<FIRE_BURST>(u, theta);
    const L x = u - theta * (number > one ? number : one);
    const L slope = u > L{} ? surrogate_derivative<KIND>(x, parameters) : L{};
    return x == x ? slope : u == u ? L{} : u;
}

template <class R>
struct Threshold {
    static constexpr bool is_one = false;
    R theta, inverse, below, most;  // below: the largest number under theta; most: see modulo
    PMSN_FN explicit Threshold(R value)
        : theta(value),
          inverse(1 / value),
          below(from_bits<R>(to_bits<R>(value) - 1)),
          most(value * format<R>::integers_from) {}
};
// A threshold of 1, known when the loop is compiled: there the rest is one instruction, where the fraction is.
template <class R>
struct UnitThreshold : Threshold<R> {
    static constexpr bool is_one = true;
    PMSN_FN UnitThreshold() : Threshold<R>(1) {}
};

// drive modulo theta, in [0, theta), for a drive that is +0, positive or NaN (which stays NaN); exact where the
// compiler fuses the multiplication and subtraction. A drive of so many thetas that their number has no fraction leaves
// nothing.
template <class L>
PMSN_FN L modulo(L drive, const Threshold<real_of<L>>& threshold) {
    const L few = smaller(splat<L>(threshold.most), drive);
    const L rest = few - nearest_nonnegative(few * threshold.inverse) * threshold.theta;  // within half a theta of zero
    // a rest just below zero can be rounded up to theta
    return smaller(splat<L>(threshold.below), least_nonnegative(rest, rest + threshold.theta));
}
// The same for any number; an infinite one becomes NaN.
template <class L>
PMSN_FN L modulo_of_any(L x, const Threshold<real_of<L>>& threshold) {
    const L rest = modulo(absolute(finite_or_nan(x)), threshold);
    const L complement = smaller(splat<L>(threshold.below), threshold.theta - rest);
    return x < L{} && rest > L{} ? complement : rest;
}

// What the last membrane adds to the next: all of it, or nothing, but NaN stays.
template <int RESET, class L>
PMSN_FN L membrane_before(L v) {
    return RESET == RESET_MEMORYLESS ? v * real_of<L>(0) : v;
}

// Charge by the current, fire, reset. v is updated; u is the membrane before reset, out what is sent; the current
// becomes what has been charged. One that is not finite becomes NaN, and so does v, for good: NaN fires nothing.
template <int RESET, int FIRE, class L, class Threshold>
PMSN_FN void membrane_step(L& current, L& v, L& u, L& out, const Threshold& threshold) {
    const real_of<L> theta = threshold.theta;
    const L drive = current = RESET == RESET_MODULO ? positive_part_or_nan(current) : finite_or_nan(current);
    u = membrane_before<RESET>(v) + drive;
    out = fire<FIRE>(u, theta);
    if (RESET == RESET_CUMULATIVE || RESET == RESET_MEMORYLESS) v = u;
    if (RESET == RESET_SERIAL) v = u - out * theta;
    if (RESET == RESET_MODULO) {
        // with the drive reduced first, few operations depend on the last v: it is below theta, and so is the new one
        const L charged = v + (Threshold::is_one ? drive - floor_nonnegative(drive) : modulo(drive, threshold));
        v = least_nonnegative(charged, charged - theta);
    }
}

// dL/du[t] from dL/dout[t], slope = dout/du, and the membrane's adjoint, updated: dL/dv[t] before, dL/dv[t-1] after.
// RESET_MODULO passes nothing through v. It is dI[t] too, where the current is not clamped.
template <int RESET, class L>
PMSN_FN L membrane_adjoint_step(L slope, L grad_out, L& grad_v, real_of<L> theta) {
    if (RESET == RESET_MODULO) return grad_out * slope;
    const L grad_u = grad_v + (RESET == RESET_SERIAL ? grad_out - grad_v * theta : grad_out) * slope;
    grad_v = RESET == RESET_MEMORYLESS ? L{} : grad_u;
    return grad_u;
}

}  // namespace PMSN_NAMESPACE
