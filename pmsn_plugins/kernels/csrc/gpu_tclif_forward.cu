// TC-LIF forward on CUDA.
#include "gpu_tclif.h"

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, 1) tclif_forward(const TclifArgs args) {
    const Layout& layout = args.layout;
    const WorkItem item(layout);
    const TclifCoefficients<R> c = coefficients(args, item.channel(layout));
    for (index_t row = item.first_row; row < item.end_row; ++row) {
        const index_t M = layout.M, element = row * layout.P + item.position;
        if (element >= M) break;
        const Element* x = (const Element*)args.x + element;
        Element* out = (Element*)args.out + element;
        R v = read(args.v, element), d = read(args.d, element), u_soma, u_dendrite;
        for (index_t start = 0; start < layout.T; start += PMSN_INTERVAL) {
            const int steps = (int)(layout.T - start < PMSN_INTERVAL ? layout.T - start : PMSN_INTERVAL);
            if (start && args.checkpoints) {
                R* to = checkpoint(args, start, element);
                to[0] = v, to[M] = d;
            }
            for_steps<AHEAD>(x, M, steps, [&](int i, R x) {
                Memory::store(out, tclif_step<PMSN_PRE_RESET>(c, x, v, d, u_soma, u_dendrite));
                out += M;
                if (PMSN_RECORDED) write(args.v_seq, (start + i) * M + element, v);
            });
            x += steps * M;
        }
        write(args.v_after, element, v);
        write(args.d_after, element, d);
    }
}
