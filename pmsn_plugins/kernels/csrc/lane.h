// What the neurons' sources need from a compiler, and nothing else: no system header is included here.
//
// A "lane" L is either one real number (CUDA: one thread, one element) or a vector of them (CPU: a GCC/Clang vector
// extension type, several neighbouring elements). The same expressions work for both; `mask ? a : b` selects per
// element.
#pragma once

#if defined(__CUDACC__)
#define PMSN_FN __device__ __forceinline__
#define PMSN_UNROLL _Pragma("unroll")
#else
#define PMSN_FN inline __attribute__((always_inline))
#if defined(__clang__)
#define PMSN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PMSN_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

// The CPU build compiles these headers once per instruction set; separate names keep the linker from mixing them up.
#if !defined(PMSN_NAMESPACE)
#define PMSN_NAMESPACE pmsn
#endif

namespace PMSN_NAMESPACE {

typedef long long index_t;  // element offsets pass 2^31 on large layers

template <class L>
struct lane_traits;
template <>
struct lane_traits<float> {
    typedef float real;
    typedef unsigned bits;
};
template <>
struct lane_traits<double> {
    typedef double real;
    typedef unsigned long long bits;
};
template <class L>
using real_of = typename lane_traits<L>::real;
template <class L>
using bits_of = typename lane_traits<L>::bits;

// x - 0 is x for every x, so this costs one broadcast
template <class L>
PMSN_FN L splat(real_of<L> x) {
    return x - L{};
}
template <class L>
PMSN_FN L positive_part(L x) {
    return x < L{} ? L{} : x;
}  // NaN stays NaN
template <class L>
PMSN_FN L smaller(L a, L b) {
    return a < b ? a : b;
}  // b where it is NaN

// c + a b and c - a b, rounded once where there is an instruction for it. Of several products that are summed up, a
// compiler fuses some, and not the same ones everywhere.
template <class L>
PMSN_FN L plus_product(L c, L a, L b) {
    return c + a * b;
}
template <class L>
PMSN_FN L minus_product(L c, L a, L b) {
    return c - a * b;
}

// x, but NaN where it is infinite, and 0 where it is -0. One instruction where multiplication and subtraction are
// fused.
template <class L>
PMSN_FN L finite_or_nan(L x) {
    return x - x * real_of<L>(0);
}
template <class L>
PMSN_FN L positive_part_or_nan(L x) {
    return positive_part(finite_or_nan(x));
}

template <class R>
struct format;  // of a floating-point type
template <>
struct format<float> {
    static constexpr int mantissa_bits = 23;
    static constexpr float integers_from = 8388608.0f;  // 2^23: every larger number is an integer
    static constexpr float exp_low = -87.0f, exp_high = 88.0f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr int exp_terms = 7;
};
template <>
struct format<double> {
    static constexpr int mantissa_bits = 52;
    static constexpr double integers_from = 4503599627370496.0;  // 2^52
    static constexpr double exp_low = -708.0, exp_high = 709.0;
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    static constexpr int exp_terms = 13;
};

// Adding and subtracting 1.5 * 2^mantissa_bits rounds to the nearest integer, for |x| < 2^(mantissa_bits - 1).
template <class L>
PMSN_FN L nearest(L x) {
    const real_of<L> magic = real_of<L>(1.5) * format<real_of<L>>::integers_from;
    return (x + magic) - magic;
}

template <class L>
PMSN_FN L floor_nonnegative(L x) {
    const real_of<L> magic = format<real_of<L>>::integers_from, one = 1;
    L near = (x + magic) - magic;
    near = near > x ? near - one : near;
    return x < splat<L>(magic) ? near : x;
}
// To the nearest integer, for 0 <= x <= 2^mantissa_bits.
template <class L>
PMSN_FN L nearest_nonnegative(L x) {
    const real_of<L> magic = format<real_of<L>>::integers_from;
    return (x + magic) - magic;
}
template <class L>
constexpr bool floor_is_fast = false;  // one instruction

template <class L>
PMSN_FN L from_bits(bits_of<L> bits) {
    union {
        bits_of<L> bits;
        L value;
    } both;
    both.bits = bits;
    return both.value;
}
template <class L>
PMSN_FN bits_of<L> to_bits(L value) {
    union {
        L value;
        bits_of<L> bits;
    } both;
    both.value = value;
    return both.bits;
}

template <class L>
PMSN_FN L absolute(L x) {
    return from_bits<L>(to_bits<L>(x) & (~bits_of<real_of<L>>(0) >> 1));
}

// The smallest number above a positive one.
template <class R>
PMSN_FN R next_number(R x) {
    return from_bits<R>(to_bits<R>(x) + 1);
}

// The smaller of two numbers, where every negative one counts as larger than all others: one integer instruction. NaN
// stays NaN only if both are.
template <class L>
PMSN_FN L least_nonnegative(L a, L b) {
    const bits_of<L> a_bits = to_bits<L>(a), b_bits = to_bits<L>(b);
    return from_bits<L>(a_bits < b_bits ? a_bits : b_bits);
}

// 2^n and e^r - 1 with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to the range of normal numbers.
template <class L>
PMSN_FN void exp_parts(L x, L& power, L& remainder) {
    typedef real_of<L> R;
    typedef format<R> F;
    x = x < splat<L>(F::exp_low) ? splat<L>(F::exp_low) : x;
    x = x > splat<L>(F::exp_high) ? splat<L>(F::exp_high) : x;
    const R magic = R(1.5) * F::integers_from, log2_e = R(1.4426950408889634);
    const L shifted = x * log2_e + magic;
    const L n = shifted - magic;
    const L r = (x - n * F::ln2_high) - n * F::ln2_low;
    const bits_of<R> one_bits = to_bits<R>(R(1));
    power = from_bits<L>(((to_bits<L>(shifted) - to_bits<R>(magic)) << F::mantissa_bits) + one_bits);
    L series = splat<L>(R(1) / R(F::exp_terms));
    PMSN_UNROLL
    for (int i = F::exp_terms - 1; i > 0; --i) series = (R(1) + r * series) * (R(1) / R(i));
    remainder = r * series;
}
template <class L>
PMSN_FN L exponential(L x) {
    L power, remainder;
    exp_parts(x, power, remainder);
    return power + power * remainder;
}

}  // namespace PMSN_NAMESPACE
