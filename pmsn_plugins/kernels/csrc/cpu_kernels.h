// The kernels of one instruction set. Those with threads return 0, or 1 when memory ran out.
#pragma once
#include "args.h"

struct Kernels {
    const char* instruction_set;
    int (*pmsn_forward)(const PmsnArgs*, int threads);
    int (*pmsn_backward)(const PmsnArgs*, int threads);
    int (*tclif_forward)(const TclifArgs*, int threads);
    int (*tclif_backward)(const TclifArgs*, int threads);
    int (*tclif_recurrent_forward)(const TclifRecurrentArgs*, int threads);
    int (*tclif_recurrent_backward)(const TclifRecurrentArgs*, int threads);
    int (*discretize)(const DiscretizeArgs*, int threads);
    int (*discretize_backward)(const DiscretizeArgs*, int threads);
    void (*surrogate)(long long kind, const double* parameters, long long count, double* x);  // x becomes g(x)
};
