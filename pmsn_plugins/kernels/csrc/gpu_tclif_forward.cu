// TC-LIF forward on CUDA.
#include "gpu_tclif.h"

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, 1) tclif_forward(const TclifArgs args) {
    for_elements<Neuron>(args, [&](const Neuron& n, index_t element, const WorkItem&) {
        const index_t M = args.layout.M;
        const Element* x = (const Element*)args.x + element;
        Element* out = (Element*)args.out + element;
        R v = read(args.v, element), d = read(args.d, element), u_soma, u_dendrite;
        const auto keep = [&](int i) {
            if (!args.checkpoints) return;
            R* to = checkpoint(args, i, element);
            to[0] = v, to[M] = d;
        };
        const auto step = [&](int i, R x) {
            Memory::store(out, tclif_step<PMSN_PRE_RESET>(n, x, v, d, u_soma, u_dendrite));
            out += M;
            if (PMSN_RECORDED) write(args.v_seq, i * M + element, v);
        };
        for_steps<AHEAD>(x, M, (int)args.layout.T, step, keep);
        write(args.v_after, element, v);
        write(args.d_after, element, d);
    });
}
