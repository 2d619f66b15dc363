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
#include "cpu_pmsn_short.h"
#include "cpu_pool.h"
#include "cpu_step.h"
#include "cpu_tclif.h"
#include "cpu_tclif_recurrent.h"

namespace PMSN_NAMESPACE {

// Memory of a call, aligned for any lane. A thread keeps one block of it for the next call, unless it is large: fresh
// memory is mapped at its first use, page by page.
class Memory {
    struct Block {
        void* at = nullptr;
        index_t bytes = 0;
        ~Block() { std::free(at); }
    };
    static thread_local Block kept;
    index_t bytes_;

public:
    void* at;

    explicit Memory(index_t bytes) : bytes_(ceil_div(bytes, 64) * 64) {
        if (kept.bytes >= bytes_) {
            bytes_ = kept.bytes;
            at = kept.at;
            kept.at = nullptr, kept.bytes = 0;
        } else {
            at = std::aligned_alloc(64, bytes_);
        }
    }
    Memory(const Memory&) = delete;
    ~Memory() {
        if (at && bytes_ > kept.bytes && bytes_ <= (1 << 23)) {
            std::free(kept.at);
            kept.at = at, kept.bytes = bytes_;
        } else {
            std::free(at);
        }
    }
};
thread_local Memory::Block Memory::kept;

// Run `run(item, scratch)` for all items; false when memory ran out.
template <class Run>
static bool for_items(index_t items, int threads, index_t scratch_bytes, const Run& run) {
    return run_in_parallel(
        threads, items, scratch_bytes,
        [](const void* self, int64_t item, void* scratch) { (*(const Run*)self)(item, scratch); }, &run);
}
template <class Run>
static bool for_items(const Layout& layout, int threads, index_t scratch_bytes, const Run& run) {
    return for_items(item_count(layout), threads, scratch_bytes, run);
}

template <class Kernel, class Args>
static int run_forward(const Args& args, int threads) {
    const Kernel kernel(args);
    return !for_items(args.layout, threads, kernel.forward_scratch(),
                      [&](index_t item, void* scratch) { kernel.forward(item, scratch); });
}
template <class R>
static int run_forward_in_segments(PmsnArgs args, int threads) {
    const Layout& layout = args.layout;
    const index_t checkpoints = args.checkpoints ? 0 : (layout.T - 1) / layout.interval * (1 + 2 * args.k) * layout.M;
    const Memory memory(sizeof(R) * checkpoints);
    if (!args.checkpoints && !(args.checkpoints = memory.at)) return 1;
    const PmsnCpu<R> kernel(args);
    for (int pass = 0; pass < 2; ++pass) {
        const bool membrane = pass == 1;
        if (!for_items(layout, threads, kernel.forward_scratch(),
                       [&](index_t item, void* scratch) { kernel.forward_local(item, scratch, membrane); }))
            return 1;
        membrane ? kernel.carry_membrane() : kernel.carry_hidden();
    }
    return run_forward<PmsnCpu<R>>(args, threads);
}

// Each item leaves its sums in a partial of its own, and they are added at the end.
template <class Kernel, class Args>
static int run_backward(const Args& args, int threads) {
    const Kernel kernel(args);
    const index_t count = kernel.sums();
    const index_t partial_bytes = sizeof(typename Kernel::real) * channel_slots(args.layout) * count;
    const Memory partials(item_count(args.layout) * partial_bytes);
    if (!partials.at || !for_items(args.layout, threads, kernel.backward_scratch(), [&](index_t item, void* scratch) {
            kernel.backward(item, scratch, (char*)partials.at + item * partial_bytes);
        }))
        return 1;
    const index_t C = args.layout.C, some = 256;  // channels
    return !for_items(ceil_div(C, some), threads, sizeof(double) * count * some, [&](index_t part, void* totals) {
        const index_t begin = part * some;
        kernel.reduce(partials.at, (double*)totals, begin, C - begin < some ? C : begin + some);
    });
}
template <class R>
static int run_backward_in_segments(PmsnArgs args, int threads) {
    const Layout& layout = args.layout;
    const Memory memory(sizeof(R) * (segment_count(layout) - 1) * (1 + 4 * args.k) * layout.M);
    if (!(args.carries = memory.at)) return 1;
    const PmsnCpu<R> kernel(args);
    if (!for_items(layout, threads, kernel.backward_scratch(),
                   [&](index_t item, void* scratch) { kernel.backward(item, scratch, nullptr); }))
        return 1;
    kernel.carry_adjoint();
    return run_backward<PmsnCpu<R>>(args, threads);
}

template <class R>
static int forward_as(const PmsnArgs& args, int threads) {
    if (PmsnStepCpu<R>::suits(args)) {
        const PmsnStepCpu<R> step(args);
        return !for_items(args.layout, threads, step.scratch(),
                          [&](index_t item, void* scratch) { step.run(item, scratch); });
    }
    if (PmsnShortCpu<R>::suits_forward(args)) return run_forward<PmsnShortCpu<R>>(args, threads);
    return args.layout.segment < args.layout.T ? run_forward_in_segments<R>(args, threads)
                                               : run_forward<PmsnCpu<R>>(args, threads);
}
template <class R>
static int forward_as(const TclifArgs& args, int threads) {
    return run_forward<TclifCpu<R>>(args, TclifCpu<R>::worth(args, threads));
}
template <class R>
static int forward_as(const TclifRecurrentArgs& args, int threads) {
    const TclifRecurrentCpu<R> kernel(args);
    const Memory shared(kernel.shared_bytes());
    if (!shared.at) return 1;
    kernel.share_rows(shared.at);
    return !for_items(kernel.items, threads, kernel.forward_scratch(),
                      [&](index_t item, void* scratch) { kernel.forward(item, scratch, shared.at); });
}
template <class R>
static int backward_as(const PmsnArgs& args, int threads) {
    if (PmsnShortCpu<R>::suits_backward(args)) return run_backward<PmsnShortCpu<R>>(args, threads);
    return args.layout.segment < args.layout.T ? run_backward_in_segments<R>(args, threads)
                                               : run_backward<PmsnCpu<R>>(args, threads);
}
template <class R>
static int backward_as(const TclifArgs& args, int threads) {
    return run_backward<TclifCpu<R>>(args, TclifCpu<R>::worth(args, threads));
}

template <class R>
static int backward_as(const TclifRecurrentArgs& args, int threads) {
    const TclifRecurrentCpu<R> kernel(args);
    const Memory memory(kernel.items * kernel.partial_bytes() + kernel.shared_bytes());
    if (!memory.at) return 1;
    char *const partials = (char*)memory.at, *const shared = partials + kernel.items * kernel.partial_bytes();
    kernel.share_panels(shared);
    const auto one = [&](index_t item, void* scratch) {
        kernel.backward(item, scratch, shared, partials + item * kernel.partial_bytes());
    };
    if (!for_items(kernel.items, threads, kernel.backward_scratch(), one)) return 1;
    kernel.reduce_vectors(partials);
    return !for_items(kernel.blocks, threads, 64, [&](index_t b, void*) { kernel.reduce_weight(b, partials); });
}

template <class Args>
static int forward(const Args* args, int threads) {
    return args->layout.is_double ? forward_as<double>(*args, threads) : forward_as<float>(*args, threads);
}
template <class Args>
static int backward(const Args* args, int threads) {
    return args->layout.is_double ? backward_as<double>(*args, threads) : backward_as<float>(*args, threads);
}

template <class R>
static int discretize_as(const DiscretizeArgs& args, bool back, int threads) {
    return !for_items(DiscretizeCpu<R>::items(args), threads, 64,
                      [&](index_t item, void*) { DiscretizeCpu<R>::run(args, back, item); });
}
template <bool BACK>
static int discretize(const DiscretizeArgs* args, int threads) {
    return args->is_double ? discretize_as<double>(*args, BACK, threads) : discretize_as<float>(*args, BACK, threads);
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
    PMSN_NAMESPACE::forward<PmsnArgs>,
    PMSN_NAMESPACE::backward<PmsnArgs>,
    PMSN_NAMESPACE::forward<TclifArgs>,
    PMSN_NAMESPACE::backward<TclifArgs>,
    PMSN_NAMESPACE::forward<TclifRecurrentArgs>,
    PMSN_NAMESPACE::backward<TclifRecurrentArgs>,
    PMSN_NAMESPACE::discretize<false>,
    PMSN_NAMESPACE::discretize<true>,
    PMSN_NAMESPACE::surrogate,
};
