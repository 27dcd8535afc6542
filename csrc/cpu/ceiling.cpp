// The memory bandwidth that a plain kernel reaches. ceiling_read sums every 64-bit word; ceiling_copy copies.
// All threads take part, each on contiguous runs of 1 MB, with the prefetch that the GEMVs use, so that no
// kernel is faster by a method that this one lacks. Of the variants measured (1 to 8 cache lines an
// iteration, runs of 256 KB to 128 MB, each kind of prefetch), which differ by less than 10%, it is the
// fastest.
//
// Bytes: a read moves `bytes`. A copy moves 2 * bytes with non-temporal stores (x86), which it uses. With
// ordinary stores the CPU would also read the destination, a third of the traffic.
#include "cpu/dot.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

typedef uint64_t U64 __attribute__((vector_size(lanes * 4)));

constexpr int64_t run_bytes = 1 << 20;
constexpr int64_t line_bytes = 64;

}  // namespace

void ceiling_read(const CeilingReadParams& params) {
    const auto* src = static_cast<const char*>(params.src);
    auto* sink = static_cast<uint64_t*>(params.sink);
    for (int i = 0; i < 8; ++i) sink[i] = 0;
    parallel_chunks(ceil_div(params.bytes, run_bytes), [=](int64_t chunk) {
        const int64_t end = smaller(params.bytes, (chunk + 1) * run_bytes);
        constexpr int vectors = line_bytes / static_cast<int>(sizeof(U64));
        U64 sums[vectors] = {};
#pragma GCC unroll 4
        for (int64_t i = chunk * run_bytes; i < end; i += line_bytes) {
            prefetch_once(src + i + prefetch_bytes);
            for (int v = 0; v < vectors; ++v) {
                U64 words;
                __builtin_memcpy(&words, src + i + v * static_cast<int64_t>(sizeof(U64)), sizeof(words));
                sums[v] += words;
            }
        }
        uint64_t total = 0;
        for (const U64& sum : sums) {
            for (size_t i = 0; i < sizeof(U64) / 8; ++i) total += sum[i];
        }
        __atomic_fetch_add(sink, total, __ATOMIC_RELAXED);
    });
}

void ceiling_copy(const CeilingCopyParams& params) {
    const auto* src = static_cast<const char*>(params.src);
    auto* out = static_cast<char*>(params.out);
    parallel_chunks(ceil_div(params.bytes, run_bytes), [=](int64_t chunk) {
        const int64_t end = smaller(params.bytes, (chunk + 1) * run_bytes);
        for (int64_t i = chunk * run_bytes; i < end; i += line_bytes) {
            prefetch_once(src + i + prefetch_bytes);
#if defined(__x86_64__)
            for (int64_t j = i; j < i + line_bytes; j += 16) {
                _mm_stream_si128(reinterpret_cast<__m128i*>(out + j),
                                 _mm_load_si128(reinterpret_cast<const __m128i*>(src + j)));
            }
#else
            __builtin_memcpy(out + i, src + i, line_bytes);
#endif
        }
#if defined(__x86_64__)
        _mm_sfence();  // a streaming store is ordered by nothing else
#endif
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
