// The launch plan of gqa_decode, a pure function: what must hold for every head shape, length and device.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.h"
#include "cuda/gqa_decode_plan.h"
#include "devices.h"

namespace {

using namespace pykernels;
using namespace pykernels::cuda;
using test::Device, test::devices;

struct Heads {
    const char* name;
    int n_heads, n_kv_heads, head_dim;
    float softcap = 0;
};

constexpr Heads qwen = {"qwen2.5-7b", 28, 4, 128}, llama = {"llama-3.1-8b", 32, 8, 128},
                small = {"llama-3.2-1b", 32, 8, 64}, llama2 = {"llama-2-7b", 32, 32, 128},
                gemma = {"gemma-2b", 8, 1, 256}, phi3 = {"phi-3-mini", 32, 32, 96};
constexpr Heads shapes[] = {qwen,
                            llama,
                            llama2,
                            gemma,
                            phi3,
                            small,
                            {"gemma-3-4b", 8, 4, 256},
                            {"stablelm-3b", 32, 32, 80},
                            {"groups of 16", 64, 4, 112},
                            {"gemma-2-27b", 32, 16, 128, 50},
                            {"a soft cap, group 1", 32, 32, 128, 50},
                            {"groups of 5", 40, 8, 136},
                            {"the smallest", 16, 1, 8}};

GqaDecodeParams params_of(const Heads& heads, int batch, int max_len) {
    GqaDecodeParams params = {};
    params.batch = batch, params.n_heads = heads.n_heads, params.n_kv_heads = heads.n_kv_heads;
    params.head_dim = heads.head_dim, params.max_len = max_len, params.softcap = heads.softcap;
    return params;
}

GqaDevice limits_of(const Device& device) {
    return {device.sm_count, device.shared_bytes, device.sm_90, device.resident_clusters()};
}

GqaDevice limits_of(const char* name) {
    for (const Device& device : devices)
        if (std::strstr(device.name, name) == device.name) return limits_of(device);
    CHECK(false, "no device %s", name);
    return {};
}

bool is_power_of_two(int value) {
    return value > 0 && (value & (value - 1)) == 0;
}

void test_plan(const Heads& heads, int batch, int max_len, const Device& device, const GqaDevice& limits) {
    const GqaDecodeParams params = params_of(heads, batch, max_len);
    const GqaPlan plan = plan_gqa_decode(params, limits, false);
    const auto context = [&](const char* what) {
        static char text[160];
        std::snprintf(text, sizeof text, "%s: %s, batch %d, %d slots, %s", what, heads.name, batch, max_len,
                      device.name);
        return text;
    };

    // Each query head belongs to one head tile, each of V's dimensions to one slice of whole vectors.
    CHECK(plan.heads >= 1 && plan.heads <= gqa_tile_heads, "%s", context("heads"));
    CHECK(plan.head_tiles * plan.heads >= plan.group_size, "%s", context("head tiles cover the group"));
    CHECK((plan.head_tiles - 1) * plan.heads < plan.group_size, "%s", context("no head tile is empty"));
    CHECK(plan.value_dims % 8 == 0 && plan.value_dims <= gqa_max_value_dims, "%s", context("a slice"));
    CHECK(plan.value_slices * plan.value_dims >= heads.head_dim &&
              (plan.value_slices - 1) * plan.value_dims < heads.head_dim,
          "%s: %d", context("slices"), plan.value_slices);
    CHECK(plan.groups == batch * heads.n_kv_heads * plan.head_tiles * plan.value_slices, "%s",
          context("head groups"));

    // Two head dimensions have kernels of their own, but for clusters of another size than a power of two.
    const bool own_kernel = heads.softcap == 0 && (heads.head_dim == 64 || heads.head_dim == 128);
    CHECK(plan.any_dim ? !own_kernel || (plan.group_size == 1 && plan.cluster_splits > 1) : own_kernel, "%s",
          context("kernel"));
    CHECK(plan.any_dim || (plan.value_slices == 1 && plan.cluster_lanes == plan.cluster_splits), "%s",
          context("what only the kernel for any head_dim has"));

    CHECK(plan.splits >= 1, "%s: %d", context("splits"), plan.splits);
    CHECK(plan.cluster_splits >= 1 && plan.cluster_splits <= gqa_max_cluster_splits, "%s: %d",
          context("cluster"), plan.cluster_splits);
    CHECK(plan.cluster_splits == 1 || plan.cluster_splits == plan.splits, "%s: %d of %d",
          context("a cluster is a head group"), plan.cluster_splits, plan.splits);
    // All blocks are resident at once: one wave.
    const auto& resident =
        plan.cuda_cores ? limits.resident_clusters.paired : limits.resident_clusters.counts;
    CHECK(plan.cluster_splits == 1 || resident[plan.cluster_splits] >= plan.groups, "%s: %d clusters of %d",
          context("one wave of clusters"), plan.groups, plan.cluster_splits);
    const int resident_blocks = (plan.cuda_cores ? 2 : 1) * device.sm_count;
    CHECK(plan.splits == 1 || plan.groups * plan.splits <= resident_blocks, "%s: %d blocks",
          context("one wave"), plan.groups * plan.splits);
    // On CUDA cores: one query head a KV head, 16 lanes a row of more than 64 dimensions, two blocks an SM.
    CHECK(!plan.cuda_cores || (heads.softcap == 0 && plan.any_dim && plan.group_size == 1 &&
                               plan.cluster_splits > 1 && heads.head_dim > 64 && heads.head_dim <= 128 &&
                               2 * (plan.shared_bytes + 1024) <= limits.shared_bytes),
          "%s", context("CUDA cores"));

    CHECK(plan.shared_bytes <= limits.shared_bytes, "%s: %d", context("shared memory"), plan.shared_bytes);
    const int row_dims = plan.any_dim ? gqa_max_value_dims : heads.head_dim;
    const int key_dims = plan.any_dim ? (heads.head_dim <= 128 ? 128 : 256) : heads.head_dim;
    const int rows = gqa_warps * gqa_tile_heads * (row_dims + 2) * 4;
    CHECK(gqa_rows_bytes(row_dims) >= rows && gqa_rows_bytes(row_dims) % 16 == 0 &&
              gqa_rows_bytes(row_dims) >= gqa_tile_heads * gqa_q_row_elements(key_dims) * 2,
          "%s: %d", context("partials, which overwrite q"), gqa_rows_bytes(row_dims));
    // Behind the rows lies a ticket, or an mbarrier and the pushed partials: every block's, for the items of
    // this block's part. Parts cover all items, and a thread takes one lane of an item.
    CHECK(plan.shared_bytes >= rows + 4, "%s: %d", context("the ticket fits"), plan.shared_bytes);
    const int items = gqa_items(plan.heads, plan.value_dims);
    const int part = plan.heads * plan.cluster_items, pushed = plan.cluster_splits * part;
    CHECK(plan.cluster_items >= 1 && pushed >= items && part * plan.cluster_lanes <= gqa_threads, "%s: %d",
          context("parts of a cluster"), part);
    CHECK(plan.any_dim || pushed == items, "%s: %d", context("equal parts"), part);
    CHECK(is_power_of_two(plan.cluster_lanes) && plan.cluster_lanes >= plan.cluster_splits &&
              plan.cluster_lanes < 2 * plan.cluster_splits,
          "%s: %d", context("lanes of a cluster's item"), plan.cluster_lanes);
    CHECK(plan.cluster_splits == 1 || plan.shared_bytes >= gqa_rows_bytes(row_dims) + 16 + pushed * 24,
          "%s: %d", context("pushed partials fit"), plan.shared_bytes);

    // Bulk copies: on sm_90, of whole tiles, where a warp has several. The ring is behind the warps' rows and
    // the ticket.
    const int keys_of_tiles = gqa_warps * gqa_tile_keys * plan.splits;
    const bool many = plan.cluster_splits > 1 ? max_len > keys_of_tiles
                                              : max_len >= (heads.head_dim > 64 ? 2 : 8) * keys_of_tiles;
    const int ring = gqa_warps * plan.ring_stages * 2 * gqa_tile_keys * heads.head_dim * 2;
    CHECK(plan.ring_stages == 1 || plan.ring_stages == 2, "%s: %d", context("stages"), plan.ring_stages);
    const bool has_room = plan.ring_offset + ring + 1024 <= device.shared_bytes;
    const bool may = device.sm_90 && !plan.any_dim && many && max_len % gqa_tile_keys == 0 &&
                     (plan.cluster_splits == 1 || heads.head_dim > 64);
    CHECK(!plan.bulk_copies || may, "%s", context("bulk copies"));
    CHECK(plan.bulk_copies || !(may && has_room), "%s", context("no bulk copies"));
    CHECK(plan.ring_offset % 128 == 0 && plan.ring_offset >= rows + 4, "%s: %d", context("ring"),
          plan.ring_offset);
    const int barriers = 8 * gqa_warps * plan.ring_stages * 2;
    CHECK(!plan.bulk_copies || plan.shared_bytes >= plan.ring_offset + ring + barriers, "%s: %d",
          context("ring"), plan.shared_bytes);

    // The reducing blocks have every item once and a thread for each of its lanes. Those that poll leave SMs
    // for the other blocks.
    CHECK(plan.reducers >= 1 && plan.reducers <= plan.splits, "%s: %d", context("reducers"), plan.reducers);
    CHECK(plan.reducers * plan.reducer_items >= items && (plan.reducers - 1) * plan.reducer_items < items,
          "%s: %d of %d items", context("reducers"), plan.reducer_items, items);
    CHECK(plan.reducers == 1 || plan.groups * plan.reducers * gqa_sms_per_reducer <= device.sm_count,
          "%s: %d", context("reducers that poll"), plan.reducers);
    CHECK(is_power_of_two(plan.reducer_lanes) && plan.reducer_lanes <= 32 &&
              plan.reducer_items * plan.reducer_lanes <= gqa_threads,
          "%s: %d", context("lanes of an item"), plan.reducer_lanes);

    // The last counter ends before the first slot, the last slot before the end.
    const int64_t counters = int64_t{plan.groups} * 4;
    const int64_t slots = int64_t{plan.groups} * (plan.cluster_splits > 1 ? 0 : plan.splits) * items;
    CHECK(gqa_counter_bytes(plan) >= counters && gqa_counter_bytes(plan) % 64 == 0, "%s",
          context("counters"));
    CHECK(gqa_workspace_bytes(plan) >= gqa_counter_bytes(plan) + slots * gqa_slot_floats * 4, "%s",
          context("workspace"));
    CHECK(gqa_workspace_bytes(plan, Softmax::unified) == gqa_workspace_bytes(plan) + 64, "%s",
          context("the count of fall-backs"));
    // An op is bound once and run with and without PDL launches: on one workspace.
    const GqaPlan behind = plan_gqa_decode(params, limits, true);
    CHECK(gqa_workspace_bytes(behind) <= gqa_workspace_bytes(plan), "%s",
          context("workspace of a PDL launch"));
    CHECK(behind.cluster_splits >= plan.cluster_splits &&
              (behind.cluster_splits > 1 || behind.splits == plan.splits),
          "%s", context("a PDL launch has clusters where a plain one has"));
}

// What was measured on an H200 (docs/tried.md).
void test_the_plans_that_were_measured() {
    const GqaDevice h200 = limits_of("H200");
    const auto plan = [&](const Heads& heads, int batch, int max_len) {
        return plan_gqa_decode(params_of(heads, batch, max_len), h200, false);
    };
    // Blocks of a cluster; 1: the splits are combined through global memory.
    struct Measured {
        const Heads& heads;
        int batch, max_len, cluster;
    };
    const Measured all[] = {
        {qwen, 1, 1024, 16}, {qwen, 1, 8192, 16}, {qwen, 1, 16384, 1},  {qwen, 2, 8192, 8},
        {qwen, 2, 16384, 1}, {qwen, 3, 4096, 8},  {qwen, 3, 16384, 1},  {qwen, 4, 4096, 4},
        {qwen, 4, 8192, 1},  {qwen, 8, 1024, 2},  {qwen, 8, 2048, 2},   {qwen, 8, 4096, 1},
        {llama, 1, 1024, 8}, {llama, 1, 8192, 8}, {llama, 1, 16384, 1}, {llama, 2, 4096, 4},
        {llama, 2, 8192, 1}, {llama, 3, 4096, 4}, {llama, 3, 16384, 1}, {llama, 4, 512, 2},
        {llama, 4, 2048, 2}, {llama, 4, 4096, 1}, {llama, 8, 1024, 2},  {llama, 8, 65536, 2},
        {small, 1, 1024, 8}, {small, 1, 4096, 8}, {small, 1, 16384, 1}, {small, 4, 1024, 2},
        {small, 4, 4096, 1},
    };
    for (const Measured& one : all) {
        const GqaPlan of = plan(one.heads, one.batch, one.max_len);
        CHECK(!of.any_dim && of.cluster_splits == one.cluster, "%s, batch %d, %d slots: %d", one.heads.name,
              one.batch, one.max_len, of.cluster_splits);
    }
    // A PDL launch has clusters for longer.
    const auto behind = [&](const Heads& heads, int batch, int max_len) {
        return plan_gqa_decode(params_of(heads, batch, max_len), h200, true).cluster_splits;
    };
    CHECK(behind(qwen, 1, 16384) == 16 && behind(qwen, 1, 32768) == 1, "one sequence of 4 KV heads, PDL");
    CHECK(behind(llama, 1, 16384) == 8 && behind(llama, 1, 32768) == 1, "one sequence of 8 KV heads, PDL");
    CHECK(behind(llama, 4, 4096) == 2 && behind(llama, 4, 16384) == 1, "four sequences, PDL");
    CHECK(plan(qwen, 1, 65536).splits == 33 && plan(llama, 1, 65536).splits == 16, "a split an SM");
    // One KV head: 16 SMs cannot stream a long cache.
    CHECK(plan({"one KV head", 8, 1, 128}, 1, 8192).cluster_splits == 16, "one KV head");
    CHECK(plan({"one KV head", 8, 1, 128}, 1, 16384).cluster_splits == 1, "one KV head");
    // As many KV heads as query heads: two blocks an SM in clusters of seven. On tensor cores, which a soft
    // cap and a choice of any_dim take, 96 SMs in clusters of three.
    for (const Heads& heads : {llama2, phi3}) {
        const GqaPlan mha = plan(heads, 1, 2048);
        CHECK(mha.cuda_cores && mha.cluster_splits == 7 && mha.cluster_lanes == 8, "%s: %d splits",
              heads.name, mha.cluster_splits);
        GqaDecodeParams capped = params_of(heads, 1, 2048);
        capped.softcap = 50;
        const GqaPlan with_cap = plan_gqa_decode(capped, h200, false);
        CHECK(!with_cap.cuda_cores && with_cap.any_dim && with_cap.cluster_splits == 3 &&
                  with_cap.cluster_lanes == 4,
              "%s with a soft cap: %d splits", heads.name, with_cap.cluster_splits);
        PlanChoice choice;
        choice.kernel = PlanKernel::any_dim, choice.cluster = 3;
        const GqaPlan chosen = plan_gqa_decode(params_of(heads, 1, 2048), h200, false, choice);
        CHECK(gqa_allows(params_of(heads, 1, 2048), h200, choice) && !chosen.cuda_cores, "%s, chosen",
              heads.name);
    }
    CHECK(!plan(llama2, 1, 16384).any_dim && plan(phi3, 1, 16384).any_dim, "long caches");
    // 128 dimensions of V a block: 32 blocks read one KV head.
    const GqaPlan one = plan(gemma, 1, 2048);
    CHECK(one.value_slices == 2 && one.value_dims == 128 && one.cluster_splits == 16, "%d slices",
          one.value_slices);
}

// Where they were measured to be faster (docs/tried.md).
void test_where_bulk_copies_are_taken() {
    const auto taken = [](const Heads& heads, int batch, int max_len, int shared_bytes = 227 * 1024,
                          bool programmatic = false) {
        GqaDevice limits = limits_of("H200");
        limits.shared_bytes = shared_bytes;
        return plan_gqa_decode(params_of(heads, batch, max_len), limits, programmatic).bulk_copies;
    };
    for (const int max_len : {4096, 8192, 16384, 65536}) {
        CHECK(taken(qwen, 1, max_len) && taken(llama, 1, max_len), "batch 1, %d slots", max_len);
        CHECK(taken(qwen, 4, max_len) && taken(llama, 4, max_len), "batch 4, %d slots", max_len);
    }
    CHECK(!taken(qwen, 1, 2048) && !taken(llama, 1, 1024) && taken(llama, 1, 2048), "a tile a warp");
    CHECK(!taken(small, 1, 4096) && !taken(small, 4, 1024), "copies of 2 KB, in clusters");
    CHECK(!taken(small, 1, 8192) && taken(small, 1, 16384), "copies of 2 KB, without");
    CHECK(!taken(llama, 1, 65535) && !taken(llama, 1, 8191), "a tile that is not whole");
    CHECK(taken(llama, 1, 65536, 99 * 1024) && !taken(llama, 1, 65536, 97 * 1024), "room for one stage");
    CHECK(!taken(llama, 1, 4096, 99 * 1024), "no room for two");
    // Behind a GEMV.
    constexpr int all = 227 * 1024;
    CHECK(!taken(llama, 1, 2048, all, true) && taken(llama, 1, 4096, all, true), "programmatic, in clusters");
    CHECK(!taken(llama, 1, 16400, all, true) && taken(llama, 1, 32768, all, true), "programmatic, without");
    for (const int max_len : {1088, 2048, 4096})
        CHECK(taken(qwen, 1, max_len, all, true), "few clusters of 128 dimensions, %d slots", max_len);
    const Heads few = {"two KV heads", 8, 2, 64};
    CHECK(taken(few, 1, 2048, all, true) && !taken(few, 1, 2048), "few clusters, programmatic");
    CHECK(!taken(few, 1, 2050, all, true), "a tile that is not whole");
    CHECK(!taken(few, 1, 2048, 80 * 1024, true), "no room for the ring");
}

// One where all SMs read, or a warp has few tiles.
void test_stages() {
    const GqaDevice h200 = limits_of("H200");
    const auto stages = [&](const Heads& heads, int batch, int max_len, bool programmatic = false) {
        return plan_gqa_decode(params_of(heads, batch, max_len), h200, programmatic).ring_stages;
    };
    CHECK(stages(qwen, 1, 2048) == 1 && stages(qwen, 1, 8192) == 1, "clusters of 16");
    CHECK(stages(llama, 1, 2048) == 1 && stages(llama, 1, 4096) == 2 && stages(llama, 1, 8192) == 2,
          "clusters of 8");
    CHECK(stages(llama, 8, 4096) == 1 && stages(llama, 8, 8192) == 2, "clusters on all SMs");
    CHECK(stages(qwen, 1, 65536) == 1 && stages(llama, 4, 65536) == 1, "splits");
    CHECK(stages(small, 1, 65536) == 2, "copies of 2 KB");
    CHECK(stages(qwen, 1, 2048, true) == 2 && stages(llama, 4, 65536, true) == 2, "programmatic");
}

// Walks the tiles as the kernel does: a warp of a split begins at its own and goes on by all warps of all.
void test_every_key_is_taken_once(int splits) {
    std::vector<int> taken;
    for (int kv_len = 1; kv_len <= 5000; ++kv_len) {
        const int tiles = (kv_len + gqa_tile_keys - 1) / gqa_tile_keys;
        taken.assign(static_cast<size_t>(tiles), 0);
        int active = 0;
        for (int split = 0; split < splits; ++split) {
            int of_split = 0;
            for (int warp = 0; warp < gqa_warps; ++warp) {
                const int step = splits * gqa_warps * gqa_tile_keys;
                for (int key = (warp * splits + split) * gqa_tile_keys; key < kv_len; key += step) {
                    const int tile = key / gqa_tile_keys;
                    CHECK(tile % splits == split && tile / splits % gqa_warps == warp,
                          "tile %d of split %d, warp %d", tile, split, warp);
                    ++taken[static_cast<size_t>(tile)];
                    ++of_split;
                }
            }
            CHECK((of_split > 0) == (split < gqa_active_splits(kv_len, splits)),
                  "kv_len %d: split %d of %d has %d tiles", kv_len, split, splits, of_split);
            active += of_split > 0;
        }
        CHECK(active >= 1 && active == gqa_active_splits(kv_len, splits), "kv_len %d: %d active splits",
              kv_len, active);
        const bool once = std::all_of(taken.begin(), taken.end(), [](int count) { return count == 1; });
        CHECK(once, "kv_len %d, %d splits: a tile is not taken exactly once", kv_len, splits);
    }
}

}  // namespace

int main() {
    for (const Device& device : devices) {
        for (const Heads& heads : shapes) {
            for (int batch = 1; batch <= max_batch; ++batch) {
                const GqaDevice limits = limits_of(device);
                // Lengths next to the borders of splits, and of tiles, of which a split has whole ones.
                for (int max_len = 1; max_len <= 5000; max_len += max_len < 300 ? 1 : 31)
                    test_plan(heads, batch, max_len, device, limits);
                for (const int max_len : {2048, 4096, 8192, 16384, 32768, 65536, 131072})
                    test_plan(heads, batch, max_len, device, limits);
            }
        }
    }
    test_the_plans_that_were_measured();
    test_where_bulk_copies_are_taken();
    test_stages();
    for (int splits = 1; splits <= 40; ++splits) test_every_key_is_taken_once(splits);
    return test::failed();
}
