// All CPU kernels for one instruction set; compiled once per set, see setup.py.
#if !defined(PMSN_ISA)
#define PMSN_ISA baseline
#endif
#define PMSN_JOIN_(a, b) a##b
#define PMSN_JOIN(a, b) PMSN_JOIN_(a, b)
#define PMSN_NAMESPACE PMSN_JOIN(pmsn_, PMSN_ISA)
#define PMSN_STRING_(a) #a
#define PMSN_STRING(a) PMSN_STRING_(a)

#include <cstdlib>

#include "cpu_discretize.h"
#include "cpu_kernels.h"
#include "cpu_pmsn.h"
#include "cpu_pool.h"
#include "cpu_tclif.h"

namespace PMSN_NAMESPACE {

// A kernel over all items. In backward each item leaves its sums in a partial of its own, and they are added at the
// end.
template <class Kernel>
struct Launch {
    const Kernel kernel;
    index_t partial_bytes;
    char* partials;

    static void forward(const void* self, int64_t index, void* scratch) {
        ((const Launch*)self)->kernel.forward(index, scratch);
    }
    static void backward(const void* self, int64_t index, void* scratch) {
        const Launch& launch = *(const Launch*)self;
        launch.kernel.backward(index, scratch, launch.partials + index * launch.partial_bytes);
    }
};

template <class Kernel, class Args>
static int run_forward(const Args& args, int threads) {
    const Launch<Kernel> launch = {Kernel(args), 0, nullptr};
    return !run_in_parallel(threads, item_count(args.layout), launch.kernel.forward_scratch(), launch.forward, &launch);
}

template <class Kernel, class Args>
static int run_backward(const Args& args, int threads) {
    const Kernel kernel(args);
    const index_t items = item_count(args.layout), count = kernel.sums();
    const index_t partial_bytes = sizeof(typename Kernel::real) * channel_slots(args.layout) * count;
    char* partials = (char*)std::malloc(items * partial_bytes);
    double* totals = (double*)std::malloc(sizeof(double) * args.layout.C * count);
    const Launch<Kernel> launch = {kernel, partial_bytes, partials};
    const bool done =
        partials && totals && run_in_parallel(threads, items, kernel.backward_scratch(), launch.backward, &launch);
    if (done) kernel.reduce(partials, totals);
    std::free(partials);
    std::free(totals);
    return !done;
}

template <template <class> class Kernel, class Args>
static int forward(const Args* args, int threads) {
    return args->layout.is_double ? run_forward<Kernel<double>>(*args, threads)
                                  : run_forward<Kernel<float>>(*args, threads);
}
template <template <class> class Kernel, class Args>
static int backward(const Args* args, int threads) {
    return args->layout.is_double ? run_backward<Kernel<double>>(*args, threads)
                                  : run_backward<Kernel<float>>(*args, threads);
}

static void surrogate(index_t kind, const double* parameters, index_t count, double* x) {
    for (; count > 0; count -= lane_width<double>(), x += lane_width<double>()) {
        double_lane lane =
            load_part<double_lane, Plain<double_lane>>(x, count < lane_width<double>() ? count : lane_width<double>());
        surrogate_pass(kind, &lane, 1, 0.0, {parameters[0], parameters[1], parameters[2]});
        store_part<double_lane, Plain<double_lane>>(x, lane,
                                                    count < lane_width<double>() ? count : lane_width<double>());
    }
}

}  // namespace PMSN_NAMESPACE

extern const Kernels PMSN_JOIN(kernels_, PMSN_ISA);
const Kernels PMSN_JOIN(kernels_, PMSN_ISA) = {
    PMSN_STRING(PMSN_ISA),
    PMSN_NAMESPACE::forward<PMSN_NAMESPACE::PmsnCpu>,
    PMSN_NAMESPACE::backward<PMSN_NAMESPACE::PmsnCpu>,
    PMSN_NAMESPACE::forward<PMSN_NAMESPACE::TclifCpu>,
    PMSN_NAMESPACE::backward<PMSN_NAMESPACE::TclifCpu>,
    PMSN_NAMESPACE::discretize,
    PMSN_NAMESPACE::discretize_backward,
    PMSN_NAMESPACE::surrogate,
};
