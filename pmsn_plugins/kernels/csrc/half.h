// Half precision in memory: its bits, widened to 32, to float and back (to nearest, ties to even).
#pragma once
#include "lane.h"

namespace PMSN_NAMESPACE {

template <class L>
PMSN_FN L bfloat16_to_float(bits_of<L> bits) {
    return from_bits<L>(bits << 16);
}

template <class L>
PMSN_FN bits_of<L> float_to_bfloat16(L lane) {
    const bits_of<L> bits = to_bits<L>(lane);
    const bits_of<L> rounded = bits + 0x7fffu + ((bits >> 16) & 1u), nan = bits | 0x400000u;
    return (lane == lane ? rounded : nan) >> 16;
}

template <class L>
PMSN_FN L half_to_float(bits_of<L> half) {
    const bits_of<L> size = (half & 0x7fffu) << 13, exponent = size & (0x7c00u << 13);
    const bits_of<L> normal = size + ((127u - 15u) << 23), special = normal + ((128u - 16u) << 23);  // infinity, NaN
    const bits_of<L> subnormal = to_bits<L>(from_bits<L>(normal + (1u << 23)) - 6.103515625e-05f);   // 2^-14
    bits_of<L> bits = exponent == (0x7c00u << 13) ? special : normal;
    bits = exponent == 0u ? subnormal : bits;
    return from_bits<L>(bits | (half & 0x8000u) << 16);
}

template <class L>
PMSN_FN bits_of<L> float_to_half(L lane) {
    const bits_of<L> bits = to_bits<L>(lane), sign = bits & 0x80000000u, size = bits ^ sign;
    const bits_of<L> zero = size ^ size, infinity = zero + 0x7c00u, nan = zero + 0x7e00u;
    const bits_of<L> subnormal = to_bits<L>(from_bits<L>(size) + 0.5f) - 0x3f000000u;  // the last bit of 0.5 is 2^-24
    const bits_of<L> normal = (size - ((127u - 15u) << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
    bits_of<L> half = size < (113u << 23) ? subnormal : normal;
    half = size >= ((127u + 16u) << 23) ? (size > 0x7f800000u ? nan : infinity) : half;
    return half | sign >> 16;
}

}  // namespace PMSN_NAMESPACE
