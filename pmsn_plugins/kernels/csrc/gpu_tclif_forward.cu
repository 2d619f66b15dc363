// TC-LIF forward on CUDA.
#include "gpu_tclif.h"

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(R) == 4 ? 4 : 1) tclif_forward(const TclifArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem&) {
        const index_t M = args.layout.M;
        const Element* from = (const Element*)args.x + element;
        Element* out = (Element*)args.out + element;
        R* v_seq = (R*)args.v_seq + element;
        R x[STEPS], u_soma, u_dendrite;
        State state;
        const auto step = [&](R x) {
            Memory::store(out, state.step(n, x, u_soma, u_dendrite));
            advance(out, M);
            if (!PMSN_RECORDED) return;
            if (args.v_seq) *v_seq = state.v;
            advance(v_seq, M);
        };
        load_interval(from, M, x);
        state.load(args, 0, element);
        loads_are_issued();
        int left = IS_SHORT ? STEPS : (int)args.layout.T;
        if (!IS_SHORT) {
            PMSN_AS_IT_IS
            while (left > STEPS) {
                R now[STEPS];
                wait_for(x[0]);
                PMSN_UNROLL
                for (int i = 0; i < STEPS; ++i) now[i] = x[i];
                left -= STEPS, from += STEPS * M;
                load_interval(from, M, x, left);
                loads_are_issued();
                PMSN_UNROLL
                for (int i = 0; i < STEPS; ++i) step(now[i]);
                if (args.checkpoints) state.store(args, args.layout.T - left, element);
            }
        }
        PMSN_UNROLL
        for (int i = 0; i < STEPS; ++i)
            if (i < left) step(x[i]);
        write(args.v_after, element, state.v);
        write(args.d_after, element, state.d);
    });
}
