// The choices that bench.tune measures: for each op those that its plan function allows for the sizes.
#include <algorithm>
#include <tuple>

#include "cpu/gqa_plan.h"
#include "cuda/gemv_mma_plan.h"
#include "cuda/gqa_decode_plan.h"
#include "cuda/int4_gemv_plan.h"
#include "plan_table.h"

namespace pykernels {
namespace {

int ceil_div(int64_t value, int64_t divisor) {
    return static_cast<int>((value + divisor - 1) / divisor);
}

// --- CUDA: GEMV

// What of a plan a choice can change.
std::tuple<int, int, int> gemv_plan(int pairs, int width, int batch, const cuda::GemvDevice& device,
                                    const PlanChoice& choice) {
    const auto on_tensor_cores = cuda::plan_gemv_mma(pairs, width, batch, true, false, device, choice);
    if (on_tensor_cores.shape >= 0) return {on_tensor_cores.shape, on_tensor_cores.blocks, 0};
    const auto plan = cuda::plan_gemv(pairs, width, batch, true, false, device, choice);
    return {-1, plan.blocks, plan.vectors};
}

std::vector<PlanChoice> gemv_candidates(int pairs, int width, int batch, const PlanDevice& of) {
    const cuda::GemvDevice device = {of.sm_count, of.shared_bytes};
    std::vector<PlanChoice> wanted;
    for (const int vectors : {1, 2}) {
        PlanChoice choice;
        choice.kernel = PlanKernel::cuda_cores;
        choice.vectors = vectors;
        if (batch == 1)
            wanted.push_back(choice);  // of several sequences CUDA cores have no kernel that streams
    }
    for (const cuda::GemvMmaShape& shape : cuda::gemv_mma_shapes) {
        PlanChoice choice;
        choice.kernel = PlanKernel::tensor_cores;
        choice.warps = shape.warps;
        choice.row_tiles = shape.row_tiles;
        wanted.push_back(choice);
    }
    // The fewest blocks whose longest has no more row pairs than with a block for every SM.
    PlanChoice fewer;
    fewer.blocks = ceil_div(pairs, ceil_div(pairs, std::min(pairs, of.sm_count)));
    wanted.push_back(fewer);

    std::vector<PlanChoice> allowed;
    std::vector<std::tuple<int, int, int>> plans = {gemv_plan(pairs, width, batch, device, {})};
    for (const PlanChoice& choice : wanted) {
        const auto plan = gemv_plan(pairs, width, batch, device, choice);
        if (!cuda::gemv_allows(pairs, width, batch, device, choice) ||
            std::find(plans.begin(), plans.end(), plan) != plans.end())
            continue;
        plans.push_back(plan);
        allowed.push_back(choice);
    }
    return allowed;
}

// --- CUDA: 4-bit GEMV

// `clusters`: of two blocks, which the built-in plan of the op may have and a choice has not.
std::vector<PlanChoice> int4_candidates(const cuda::Int4GemvSizes& sizes, bool in_order, int clusters,
                                        const PlanDevice& of) {
    const cuda::GemvDevice device = {of.sm_count, of.shared_bytes};
    const auto plan_of = [&](const PlanChoice& choice, int with_clusters = 0) {
        const auto fast = cuda::plan_int4_gemv_fast(sizes, in_order, false, device, with_clusters, choice);
        if (fast.fits) return std::tuple(true, fast.warps, fast.ranks);
        return std::tuple(false, cuda::plan_int4_gemv(sizes, false, device, choice).warps, 1);
    };
    std::vector<PlanChoice> allowed;
    std::vector<std::tuple<bool, int, int>> plans = {plan_of({}, clusters)};
    for (const PlanKernel kernel : {PlanKernel::fast, PlanKernel::general}) {
        for (const int warps : {16, 12, 8, 4}) {
            PlanChoice choice;
            choice.kernel = kernel;
            choice.warps = warps;
            if (!cuda::int4_allows(sizes, in_order, device, choice)) continue;
            const auto plan = plan_of(choice);
            if (std::find(plans.begin(), plans.end(), plan) != plans.end()) continue;
            plans.push_back(plan);
            allowed.push_back(choice);
        }
    }
    return allowed;
}

// --- CUDA: attention

std::vector<PlanChoice> gqa_candidates(const GqaDecodeParams& params, const PlanDevice& of) {
    const cuda::GqaDevice device = {of.sm_count, of.shared_bytes, of.sm_90, of.resident_clusters};
    const auto plan_of = [&](const PlanChoice& choice) {
        const cuda::GqaPlan plan = cuda::plan_gqa_decode(params, device, false, choice);
        return std::tuple(plan.any_dim, plan.bulk_copies, plan.splits, plan.cluster_splits);
    };
    const cuda::GqaPlan built_in = cuda::plan_gqa_decode(params, device, false);
    const int fill = std::max(of.sm_count / built_in.groups, 1);  // a split for every SM
    const int most = std::max(ceil_div(params.max_len, cuda::gqa_min_split_keys), 1);
    std::vector<PlanChoice> allowed;
    std::vector<decltype(plan_of({}))> plans = {plan_of({})};
    const auto add = [&](PlanKernel kernel, int32_t PlanChoice::* field, int value) {
        PlanChoice choice;
        choice.kernel = kernel;
        choice.*field = value;
        if (!cuda::gqa_allows(params, device, choice)) return;
        const auto plan = plan_of(choice);
        if (std::find(plans.begin(), plans.end(), plan) != plans.end()) return;
        plans.push_back(plan);
        allowed.push_back(choice);
    };
    for (const PlanKernel kernel : {PlanKernel::registers, PlanKernel::bulk, PlanKernel::any_dim}) {
        for (const int cluster : {2, 4, 8, 12, 16}) add(kernel, &PlanChoice::cluster, cluster);
        for (const int splits : {fill / 2, fill, 2 * fill})
            add(kernel, &PlanChoice::splits, std::clamp(splits, 1, most));
    }
    return allowed;
}

// --- CPU: the chunks of a thread

std::vector<PlanChoice> with_each(int32_t PlanChoice::* field, std::vector<int> values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    std::vector<PlanChoice> choices;
    for (const int value : values) {
        PlanChoice choice;
        choice.*field = value;
        choices.push_back(choice);
    }
    return choices;
}

std::vector<PlanChoice> row_candidates(int n_rows, int threads) {
    std::vector<int> rows;
    for (const int chunks : {1, 2, 4, 8, 16}) rows.push_back(ceil_div(n_rows, int64_t{threads} * chunks));
    return with_each(&PlanChoice::rows, rows);
}

template <class Params>
int qkv_pairs(const Params& p) {
    return (p.n_heads + 2 * p.n_kv_heads) * p.head_dim / 2;
}

template <class Params>
std::vector<PlanChoice> head_candidates(const Params& p) {
    return with_each(&PlanChoice::rows,
                     {std::max(p.head_dim / 4, 2), std::max(p.head_dim / 2, 2), p.head_dim});
}

}  // namespace

std::vector<PlanChoice> plan_candidates(const GemvParams& p, const PlanDevice* device, int threads) {
    if (device == nullptr) return row_candidates(p.out_features, threads);
    return gemv_candidates(ceil_div(p.out_features, 2), p.in_features, p.batch, *device);
}

std::vector<PlanChoice> plan_candidates(const SwigluGemvParams& p, const PlanDevice* device, int threads) {
    if (device == nullptr) return row_candidates(p.out_features, threads);
    return gemv_candidates(p.out_features, p.in_features, p.batch, *device);
}

std::vector<PlanChoice> plan_candidates(const QkvGemvParams& p, const PlanDevice* device, int) {
    if (device == nullptr) return head_candidates(p);
    return gemv_candidates(qkv_pairs(p), p.hidden, p.batch, *device);
}

std::vector<PlanChoice> plan_candidates(const GqaDecodeParams& p, const PlanDevice* device, int threads) {
    if (device != nullptr) return gqa_candidates(p, *device);
    const int64_t caches = int64_t{p.batch} * p.n_kv_heads;
    const int most = ceil_div(p.max_len, cpu::gqa_block);
    std::vector<int> splits;
    for (const int chunks : {1, 2, 4, 8, 16})
        splits.push_back(std::min(ceil_div(int64_t{threads} * chunks, caches), most));
    return with_each(&PlanChoice::splits, splits);
}

std::vector<PlanChoice> plan_candidates(const Int4GemvParams& p, const PlanDevice* device, int threads) {
    if (device == nullptr) return row_candidates(p.out_features, threads);
    return int4_candidates({ceil_div(p.out_features, 2), p.in_features, p.batch, p.weight.n_groups, 1, false,
                            p.weight.zeros != nullptr},
                           p.weight.perm == nullptr, device->resident_clusters.counts[2], *device);
}

std::vector<PlanChoice> plan_candidates(const Int4SwigluGemvParams& p, const PlanDevice* device,
                                        int threads) {
    if (device == nullptr) return row_candidates(p.out_features, threads);
    const bool same = p.gate.n_groups == p.up.n_groups && p.gate.perm == p.up.perm;
    return int4_candidates({p.out_features, p.in_features, p.batch, std::max(p.gate.n_groups, p.up.n_groups),
                            same ? 1 : 2, p.norm_weight != nullptr, p.gate.zeros || p.up.zeros},
                           p.gate.perm == nullptr && p.up.perm == nullptr, 0, *device);
}

std::vector<PlanChoice> plan_candidates(const Int4QkvGemvParams& p, const PlanDevice* device, int) {
    if (device == nullptr) return head_candidates(p);
    const bool same = p.q.n_groups == p.k.n_groups && p.q.n_groups == p.v.n_groups && p.q.perm == p.k.perm &&
                      p.q.perm == p.v.perm;
    return int4_candidates(
        {qkv_pairs(p), p.hidden, p.batch, std::max({p.q.n_groups, p.k.n_groups, p.v.n_groups}), same ? 1 : 3,
         p.norm_weight != nullptr, p.q.zeros || p.k.zeros || p.v.zeros},
        p.q.perm == nullptr && p.k.perm == nullptr && p.v.perm == nullptr, 0, *device);
}

}  // namespace pykernels
