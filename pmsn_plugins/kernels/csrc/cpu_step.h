// PMSN, one time step from a state to a state, which may be the same memory. Its work is to move 2 (1 + 2k) numbers per
// element, so they go through registers only: the tiles of cpu_pmsn.h would carry them twice more through the cache.
// The arithmetic, and so its rounding, is that of the passes.
#pragma once
#include "cpu_pmsn.h"

namespace PMSN_NAMESPACE {

// A lane of memory, or the part of it that there is.
template <class Memory, class L>
PMSN_FN L load_lane_of(const void* memory, index_t at, index_t valid) {
    const auto* from = (const typename Memory::element*)memory + at;
    return valid >= lane_width<real_of<L>>() ? Memory::load(from) : load_part<L, Memory>(from, valid);
}
template <class Memory, class L>
PMSN_FN void store_lane_of(void* memory, index_t at, index_t valid, L lane) {
    auto* to = (typename Memory::element*)memory + at;
    valid >= lane_width<real_of<L>>() ? Memory::store(to, lane) : store_part<L, Memory>(to, lane, valid);
}

template <class R>
struct PmsnStepCpu {
    typedef lane_of<R> L;
    const PmsnCpu<R> kernel;
    const PmsnArgs& args;
    const Layout& layout;
    const index_t k;
    const Threshold<R> threshold;
    const R fire_at;
    const typename MembranePass<L>::function membrane;

    explicit PmsnStepCpu(const PmsnArgs& a)
        : kernel(a),
          args(a),
          layout(a.layout),
          k(a.k),
          threshold(kernel.theta),
          fire_at(args.fire == FIRE_STRICT ? next_number(kernel.theta) : kernel.theta),
          membrane(MembranePass<L>::select(args.reset, args.fire, KEEP_OUT)) {}

    static bool suits(const PmsnArgs& args) { return args.layout.T == 1 && args.h_real && args.h_real_after; }

    index_t scratch() const { return sizeof(L) * kernel.blocks * coefficient_planes(k); }

    void run(index_t index, void* memory) const {
        Scratch<L> scratch = {(L*)memory, kernel.blocks};
        const Tile<L> parameters = scratch.tile(1, coefficient_planes(k));
        const WorkItem item(layout, index);
        const index_t width = lane_width<R>();
        kernel.gather(parameters, item);
        for (index_t row = item.row; row < item.end_row; ++row) {
            index_t at = row * layout.P + item.position;
            const index_t end = layout.M - at < item.width ? layout.M : at + item.width;
            const L* here = parameters.lanes;
            for (; at < end; at += width, here += parameters.pitch) {
                const index_t valid = end - at;
                L current = hidden(here, at, valid, load_x(at, valid)), out;
                L v = load_lane_of<Plain<L>, L>(args.v, at, valid);
                if (args.reset == RESET_MODULO) v = modulo_of_any(v, threshold);
                if (args.reset == RESET_MODULO && (args.fire == FIRE_SPIKE || args.fire == FIRE_STRICT)) {
                    L u, unused;
                    membrane_step<RESET_MODULO, FIRE_MEMBRANE>(current, v, u, unused, threshold);
                    out = fire<FIRE_SPIKE>(u, fire_at);
                } else {
                    L state[1] = {v};
                    membrane(state, {k, 1, 1}, &current, &out, nullptr, kernel.theta);
                    v = state[0];
                }
                store_out(at, valid, out);
                store_lane_of<Plain<L>>(args.v_after, at, valid, v);
                if (args.v_seq) store_lane_of<Plain<L>>(args.v_seq, at, valid, v);
            }
        }
    }

private:
    // The current of one lane; moves its hidden compartments on, in the groups of hidden_pass.
    PMSN_FN L hidden(const L* parameters, index_t at, index_t valid, L x) const {
        if (k <= FORWARD_GROUP) return last_group<true>(parameters, 0, at, valid, x, L{});
        L current = group<FORWARD_GROUP, true>(parameters, 0, at, valid, x, L{});
        index_t j = FORWARD_GROUP;
        for (; k - j > FORWARD_GROUP; j += FORWARD_GROUP)
            current = group<FORWARD_GROUP, false>(parameters, j, at, valid, x, current);
        return last_group<false>(parameters, j, at, valid, x, current);
    }
    template <bool FIRST>
    PMSN_FN L last_group(const L* parameters, index_t first, index_t at, index_t valid, L x, L partial) const {
        const index_t count = k - first;
        if (FORWARD_GROUP > 2 && count == 4) return group<4, FIRST>(parameters, first, at, valid, x, partial);
        if (FORWARD_GROUP > 2 && count == 3) return group<3, FIRST>(parameters, first, at, valid, x, partial);
        if (count == 2) return group<2, FIRST>(parameters, first, at, valid, x, partial);
        return group<1, FIRST>(parameters, first, at, valid, x, partial);
    }
    template <int K, bool FIRST>
    PMSN_FN L group(const L* parameters, index_t first, index_t at, index_t valid, L x, L partial) const {
        const auto modes = load_fields<K, Modes<L, K>>(parameters + 1 + first, k);
        L real[K], imag[K];
        at += first * layout.M;
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            real[j] = load_lane_of<Plain<L>, L>(args.h_real, at + j * layout.M, valid);
            imag[j] = load_lane_of<Plain<L>, L>(args.h_imag, at + j * layout.M, valid);
        }
        const L sum = hidden_step<L, K>(modes, real, imag, x);
        PMSN_UNROLL
        for (int j = 0; j < K; ++j) {
            store_lane_of<Plain<L>>(args.h_real_after, at + j * layout.M, valid, real[j]);
            store_lane_of<Plain<L>>(args.h_imag_after, at + j * layout.M, valid, imag[j]);
        }
        return FIRST ? plus_product(sum, parameters[0], x) : sum + partial;
    }
    PMSN_FN L load_x(index_t at, index_t valid) const {
        if constexpr (sizeof(R) == 4) {
            if (args.x_storage == STORAGE_HALF) return load_lane_of<Half, L>(args.x, at, valid);
            if (args.x_storage == STORAGE_BFLOAT16) return load_lane_of<Bfloat16, L>(args.x, at, valid);
        }
        return load_lane_of<Plain<L>, L>(args.x, at, valid);
    }
    PMSN_FN void store_out(index_t at, index_t valid, L out) const {
        if constexpr (sizeof(R) == 4) {
            if (args.out_storage == STORAGE_HALF) return store_lane_of<Half>(args.out, at, valid, out);
            if (args.out_storage == STORAGE_BFLOAT16) return store_lane_of<Bfloat16>(args.out, at, valid, out);
        }
        store_lane_of<Plain<L>>(args.out, at, valid, out);
    }
};

}  // namespace PMSN_NAMESPACE
