// What a kernel is called with: mirrored field by field in pmsn_plugins/kernels/arguments.py. Plain C, for all
// compilers.
#pragma once

enum Storage { STORAGE_FLOAT, STORAGE_DOUBLE, STORAGE_HALF, STORAGE_BFLOAT16 };

// How a sequence of T steps of M contiguous elements [N, C, S] is cut into work items. Rows of P positions (P is C * S,
// or several samples of it when that fills the lanes better) are cut into strips of `strip` positions; an item is one
// strip of one group of rows, for one segment of time. Unless time is cut, the number of threads plays no part, so sums
// over items do not depend on it.
struct Layout {
    long long T, M, C, S, P, strip, groups;
    long long segment;    // steps of an item, a multiple of interval; T unless time is cut
    long long interval;   // steps from one checkpoint of the state to the next
    long long cuttable;   // CPU: whether time is cut when there are threads enough
    long long is_double;  // arithmetic: float or double
};

struct PmsnArgs {
    Layout layout;
    long long k, x_storage, out_storage, reset, fire, surrogate;
    double theta, surrogate_a, surrogate_b, surrogate_c;
    const void *x, *E_real, *E_imag, *K_real, *K_imag, *D;
    const void *v, *h_real, *h_imag;  // state before; null: zero
    const void* theta_tensor;         // overrides theta when not null
    const void* slopes;               // [T, M], for SURROGATE_GIVEN: dS/du
    // forward; all but out may be null
    void *out, *v_after, *h_real_after, *h_imag_after, *v_seq;
    void* checkpoints;  // [number, 1 + 2k, M]: v, h_real, h_imag
    // backward; a null gradient is zero
    const void *grad_out, *grad_v_after, *grad_h_real_after, *grad_h_imag_after, *grad_v_seq;
    void *grad_x, *grad_E_real, *grad_E_imag, *grad_K_real, *grad_K_imag, *grad_D;
    void *grad_v, *grad_h_real, *grad_h_imag;  // null: not wanted
    void *partials, *carries;                  // CUDA: sums of each item; adjoint between segments [number, 1 + 4k, M]
};

struct TclifArgs {
    Layout layout;
    long long x_storage, pre_reset, detach, strict, surrogate;
    double theta, surrogate_a, surrogate_b, surrogate_c, gamma, a1, a2;
    const void *x, *b1, *b2;
    const void *v, *d;
    const void* theta_tensor;
    const void* slopes;  // [1 + T, M], for SURROGATE_GIVEN: first that of the initial soma
    void *out, *v_after, *d_after, *v_seq;
    void* checkpoints;  // [number, 2, M]: v, d
    const void *grad_out, *grad_v_after, *grad_d_after, *grad_v_seq;
    void *grad_x, *grad_b1, *grad_b2, *grad_v, *grad_d;
    void* partials;
};

// S is 1, and of how work is cut only `interval` is read: an item is some of the samples, whatever P and strip are.
struct TclifRecurrentArgs {
    Layout layout;
    long long x_storage, pre_reset, detach, strict, surrogate;
    double theta, surrogate_a, surrogate_b, surrogate_c, gamma, a1, a2;
    const void *x, *weight, *bias, *b1, *b2;  // weight [C, C], the others [C]; backward does not read x
    const void *v, *d, *s;                    // s: the last spikes
    const void* theta_tensor;
    const void* slopes;  // [1 + T, M], for SURROGATE_GIVEN: first that of the initial soma
    void *out, *v_after, *d_after, *s_after, *v_seq;
    // [T + (T - 1) / interval, N, pitch], pitch the next multiple of 16 from C: the dendrites of all steps, and the
    // soma of every interval's last step, both before their reset
    void* checkpoints;
    const void *grad_out, *grad_v_after, *grad_d_after, *grad_s_after, *grad_v_seq;
    void *grad_x, *grad_weight, *grad_bias, *grad_b1, *grad_b2, *grad_v, *grad_d, *grad_s;
};

// Parameters [C, k] (log_dt: [C]) to coefficients, and back.
struct DiscretizeArgs {
    long long C, k, is_double;
    const void *log_dt, *log_decay, *freq, *B_real, *B_imag, *R_real, *R_imag;
    void *E_real, *E_imag, *K_real, *K_imag;
    const void *grad_E_real, *grad_E_imag, *grad_K_real, *grad_K_imag;
    void *grad_log_dt, *grad_log_decay, *grad_freq, *grad_B_real, *grad_B_imag, *grad_R_real, *grad_R_imag;
};
