// CUDA: one instruction where compilers see several, from sm_80 on.
#pragma once
#include "lane.h"

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
namespace PMSN_NAMESPACE {

template <>
PMSN_FN float smaller(float a, float b) {  // NaN where one is: so of two numbers never the first
    float least;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
    return least;
}
template <>
PMSN_FN float positive_part(float x) {
    float most;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(most) : "f"(x));
    return most;
}

}  // namespace PMSN_NAMESPACE
#endif
