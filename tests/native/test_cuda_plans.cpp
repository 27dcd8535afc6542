// The plans of the CUDA kernels, which are pure functions: what must hold for every shape and device, checked
// without either.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "check.h"
#include "cuda/argmax_plan.h"
#include "cuda/gemv_plan.h"
#include "cuda/int4_gemv_plan.h"
#include "devices.h"
#include "params.h"

namespace {

using namespace pykernels;
using namespace pykernels::cuda;
using test::Device, test::devices;

struct Model {
    const char* name;
    int hidden, intermediate, n_heads, n_kv_heads;
};

constexpr Model models[] = {
    {"qwen2.5-7b", 3584, 18944, 28, 4},
    {"llama-3.1-8b", 4096, 14336, 32, 8},
    {"mistral-7b-v0.3", 4096, 14336, 32, 8},
};

constexpr int head_dim = 128;

// Every row pair is assigned to exactly one block; blocks have equal numbers, or one more, and none is empty.
void test_row_pairs_are_assigned_once(int pairs, const Device& device) {
    const GemvPlan plan = plan_gemv(pairs, 4096, 1, true, false, {device.sm_count, device.shared_bytes});
    CHECK(plan.blocks >= 1 && plan.blocks <= device.sm_count, "%d blocks of %d row pairs on %s", plan.blocks,
          pairs, device.name);
    int next = 0;
    for (int block = 0; block < plan.blocks; ++block) {
        const int begin = gemv_first_pair(pairs, block, plan.blocks);
        const int end = gemv_first_pair(pairs, block + 1, plan.blocks);
        CHECK(begin == next, "block %d of %d begins at row pair %d, not %d", block, plan.blocks, begin, next);
        const int least = pairs / plan.blocks;
        CHECK(end - begin == least || end - begin == least + 1, "block %d of %d has %d of %d row pairs",
              block, plan.blocks, end - begin, pairs);
        next = end;
    }
    CHECK(next == pairs, "%d of %d row pairs are assigned", next, pairs);
}

void test_gemv_plan(const char* what, int pairs, int width, const Device& device) {
    constexpr int batch = 1;  // test_gemv_mma_plan.cpp has more
    const GemvDevice limits = {device.sm_count, device.shared_bytes};
    const GemvPlan plan = plan_gemv(pairs, width, batch, true, true, limits);
    CHECK(plan.streamed, "%s, batch %d: not streamed on %s", what, batch, device.name);
    CHECK(plan.shared_bytes > 0 && plan.shared_bytes <= device.shared_bytes, "%s, batch %d: %d bytes on %s",
          what, batch, plan.shared_bytes, device.name);
    // Programmatic launches: two blocks never fit an SM, which has a kilobyte more than a block may take and
    // keeps one for each.
    CHECK(2 * (plan.shared_bytes + 1024) > device.shared_bytes + 1024,
          "%s, batch %d: two of %d bytes fit on %s", what, batch, plan.shared_bytes, device.name);
    CHECK(plan.vectors == 1 || (plan.vectors == 2 && plan.x_in_shared), "%s, batch %d: %d vectors", what,
          batch, plan.vectors);
    // 80 KB an SM in flight where x fits beside them, 160 KB where a block may have 227.
    if (device.shared_bytes >= 227 * 1024) CHECK(plan.vectors == 2, "%s on %s", what, device.name);
    // A thread finishes one row pair of one sequence, every partial of a chunk has a slot, and a chunk is a
    // multiple of the warp groups.
    CHECK(plan.chunk_pairs >= gemv_groups && plan.chunk_pairs % gemv_groups == 0 &&
              plan.chunk_pairs * batch <= gemv_threads,
          "%s, batch %d: chunks of %d", what, batch, plan.chunk_pairs);

    // The regions follow one another, each large enough and aligned for its accesses.
    const int sums = gemv_sums_offset(plan), squares = gemv_squares_offset(plan);
    const int x = gemv_x_offset(plan, batch);
    CHECK(sums >= gemv_stages * 2 * plan.vectors * gemv_threads * 16 && sums % 16 == 0, "%s: sums at %d",
          what, sums);
    CHECK(squares - sums >= gemv_group_warps * plan.chunk_pairs * batch * 8, "%s: squares at %d", what,
          squares);
    CHECK(x - squares >= batch * gemv_warps * 4 && x % 16 == 0, "%s: x at %d", what, x);
    const int64_t end = x + (plan.x_in_shared ? int64_t{batch} * width * 2 : 0);
    CHECK(end <= plan.shared_bytes, "%s, batch %d: ends at %lld of %d bytes", what, batch,
          static_cast<long long>(end), plan.shared_bytes);

    for (const GemvPlan& plain :
         {plan_gemv(pairs, width, 1, false, true, limits), plan_gemv(pairs, width, 2, true, true, limits)})
        CHECK(!plain.streamed && plain.shared_bytes == 0 && plain.blocks == plan.blocks,
              "%s without vectors, or of two sequences", what);
}

void test_gemv_shapes(const Device& device) {
    for (int pairs = 1; pairs <= 600; ++pairs) test_row_pairs_are_assigned_once(pairs, device);
    for (const Model& model : models) {
        const int q = model.n_heads * head_dim, kv = model.n_kv_heads * head_dim;
        for (const int pairs : {q / 2, kv / 2, (q + 2 * kv) / 2, model.hidden / 2, model.intermediate})
            test_row_pairs_are_assigned_once(pairs, device);
        test_gemv_plan("q", q / 2, model.hidden, device);
        test_gemv_plan("k", kv / 2, model.hidden, device);
        test_gemv_plan("gate", model.intermediate / 2, model.hidden, device);
        test_gemv_plan("down", model.hidden / 2, model.intermediate, device);
        test_gemv_plan("qkv_gemv", (q + 2 * kv) / 2, model.hidden, device);
        test_gemv_plan("swiglu_gemv", model.intermediate, model.hidden, device);
    }
    // An x that no block can hold stays where it is.
    const GemvPlan wide = plan_gemv(100, 1 << 20, 1, true, false, {device.sm_count, device.shared_bytes});
    CHECK(wide.streamed && !wide.x_in_shared, "%d bytes of shared memory", wide.shared_bytes);
}

void test_int4_plan(const char* what, const Int4GemvSizes& sizes, const Device& device) {
    const Int4GemvPlan plan = plan_int4_gemv(sizes, true, {device.sm_count, device.shared_bytes});
    const auto context = [&](const char* part) {
        static char text[200];
        std::snprintf(text, sizeof text, "%s: %s, batch %d, %d groups%s, %s", part, what, sizes.batch,
                      sizes.n_groups, sizes.zeros ? " with zeros" : "", device.name);
        return text;
    };
    CHECK(plan.blocks == std::min(sizes.pairs, device.sm_count), "%s: %d", context("blocks"), plan.blocks);
    CHECK(plan.warps >= 4 && plan.warps <= int4_max_warps && plan.warps % 4 == 0, "%s: %d", context("warps"),
          plan.warps);
    // It fits, and no second block beside it.
    CHECK(plan.shared_bytes <= device.shared_bytes && 2 * plan.shared_bytes > device.shared_bytes, "%s: %d",
          context("shared memory"), plan.shared_bytes);
    // Every row pair of a phase and sequence has a thread, every column a panel.
    CHECK(plan.phase_pairs >= 1 && plan.phase_pairs * sizes.batch <= 32 * plan.warps, "%s: %d",
          context("row pairs of a phase"), plan.phase_pairs);
    CHECK(plan.panel % int4_k_tile == 0 && plan.panel * plan.panels >= sizes.width &&
              plan.panel * (plan.panels - 1) < sizes.width,
          "%s: %d of %d columns", context("panels"), plan.panels, plan.panel);

    // The parts follow one another, each as long as what it holds.
    const int tiles = (plan.phase_pairs + 7) / 8, columns = std::min(plan.panel, sizes.width);
    const int group_size = sizes.width / sizes.n_groups;
    int groups = 0;  // that a panel touches
    for (int panel = 0; panel < plan.panels; ++panel) {
        const int begin = panel * plan.panel, end = std::min(begin + plan.panel, sizes.width);
        groups = std::max(groups, (end - 1) / group_size - begin / group_size + 1);
    }
    const int scales = int4_scales_offset(plan), zeros = int4_zeros_offset(plan),
              sums = int4_sums_offset(plan);
    const int squares = int4_squares_offset(plan, sizes.batch), x = int4_x_offset(plan, sizes.batch);
    CHECK(scales >= plan.warps * int4_stages * 16 * int4_k_tile_pitch, "%s", context("stream"));
    // Wherever a row begins, its last aligned 16 bytes are in its slot.
    CHECK(plan.scale_pitch >= (14 + 2 * groups + 15) / 16 * 16, "%s: %d", context("scales"),
          plan.scale_pitch);
    CHECK(zeros - scales >= tiles * 16 * plan.scale_pitch, "%s", context("scales"));
    CHECK(!sizes.zeros || plan.zero_pitch >= (15 + groups + 15) / 16 * 16, "%s: %d", context("zero points"),
          plan.zero_pitch);
    CHECK(sums - zeros >= tiles * 16 * plan.zero_pitch, "%s", context("zero points"));
    CHECK(squares - sums >= (plan.warps + tiles - 1) * 16 * sizes.batch * 4, "%s", context("sums"));
    CHECK(x - squares >= sizes.batch * plan.warps * 4, "%s", context("squares"));
    CHECK(plan.x_pitch >= columns * 2 && x + (sizes.batch + sizes.norm) * plan.x_pitch <= plan.shared_bytes,
          "%s", context("x"));
    for (const int offset :
         {scales, zeros, sums, squares, x, plan.scale_pitch, plan.zero_pitch, plan.x_pitch})
        CHECK(offset % 16 == 0, "%s: %d", context("alignment"), offset);
    // Eight rows have no bank conflict: an odd number of 16 bytes, and for x of 64 bytes.
    CHECK(plan.scale_pitch % 32 == 16 && plan.zero_pitch % 32 == (sizes.zeros ? 16 : 0) &&
              int4_k_tile_pitch % 128 == 16 && plan.x_pitch % 128 == 64,
          "%s", context("banks"));

    // What the models run at batch 1 on an H200: one phase, and 64 KB on their way.
    if (device.shared_bytes >= 227 * 1024 && device.sm_count >= 132 && sizes.batch == 1 &&
        sizes.width < 20000 && group_size >= 128) {
        CHECK(plan.panels == 1 && plan.phase_pairs * plan.blocks >= sizes.pairs, "%s", context("one phase"));
        CHECK(plan.warps * (int4_stages - 1) * 16 * int4_k_tile_bytes >= 64 * 1024, "%s: %d warps",
              context("on their way"), plan.warps);
    }
}

// clusters: of two blocks, resident at once; 0: none.
void test_int4_gemv_fast_plan(const char* what, const Int4GemvSizes& sizes, bool programmatic,
                              const Device& device, int clusters) {
    const GemvDevice limits = {device.sm_count, device.shared_bytes};
    const Int4GemvFastPlan plan = plan_int4_gemv_fast(sizes, true, programmatic, limits, clusters);
    const auto context = [&](const char* part) {
        static char text[200];
        std::snprintf(text, sizeof text, "%s: %s, batch %d, %d groups, %s%s, %d clusters", part, what,
                      sizes.batch, sizes.n_groups, device.name, programmatic ? ", programmatic" : "",
                      clusters);
        return text;
    };
    CHECK(!plan_int4_gemv_fast(sizes, false, true, limits).fits, "%s", context("only x in order"));
    const int group_size = sizes.width / sizes.n_groups;
    // What an H200 runs at batch 1 of the models; and never what it cannot.
    if (device.shared_bytes >= 227 * 1024 && device.sm_count >= 132 && sizes.batch == 1 &&
        sizes.width < 20000 && group_size == 128)
        CHECK(plan.fits, "%s", context("the models' case"));
    if (!plan.fits) return;
    CHECK(sizes.width % 256 == 0 && group_size % 128 == 0, "%s", context("whole chunks"));
    // Every chunk of 128 columns finds its group by a shift.
    for (int chunk = 0; chunk < sizes.width / 128; ++chunk)
        CHECK(chunk >> plan.group_shift == chunk * 128 / group_size, "%s: chunk %d", context("group"), chunk);
    // Blocks share rows where x is long, and only there.
    CHECK(
        plan.ranks == (clusters > 0 && !sizes.norm && sizes.width >= 12288 && sizes.width % 512 == 0 ? 2 : 1),
        "%s: %d", context("ranks"), plan.ranks);
    const int width = sizes.width / plan.ranks, sharing = plan.blocks / plan.ranks;
    CHECK(plan.k_tiles * int4_k_tile == width, "%s", context("K tiles"));
    // The parts follow one another, each as long as what it holds; and no second block fits beside this one,
    // or no third where half of the warps leave room for another kernel's.
    const int most = plan.block_pairs + (plan.longer_blocks > 0), tiles = int4_row_tiles(most);
    CHECK(plan.warps >= 4 && plan.warps <= int4_max_warps && plan.warps == 1 << plan.warps_log2, "%s: %d",
          context("warps"), plan.warps);
    // o, as behind attention.
    if (device.sm_count >= 108 && sizes.batch == 1 && sizes.width == 2 * sizes.pairs && !sizes.norm)
        CHECK(plan.warps == int4_max_warps / 2, "%s: %d", context("half of the warps"), plan.warps);
    // Sums are the same to the bit however a kernel is launched.
    const Int4GemvFastPlan other = plan_int4_gemv_fast(sizes, true, !programmatic, limits, clusters);
    CHECK(plan.warps == other.warps && plan.ranks == other.ranks && plan.blocks == other.blocks,
          "%s: %d warps, %d ranks, %d blocks", context("the other launches"), plan.warps, plan.ranks,
          plan.blocks);
    const bool may_share = programmatic && plan.warps == int4_max_warps / 2;
    const int stages = plan.ranks == 2 ? int4_gemv_split_stages : int4_gemv_fast_stages;
    CHECK(plan.sums_offset >= plan.warps * stages * 16 * (128 + 4), "%s", context("stream"));
    CHECK(plan.squares_offset - plan.sums_offset >= (plan.warps + tiles - 1) * 16 * sizes.batch * 16 &&
              plan.sums_offset % 16 == 0,
          "%s", context("sums"));
    CHECK(plan.factors_offset - plan.squares_offset >= sizes.batch * plan.warps * 4 &&
              plan.factors_offset % 16 == 0,
          "%s", context("squares"));
    CHECK(plan.x_offset - plan.factors_offset >= width / 128 * sizes.batch * 32 && plan.x_offset % 16 == 0,
          "%s", context("factors"));
    const int pushed_bytes = plan.ranks == 2 ? 16 + most * sizes.batch * 8 : 0;
    CHECK(plan.pushed_offset % 16 == 0 && plan.pushed_offset - plan.x_offset >= 3 * width * sizes.batch &&
              plan.pushed_offset + pushed_bytes <= plan.shared_bytes &&
              plan.shared_bytes <= device.shared_bytes &&
              (may_share ? 3 : 2) * plan.shared_bytes > device.shared_bytes,
          "%s: %d", context("shared memory"), plan.shared_bytes);
    // Every row pair has one block, and blocks differ by one row pair at most.
    CHECK(sharing * plan.block_pairs + plan.longer_blocks == sizes.pairs && plan.longer_blocks < sharing &&
              plan.block_pairs > 0,
          "%s: %d x %d + %d", context("row pairs"), sharing, plan.block_pairs, plan.longer_blocks);
    // Divisions by multiplication, of every number the kernel divides.
    const auto divides = [&](Int4Divisor by, int d, int64_t highest) {
        for (int64_t n = 0; n <= highest; ++n) {
            const int64_t quotient = by.inverse ? n * by.inverse >> 32 : n;
            if (quotient != n / d) return false;
        }
        return true;
    };
    CHECK(divides(plan.by_k_tiles, plan.k_tiles, int64_t{tiles} * plan.k_tiles), "%s", context("by K tiles"));
    for (const int i : {0, plan.longer_blocks > 0 ? 1 : 0}) {
        const int items = int4_row_tiles(plan.block_pairs + i) * plan.k_tiles;
        CHECK(divides(plan.by_items[i], items, int64_t{items} * plan.warps), "%s", context("by items"));
    }
}

void test_int4_plans(const Device& device) {
    for (const Model& model : models) {
        const int q = model.n_heads * head_dim, kv = model.n_kv_heads * head_dim;
        for (int batch = 1; batch <= max_batch; ++batch) {
            for (const int group_size : {32, 64, 128, 0}) {
                for (const bool zeros : {false, true}) {
                    const auto test = [&](const char* what, int pairs, int width, bool norm) {
                        const int n_groups = group_size ? std::max(width / group_size, 1) : 1;
                        test_int4_plan(what, {pairs, width, batch, n_groups, 1, norm, zeros}, device);
                        for (const bool programmatic : {false, true}) {
                            for (const int clusters : {0, device.sm_count / 2}) {
                                test_int4_gemv_fast_plan(what,
                                                         {pairs, width, batch, n_groups, 1, norm, zeros},
                                                         programmatic, device, clusters);
                            }
                        }
                    };
                    test("q", q / 2, model.hidden, false);
                    test("k", kv / 2, model.hidden, false);
                    test("gate", model.intermediate / 2, model.hidden, false);
                    test("down", model.hidden / 2, model.intermediate, false);
                    test("int4_qkv_gemv", (q + 2 * kv) / 2, model.hidden, true);
                    test("int4_swiglu_gemv", model.intermediate, model.hidden, true);
                    test("a wide one", 100, 1 << 20, true);
                    test("a narrow one", 3, 32, false);
                }
            }
        }
    }
}

// The items of the warps, as the kernel assigns them.
void test_every_item_is_assigned_once(int tiles, int k_tiles, int warps) {
    const int items = tiles * k_tiles;
    int next = 0;
    std::vector<int> slots;
    for (int warp = 0; warp < warps; ++warp) {
        const int begin = int4_first_item(items, warp, warps), end = int4_first_item(items, warp + 1, warps);
        CHECK(begin == next && end - begin <= items / warps + 1, "warp %d has %d to %d", warp, begin, end);
        next = end;
        for (int item = begin; item < end; ++item) {
            CHECK(int4_warp_of(items, item, warps) == warp, "item %d is warp %d's", item, warp);
            if (item == begin || item % k_tiles == 0) slots.push_back(warp + item / k_tiles);
        }
    }
    CHECK(next == items, "%d of %d items are assigned", next, items);
    // Every partial of a row tile has its own slot.
    const bool apart = std::adjacent_find(slots.begin(), slots.end(), std::greater_equal<>()) == slots.end();
    CHECK(apart && slots.back() < warps + tiles - 1, "%d row tiles of %d K tiles, %d warps", tiles, k_tiles,
          warps);
}

// Every logit is some block's, in turn; only a cluster's last blocks may be short, and no block's threads are
// all idle for want of a smaller cluster.
void test_argmax(int vocab, bool vectors, const Device& device) {
    const ArgmaxPlan plan = plan_argmax(vocab, vectors, device.sm_90);
    const int items = vectors ? vocab / 8 : vocab, blocks = plan.cluster_blocks;
    CHECK(blocks >= 1 && blocks <= (device.sm_90 ? 8 : 1) && (blocks & (blocks - 1)) == 0,
          "argmax of %d: %d blocks on %s", vocab, blocks, device.name);
    CHECK(int64_t{blocks} * plan.block_items >= items && plan.block_items <= items,
          "argmax of %d: %d blocks of %d items", vocab, blocks, plan.block_items);
    CHECK(blocks == 1 || blocks / 2 * argmax_threads < items, "argmax of %d: %d blocks are too many", vocab,
          blocks);
    if (device.sm_90 && items >= 8 * argmax_threads) {
        CHECK(blocks == 8, "argmax of %d: %d blocks are too few", vocab, blocks);
    }
}

}  // namespace

int main() {
    for (const Device& device : devices) {
        test_gemv_shapes(device);
        for (const bool vectors : {false, true}) {
            for (int vocab = 8; vocab <= 40'000; vocab += 8) test_argmax(vocab, vectors, device);
            for (const int vocab : {128'256, 152'064}) test_argmax(vocab, vectors, device);
        }
        test_int4_plans(device);
    }
    for (const int warps : {4, 8, 12, 16}) {
        for (int tiles = 1; tiles <= 40; ++tiles) {
            for (int k_tiles = 1; k_tiles <= 80; ++k_tiles)
                test_every_item_is_assigned_once(tiles, k_tiles, warps);
        }
    }
    return test::failed();
}
