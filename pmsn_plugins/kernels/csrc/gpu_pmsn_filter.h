// The filters of pmsn_filter.h on CUDA: all registers are taken, so nothing is kept of forward for backward, and the
// sign is a factor.
#pragma once
#include "pmsn_filter.h"

namespace PMSN_NAMESPACE {

template <class L, int K>
struct FiltersOf<L, K, SIGN_FACTORS> {
    L alpha[K], rho[K], K_real[K], gamma[K], s[K];

    PMSN_FN L times_s(int j, L x) const { return s[j] * x; }
};

// Back, with nothing kept of forward but its input. The adjoint of a filter is the filter itself, run backwards over
// dI: (w, d) of that give dL/d(change) = K_real d - gamma w, which is the filter's part of dx[t], and the gradients of
// K_real and gamma, the sums of x d and of -x w. Those of rho and alpha are the sums of x d and of -x w of a second run
// of the filter, over dL/d(change), one step behind.
template <class L, int K>
struct FilterRuns {
    L w[K], d[K], second_w[K], second_d[K];
};
template <class L, int K>
PMSN_FN L filters_back_step(const FiltersOf<L, K, SIGN_FACTORS>& f, FilterRuns<L, K>& a, Filters<L, K>& sums, L x,
                            L dI) {
    L dx = L{};
    PMSN_UNROLL
    for (int j = 0; j < K; ++j) {
        sums.alpha[j] -= x * a.second_w[j];
        sums.rho[j] += x * a.second_d[j];
        const L change = (dI - f.alpha[j] * a.w[j]) + f.rho[j] * a.d[j];
        const L w = a.w[j] = f.times_s(j, a.w[j]) + a.d[j];
        const L d = a.d[j] = f.times_s(j, a.d[j]) + change;
        const L grad = f.K_real[j] * d - f.gamma[j] * w;
        dx += grad;
        sums.K_real[j] += x * d;
        sums.gamma[j] -= x * w;
        const L second_change = (grad - f.alpha[j] * a.second_w[j]) + f.rho[j] * a.second_d[j];
        a.second_w[j] = f.times_s(j, a.second_w[j]) + a.second_d[j];
        a.second_d[j] = f.times_s(j, a.second_d[j]) + second_change;
    }
    return dx;
}

// Time cut into segments (see pmsn.h), for filters. Without an input a step is (w, d) -> s (1 + Z) (w, d), and the
// steps of a segment are even in number: there is no s left. The last segment's may be odd, but from rest nothing
// enters it on the way back.
struct Matrix {
    double ww, wd, dw, dd;

    PMSN_FN Matrix operator+(const Matrix& b) const { return {ww + b.ww, wd + b.wd, dw + b.dw, dd + b.dd}; }
    PMSN_FN Matrix operator*(const Matrix& b) const {
        return {ww * b.ww + wd * b.dw, ww * b.wd + wd * b.dd, dw * b.ww + dd * b.dw, dw * b.wd + dd * b.dd};
    }
    template <class R>
    PMSN_FN R of_w(R w, R d) const {
        return (R)ww * w + (R)wd * d;
    }
    template <class R>
    PMSN_FN R of_d(R w, R d) const {
        return (R)dw * w + (R)dd * d;
    }
};
// L steps in double, by squaring: 1 + change; and what the second run of the adjoint then has of the first one.
struct FilterPower {
    Matrix change, second;

    template <class R>
    PMSN_FN FilterPower(const FiltersOf<R, 1, SIGN_FACTORS>& f, index_t L) : change{0, 0, 0, 0},
                                                                             second{0, 0, 0, 0} {
        const double s = f.s[0], alpha = f.alpha[0], rho = f.rho[0], gamma = f.gamma[0], K_real = f.K_real[0];
        const Matrix grad = {0, 0, -gamma, K_real};
        const Matrix Z = {0, s, -s * alpha, s * rho};
        FilterPower step = {Z, grad + grad * Z};
        for (; L; L >>= 1) {
            if (L & 1) *this = *this * step;
            step = step * step;
        }
    }
    PMSN_FN FilterPower operator*(const FilterPower& b) const {
        return {change + b.change + change * b.change, second + second * b.change + b.second + change * b.second};
    }

private:
    PMSN_FN FilterPower(Matrix c, Matrix s) : change(c), second(s) {}
};
// Filters over segments of equal length, and back.
template <class R>
struct FilterCarry {
    FilterPower power;
    R w, d;

    PMSN_FN FilterCarry(const FiltersOf<R, 1, SIGN_FACTORS>& f, index_t length) : power(f, length), w(0), d(0) {}
    PMSN_FN void step(R& to_w, R& to_d) {  // from the state left from rest to the state
        const R change_w = power.change.of_w(w, d) + to_w, change_d = power.change.of_d(w, d) + to_d;
        to_w = w += change_w;
        to_d = d += change_d;
    }
};
template <class R>
struct FilterBackCarry {
    R w, d, second_w, second_d;

    PMSN_FN FilterBackCarry() : w(0), d(0), second_w(0), second_d(0) {}
    PMSN_FN void step(const FilterPower& p, R& to_w, R& to_d, R& to_second_w, R& to_second_d) {
        const R change_w = p.change.of_w(w, d) + to_w, change_d = p.change.of_d(w, d) + to_d;
        const R second_change_w = p.change.of_w(second_w, second_d) + p.second.of_w(w, d) + to_second_w,
                second_change_d = p.change.of_d(second_w, second_d) + p.second.of_d(w, d) + to_second_d;
        to_w = w += change_w;
        to_d = d += change_d;
        to_second_w = second_w += second_change_w;
        to_second_d = second_d += second_change_d;
    }
};

}  // namespace PMSN_NAMESPACE
