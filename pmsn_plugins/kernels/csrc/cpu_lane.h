// CPU lanes (vector extension types of PMSN_LANE_BYTES) and half precision in memory.
#pragma once
#include "args.h"
#include "half.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if !defined(PMSN_LANE_BYTES)
#define PMSN_LANE_BYTES 16
#endif

namespace PMSN_NAMESPACE {

typedef float float_lane __attribute__((vector_size(PMSN_LANE_BYTES)));
typedef double double_lane __attribute__((vector_size(PMSN_LANE_BYTES)));
typedef unsigned unsigned_lane __attribute__((vector_size(PMSN_LANE_BYTES)));
typedef unsigned long long long_lane __attribute__((vector_size(PMSN_LANE_BYTES)));
typedef unsigned short short_lane __attribute__((vector_size(PMSN_LANE_BYTES / 2)));

template <>
struct lane_traits<float_lane> {
    typedef float real;
    typedef unsigned_lane bits;
};
template <>
struct lane_traits<double_lane> {
    typedef double real;
    typedef long_lane bits;
};

template <class R>
struct lane_for;
template <>
struct lane_for<float> {
    typedef float_lane type;
};
template <>
struct lane_for<double> {
    typedef double_lane type;
};
template <class R>
using lane_of = typename lane_for<R>::type;
template <class R>
constexpr index_t lane_width() {
    return PMSN_LANE_BYTES / sizeof(R);
}

// One instruction where compilers see several.
#if PMSN_LANE_BYTES == 64 && defined(__AVX512F__)
#define PMSN_INTRINSIC(name) _mm512_##name
#define PMSN_INTRINSIC_ROUND(type) _mm512_roundscale_##type
#elif PMSN_LANE_BYTES == 32 && defined(__AVX__)
#define PMSN_INTRINSIC(name) _mm256_##name
#define PMSN_INTRINSIC_ROUND(type) _mm256_round_##type
#endif
#if defined(PMSN_INTRINSIC)
template <>
PMSN_FN float_lane positive_part(float_lane x) {
    return PMSN_INTRINSIC(max_ps)(PMSN_INTRINSIC(setzero_ps)(), x);  // x where it is NaN
}
template <>
PMSN_FN double_lane positive_part(double_lane x) {
    return PMSN_INTRINSIC(max_pd)(PMSN_INTRINSIC(setzero_pd)(), x);
}
#if PMSN_LANE_BYTES == 64
// zero and negative numbers to 0, infinity to NaN; others stay
template <>
PMSN_FN float_lane positive_part_or_nan(float_lane x) {
    return _mm512_fixupimm_ps(x, x, _mm512_set1_epi32(0x18331822), 0);
}
template <>
PMSN_FN double_lane positive_part_or_nan(double_lane x) {
    return _mm512_fixupimm_pd(x, x, _mm512_set1_epi64(0x18331822), 0);
}
#endif
template <>
PMSN_FN float_lane smaller(float_lane a, float_lane b) {
    return PMSN_INTRINSIC(min_ps)(a, b);  // b where it is NaN
}
template <>
PMSN_FN double_lane smaller(double_lane a, double_lane b) {
    return PMSN_INTRINSIC(min_pd)(a, b);
}
template <>
PMSN_FN float_lane plus_product(float_lane c, float_lane a, float_lane b) {
    return PMSN_INTRINSIC(fmadd_ps)(a, b, c);
}
template <>
PMSN_FN double_lane plus_product(double_lane c, double_lane a, double_lane b) {
    return PMSN_INTRINSIC(fmadd_pd)(a, b, c);
}
template <>
PMSN_FN float_lane minus_product(float_lane c, float_lane a, float_lane b) {
    return PMSN_INTRINSIC(fnmadd_ps)(a, b, c);
}
template <>
PMSN_FN double_lane minus_product(double_lane c, double_lane a, double_lane b) {
    return PMSN_INTRINSIC(fnmadd_pd)(a, b, c);
}
template <>
PMSN_FN float_lane floor_nonnegative(float_lane x) {
    return PMSN_INTRINSIC(floor_ps)(x);
}
template <>
PMSN_FN double_lane floor_nonnegative(double_lane x) {
    return PMSN_INTRINSIC(floor_pd)(x);
}
template <>
PMSN_FN float_lane nearest_nonnegative(float_lane x) {
    return PMSN_INTRINSIC_ROUND(ps)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <>
PMSN_FN double_lane nearest_nonnegative(double_lane x) {
    return PMSN_INTRINSIC_ROUND(pd)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <>
constexpr bool floor_is_fast<float_lane> = true;
template <>
constexpr bool floor_is_fast<double_lane> = true;
#undef PMSN_INTRINSIC
#undef PMSN_INTRINSIC_ROUND
#endif

// How T lies in memory: load and store one lane of R from any address.
template <class L>
struct Plain {
    typedef real_of<L> element;
    static PMSN_FN L load(const element* from) {
        L lane;
        __builtin_memcpy(&lane, from, sizeof(L));
        return lane;
    }
    static PMSN_FN void store(element* to, L lane) { __builtin_memcpy(to, &lane, sizeof(L)); }
};

struct Bfloat16 {
    typedef unsigned short element;
    static PMSN_FN float_lane load(const element* from) { return bfloat16_to_float<float_lane>(widen(from)); }
    static PMSN_FN void store(element* to, float_lane lane) { narrow(to, float_to_bfloat16(lane)); }

    static PMSN_FN unsigned_lane widen(const element* from) {
        short_lane bits;
        __builtin_memcpy(&bits, from, sizeof(bits));
        return __builtin_convertvector(bits, unsigned_lane);
    }
    static PMSN_FN void narrow(element* to, unsigned_lane bits) {
        const short_lane low = __builtin_convertvector(bits, short_lane);
        __builtin_memcpy(to, &low, sizeof(low));
    }
};

struct Half {
    typedef unsigned short element;
    static PMSN_FN float_lane load(const element* from) { return half_to_float<float_lane>(Bfloat16::widen(from)); }
    static PMSN_FN void store(element* to, float_lane lane) { Bfloat16::narrow(to, float_to_half(lane)); }
};

}  // namespace PMSN_NAMESPACE
