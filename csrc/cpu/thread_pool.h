// The kernels' thread pool. The calling thread takes part. Workers spin for some tens of microseconds after
// their last chunk, so that they are awake for the next op of a layer, and then sleep: torch's threads share
// the cores.
//
// Chunks are claimed one by one, so that a slow core does not delay the others.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pykernels::cpu {

using ChunkFunction = void (*)(void* context, int64_t chunk);

// Runs function(context, chunk) once for every chunk in [0, n_chunks) and returns when all are done. Chunks
// must not throw. Called from a chunk, or while another thread's call is under way, it runs them all on the
// caller.
void run_chunks(int64_t n_chunks, ChunkFunction function, void* context);

template <class Body>
void parallel_chunks(int64_t n_chunks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_chunks(
        n_chunks, [](void* context, int64_t chunk) { (*static_cast<Plain*>(context))(chunk); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace pykernels::cpu
