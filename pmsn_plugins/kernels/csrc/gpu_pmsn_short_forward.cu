// PMSN forward on CUDA, for a short sequence from rest.
#include "gpu_pmsn_short.h"

using namespace PMSN_NAMESPACE;

extern "C" __global__ void __launch_bounds__(THREADS, 1) pmsn_short_forward(const PmsnArgs args) {
    for_elements<Response>(args, [&](const Response& response, index_t element, const WorkItem&) {
        const index_t M = args.layout.M;
        const Element* from = (const Element*)args.x + element;
        OutElement* to = (OutElement*)args.out + element;
        R x[T], v = 0;
        PMSN_UNROLL
        for (int t = 0; t < T; ++t) x[t] = Memory::load(from + t * M);
        loads_are_issued();
        PMSN_UNROLL
        for (int t = 0; t < T; ++t) {
            R current = response.current(x, t), u, out;
            membrane_step<PMSN_RESET, PMSN_FIRE>(current, v, u, out, response.threshold);
            OutMemory::store(to + t * M, out);
            if (PMSN_RECORDED) write(args.v_seq, t * M + element, v);
        }
    });
}
