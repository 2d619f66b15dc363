// The functions that Python calls: picks the widest instruction set this processor has.
#include <cstdint>
#include <cstring>

#include <sys/mman.h>

#include "cpu_kernels.h"

extern const Kernels kernels_baseline;
#if defined(PMSN_CHOOSE_AVX)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

const Kernels* const* available() {
    static const Kernels* sets[4] = {};
    int count = 0;
#if defined(PMSN_CHOOSE_AVX)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        sets[count++] = &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets[count++] = &kernels_avx2;
#endif
    sets[count++] = &kernels_baseline;
    return sets;
}

const Kernels* kernels = *available();

// The set for the backward of a recurrent layer. Rows of 40 or 200 float32 are whole lanes of 32 bytes, read and
// written where they are; of 64 bytes the last lane is half empty, and every row is brought to lanes and back: a
// quarter slower at a width of 40. (Forward has fewer rows to bring, and loses more by more lanes.)
const Kernels* for_rows_of([[maybe_unused]] const Layout& layout) {
#if defined(PMSN_CHOOSE_AVX)
    const int64_t bytes = layout.C * (layout.is_double ? 8 : 4);
    if (kernels == &kernels_avx512 && bytes % 64 && bytes % 32 == 0) return &kernels_avx2;
#endif
    return kernels;
}

// Fresh memory is mapped at its first use, page by page: for a large output that takes longer than computing it.
void use_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, begin = (uintptr_t)memory;
    const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
    if (memory && first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);  // only a hint
#endif
}

int64_t storage_bytes(int64_t storage) { return storage == STORAGE_DOUBLE ? 8 : storage == STORAGE_FLOAT ? 4 : 2; }

int64_t real_bytes(const Layout& layout) { return layout.M * (layout.is_double ? 8 : 4); }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// What Python checks before it calls anything else: the stamp of the sources (see sources.py), and the size of an
// argument struct, 0 for an unknown one.
EXPORT const char* pmsn_sources() { return PMSN_SOURCES; }
EXPORT long long pmsn_argument_bytes(const char* name) {
    if (std::strcmp(name, "PmsnArgs") == 0) return sizeof(PmsnArgs);
    if (std::strcmp(name, "TclifArgs") == 0) return sizeof(TclifArgs);
    if (std::strcmp(name, "TclifRecurrentArgs") == 0) return sizeof(TclifRecurrentArgs);
    return std::strcmp(name, "DiscretizeArgs") == 0 ? sizeof(DiscretizeArgs) : 0;
}

EXPORT const char* pmsn_instruction_set() { return kernels->instruction_set; }

// Switch to a named set; 0 if this processor has it.
EXPORT int pmsn_use_instruction_set(const char* name) {
    for (const Kernels* const* set = available(); *set; ++set)
        if (std::strcmp((*set)->instruction_set, name) == 0) {
            kernels = *set;
            return 0;
        }
    return 1;
}

EXPORT int pmsn_forward(const PmsnArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->out, layout.T * layout.M * storage_bytes(args->out_storage));
    use_huge_pages(args->v_after, real_bytes(layout));
    use_huge_pages(args->h_real_after, args->k * real_bytes(layout));
    use_huge_pages(args->h_imag_after, args->k * real_bytes(layout));
    use_huge_pages(args->v_seq, layout.T * real_bytes(layout));
    use_huge_pages(args->checkpoints, (layout.T - 1) / layout.interval * (1 + 2 * args->k) * real_bytes(layout));
    return kernels->pmsn_forward(args, threads);
}
EXPORT int pmsn_backward(const PmsnArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->grad_x, layout.T * layout.M * storage_bytes(args->x_storage));
    use_huge_pages(args->grad_v, real_bytes(layout));
    use_huge_pages(args->grad_h_real, args->k * real_bytes(layout));
    use_huge_pages(args->grad_h_imag, args->k * real_bytes(layout));
    return kernels->pmsn_backward(args, threads);
}
EXPORT int tclif_forward(const TclifArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->out, layout.T * layout.M * storage_bytes(args->x_storage));
    use_huge_pages(args->v_after, real_bytes(layout));
    use_huge_pages(args->d_after, real_bytes(layout));
    use_huge_pages(args->v_seq, layout.T * real_bytes(layout));
    use_huge_pages(args->checkpoints, (layout.T - 1) / layout.interval * 2 * real_bytes(layout));
    return kernels->tclif_forward(args, threads);
}
EXPORT int tclif_backward(const TclifArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->grad_x, layout.T * layout.M * storage_bytes(args->x_storage));
    use_huge_pages(args->grad_v, real_bytes(layout));
    use_huge_pages(args->grad_d, real_bytes(layout));
    return kernels->tclif_backward(args, threads);
}
EXPORT int tclif_recurrent_forward(const TclifRecurrentArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->out, layout.T * layout.M * storage_bytes(args->x_storage));
    use_huge_pages(args->v_seq, layout.T * real_bytes(layout));
    use_huge_pages(args->checkpoints, layout.T * real_bytes(layout));  // nearly all of them
    return kernels->tclif_recurrent_forward(args, threads);
}
EXPORT int tclif_recurrent_backward(const TclifRecurrentArgs* args, int threads) {
    const Layout& layout = args->layout;
    use_huge_pages(args->grad_x, layout.T * layout.M * storage_bytes(args->x_storage));
    return for_rows_of(layout)->tclif_recurrent_backward(args, threads);
}
EXPORT int discretize_forward(const DiscretizeArgs* args, int threads) { return kernels->discretize(args, threads); }
EXPORT int discretize_backward(const DiscretizeArgs* args, int threads) {
    return kernels->discretize_backward(args, threads);
}
EXPORT void pmsn_surrogate(long long kind, const double* parameters, long long count, double* x) {
    kernels->surrogate(kind, parameters, count, x);
}
