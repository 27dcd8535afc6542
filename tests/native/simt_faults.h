// Kernels with one fault each, and one with none, for test_simt_faults.cpp. The faulty line of each ends in a
// comment with its name: `// FAULT name`. chain_clean and parts are the other halves of a fault between two
// launches, or two blocks.
#pragma once

#include "ops.h"

namespace pykernels::cuda {

constexpr int fault_threads = 64;

// in: [fault_threads] uint32; out: [fault_threads] uint32
using FaultLauncher = void (*)(const uint32_t* in, uint32_t* out, const Stream& stream);

struct FaultCase {
    const char* name;
    FaultLauncher launch;
    bool needs_sm_90;
};

extern const FaultCase block_faults[], cluster_faults[];
extern const int n_block_faults, n_cluster_faults;

void clean(const uint32_t* in, uint32_t* out, const Stream& stream);
void cluster_clean(const uint32_t* in, uint32_t* out, const Stream& stream);
// Two blocks push into each other's memory: out = in, backwards, + 1000 for the block it comes from.
void push_clean(const uint32_t* in, uint32_t* out, const Stream& stream);
// out = in + 1, as a kernel of a chain; without_wait leaves wait_for_producers() out; late calls it after the
// read; early_fresh and early_streamed too, and copy what load_fresh() and load_streamed() gave.
void chain_clean(const uint32_t* in, uint32_t* out, const Stream& stream);
void chain_without_wait(const uint32_t* in, uint32_t* out, const Stream& stream);
void chain_late_wait(const uint32_t* in, uint32_t* out, const Stream& stream);
void chain_early_fresh(const uint32_t* in, uint32_t* out, const Stream& stream);
void chain_early_streamed(const uint32_t* in, uint32_t* out, const Stream& stream);
// Loads in ahead of the wait and once more behind it, by load_fresh(); stale: by load().
void chain_again(const uint32_t* in, uint32_t* out, const Stream& stream);
void chain_stale(const uint32_t* in, uint32_t* out, const Stream& stream);
// Reads in and writes out before the wait: a fault where the kernel before still reads `out`.
void chain_early_write(const uint32_t* in, uint32_t* out, const Stream& stream);
// out[0] = the sum of the blocks' parts in workspace ([1 + blocks] uint32, zero), joined by the last to
// arrive. two_counters: the others count themselves at a second one too, behind the parts, while the last
// reads.
enum class Joining { clean, two_counters, no_fence, no_atomic, stale_load };
void join_blocks(Joining joining, uint32_t* workspace, uint32_t* out, const Stream& stream);
// By words that carry their own flag; first_word: of two words only the first is looked at.
enum class Flagging { clean, first_word, plain_load };
void join_flagged(Flagging flagging, uint32_t* workspace, uint32_t* out, const Stream& stream);

}  // namespace pykernels::cuda
