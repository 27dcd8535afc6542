// How gqa_decode splits its work on a CPU: pure functions of the sizes.
#pragma once

#include <cstdint>

#include "params.h"
#include "unified_softmax.h"

namespace pykernels::cpu {

// Keys that are scored, exponentiated and summed together. K and V of 64 keys of 128 bf16 are 32 KB, which
// stay in the L1 while V is read a second time.
constexpr int64_t gqa_block = 64;

// Splits of one sequence's KV axis: about four chunks a thread, so that all threads end at about the same
// time; or as many as are `chosen`.
inline int64_t gqa_max_splits(const GqaDecodeParams& params, int64_t n_threads, int64_t chosen = 0) {
    const int64_t caches = int64_t{params.batch} * params.n_kv_heads;
    const int64_t wanted = chosen ? chosen : n_threads == 1 ? 1 : (4 * n_threads + caches - 1) / caches;
    const int64_t blocks = (params.max_len + gqa_block - 1) / gqa_block;
    return wanted < blocks ? wanted : blocks;
}

// Floats of a split's partial of one query head: the maximum, the sum of exponentials, head_dim sums.
inline int64_t gqa_partial_floats(const GqaDecodeParams& params) {
    return params.head_dim + 2;
}

inline int64_t gqa_split_bytes(const GqaDecodeParams& params) {
    return int64_t{params.batch} * params.n_heads * gqa_partial_floats(params) * 4;
}

// The splits that are wanted, but no more than the workspace holds: the number of threads may have grown
// since.
inline int64_t gqa_splits(const GqaDecodeParams& params, int64_t n_threads, int64_t chosen = 0) {
    const int64_t wanted = gqa_max_splits(params, n_threads, chosen),
                  held = (params.workspace_bytes - unified_counter_bytes(params.softmax)) /
                         gqa_split_bytes(params);
    return wanted < held ? wanted : held;
}

// Keys of a split: whole blocks, the same for all splits of a sequence but the last. Never 0.
inline int64_t gqa_split_keys(int64_t kv_len, int64_t max_splits) {
    const int64_t blocks = (kv_len + gqa_block - 1) / gqa_block;
    return (blocks + max_splits - 1) / max_splits * gqa_block;
}

}  // namespace pykernels::cpu
