// TC-LIF, one time step forward and one back, for one lane of elements; see pmsn_plugins/functional/tclif.py.
#pragma once
#include "surrogate.h"

namespace PMSN_NAMESPACE {

template <class L>
struct TclifCoefficients {
    L b1, b2;
    real_of<L> a1, a2, gamma, theta;
    real_of<L> fire_at;  // the smallest soma that fires: theta, or the next number where only a larger one does
};

template <class L>
PMSN_FN L tclif_fire(L soma, const TclifCoefficients<L>& c) {
    return soma >= splat<L>(c.fire_at) ? splat<L>(1) : L{};
}
// What a reset takes away: `amount` where the soma fires.
template <class L>
PMSN_FN L tclif_reset(L soma, const TclifCoefficients<L>& c, real_of<L> amount) {
    return soma >= splat<L>(c.fire_at) ? splat<L>(amount) : L{};
}

// The soma before its reset; with PRE_RESET it depends on the soma before it whether that is taken away now. A function
// of its own, so that those who compute it again get the same bits; LEAK false: both leaks are 1, which gives them too.
template <bool PRE_RESET, bool LEAK = true, class L>
PMSN_FN L tclif_soma(const TclifCoefficients<L>& c, L v, L u_dendrite) {
    const L soma = plus_product(LEAK ? v * c.a2 : v, c.b2, u_dendrite);
    return PRE_RESET ? soma - tclif_reset(v, c, c.theta) : soma;
}

// One step. v and d are the soma and the dendrite of the state (after the resets, or before them with PRE_RESET);
// the charged potentials u_soma and u_dendrite are what the adjoint needs. An input that is not finite makes them NaN,
// for good: NaN fires nothing. The sums are in the order in which a step waits least for the one before: v comes last.
template <bool PRE_RESET, bool LEAK = true, class L>
PMSN_FN L tclif_step(const TclifCoefficients<L>& c, L x, L& v, L& d, L& u_soma, L& u_dendrite) {
    x = finite_or_nan(x);
    u_dendrite = plus_product(LEAK ? plus_product(x, d, splat<L>(c.a1)) : d + x, c.b1, v);
    if (PRE_RESET) u_dendrite -= tclif_reset(v, c, c.gamma);
    u_soma = tclif_soma<PRE_RESET, LEAK>(c, v, u_dendrite);
    d = PRE_RESET ? u_dendrite : u_dendrite - tclif_reset(u_soma, c, c.gamma);
    v = PRE_RESET ? u_soma : u_soma - tclif_reset(u_soma, c, c.theta);
    return tclif_fire(u_soma, c);
}

// The adjoint of the state: dL/dv, dL/dd and, with PRE_RESET, what the next step's reset sends back to this step's
// spike (it is decided by the potentials of the state).
template <class L>
struct TclifAdjoint {
    L v, d, spike;
};
template <class L>
struct TclifSums {  // over time: dL/db1, dL/db2
    L b1, b2;
};

// One step back; returns dx[t]. slope is dS/du_soma, v_before the soma of the state before the step.
template <bool PRE_RESET, bool DETACH, bool LEAK = true, class L>
PMSN_FN L tclif_adjoint_step(const TclifCoefficients<L>& c, TclifAdjoint<L>& a, TclifSums<L>& sums, L grad_spike,
                             L slope, L v_before, L u_dendrite) {
    if (PRE_RESET) grad_spike += a.spike;
    else if (!DETACH) grad_spike -= a.d * c.gamma + a.v * c.theta;
    const L grad_soma = a.v + grad_spike * slope;
    const L grad_dendrite = a.d + c.b2 * grad_soma;
    sums.b1 += grad_dendrite * v_before;
    sums.b2 += grad_soma * u_dendrite;
    if (PRE_RESET && !DETACH) a.spike = -(grad_dendrite * c.gamma + grad_soma * c.theta);
    a.v = plus_product(LEAK ? grad_soma * c.a2 : grad_soma, c.b1, grad_dendrite);
    a.d = LEAK ? grad_dendrite * c.a1 : grad_dendrite;
    return grad_dendrite;
}

}  // namespace PMSN_NAMESPACE
