// The plan of the GEMV on tensor cores, a pure function: which kernel takes which sizes, and that every row
// pair, K tile and byte of shared memory has its place.
#include <algorithm>
#include <cstdint>

#include "check.h"
#include "cuda/gemv_mma_plan.h"
#include "devices.h"

namespace {

using namespace pykernels::cuda;
using pykernels::test::Device, pykernels::test::devices;

// [first, last) of share i, as the kernel has them.
int begin_of(int i, int each, int longer) {
    return gemv_mma_first(i, each, longer);
}

void test_shape(const GemvMmaShape& shape) {
    CHECK(shape.warps >= gemv_mma_max_batch, "%d warps finish %d sequences", shape.warps, gemv_mma_max_batch);
    CHECK(gemv_mma_chunk_pairs % (shape.row_tiles * gemv_mma_tile_pairs) == 0, "%d row tiles",
          shape.row_tiles);
    CHECK(shape.stage_bytes() == shape.row_tiles * 16 * shape.k_tile_columns() * 2, "%d bytes a stage",
          shape.stage_bytes());
    CHECK(shape.sums_offset() == shape.warps * shape.stages * shape.stage_bytes(), "sums at %d",
          shape.sums_offset());
    CHECK(shape.squares_offset() - shape.sums_offset() == shape.warps * 32 * 8 * 2 * 4, "squares at %d",
          shape.squares_offset());
    CHECK(shape.shared_bytes() - shape.squares_offset() == shape.warps * 8 * 4, "ends at %d",
          shape.shared_bytes());
}

void test_plan(int pairs, int width, int batch, bool programmatic, const Device& device) {
    const GemvDevice limits = {device.sm_count, device.shared_bytes};
    const GemvMmaPlan plan = plan_gemv_mma(pairs, width, batch, true, programmatic, limits);
    CHECK(plan.shape >= 0, "%d row pairs, width %d, batch %d on %s: CUDA cores", pairs, width, batch,
          device.name);
    const GemvMmaShape& shape = gemv_mma_shapes[plan.shape];
    // x in registers up to 4096 columns.
    CHECK((shape.resident_k_tiles > 0) == (width <= 4096), "width %d on %s: shape %d", width, device.name,
          plan.shape);
    CHECK((plan.shape < 2) == (device.shared_bytes >= 227 * 1024), "width %d on %s: shape %d", width,
          device.name, plan.shape);
    CHECK(plan.shared_bytes >= shape.shared_bytes() && plan.shared_bytes <= limits.shared_bytes,
          "%d bytes on %s", plan.shared_bytes, device.name);
    // As in the other GEMVs: in PDL launches no two blocks fit an SM.
    if (programmatic)
        CHECK(2 * (plan.shared_bytes + 1024) > limits.shared_bytes + 1024, "two of %d bytes fit on %s",
              plan.shared_bytes, device.name);
    CHECK(plan.programmatic == programmatic, "programmatic: %d", plan.programmatic);

    CHECK(plan.blocks == std::min(pairs, limits.sm_count), "%d blocks on %s", plan.blocks, device.name);
    int next = 0;
    for (int block = 0; block < plan.blocks; ++block) {
        const int begin = begin_of(block, plan.block_pairs, plan.longer_blocks),
                  end = begin_of(block + 1, plan.block_pairs, plan.longer_blocks);
        CHECK(begin == next && end > begin && end - begin <= pairs / plan.blocks + 1,
              "block %d has row pairs %d to %d of %d", block, begin, end, pairs);
        next = end;
    }
    CHECK(next == pairs, "%d of %d row pairs are taken", next, pairs);

    const int k_tiles = (width + shape.k_tile_columns() - 1) / shape.k_tile_columns();
    next = 0;
    for (int warp = 0; warp < shape.warps; ++warp) {
        const int begin = begin_of(warp, plan.slice_k_tiles, plan.longer_slices),
                  end = begin_of(warp + 1, plan.slice_k_tiles, plan.longer_slices);
        CHECK(begin == next && end - begin <= k_tiles / shape.warps + 1, "warp %d has K tiles %d to %d of %d",
              warp, begin, end, k_tiles);
        if (shape.resident_k_tiles > 0)
            CHECK(end - begin <= shape.resident_k_tiles, "%d K tiles of x in %d places", end - begin,
                  shape.resident_k_tiles);
        next = end;
    }
    CHECK(next == k_tiles, "%d of %d K tiles are taken", next, k_tiles);
}

void test_choice() {
    const GemvDevice h200 = {132, 227 * 1024};
    const auto shape = [&](int pairs, int width, int batch, bool aligned = true) {
        return plan_gemv_mma(pairs, width, batch, aligned, true, h200).shape;
    };
    // Batch 1 stays on CUDA cores: o, down, gate, lm_head of Qwen2.5-7B.
    CHECK(shape(3584 / 2, 3584, 1) == -1 && shape(3584 / 2, 18944, 1) == -1 && shape(18944, 3584, 1) == -1 &&
              shape(152064 / 2, 3584, 1) == -1,
          "batch 1");
    CHECK(shape(3584 / 2, 3584, 2) == 0 && shape(3584 / 2, 18944, 2) == 1, "batch 2");
    // Rows that are not vectors, more sequences than the tensor core is wide, too little shared memory.
    CHECK(shape(3584 / 2, 3584, 2, false) == -1 && shape(3584 / 2, 3584, 9) == -1, "refused");
    CHECK(plan_gemv_mma(1792, 3584, 8, true, true, {132, 48 * 1024}).shape == -1, "48 KB");
}

}  // namespace

int main() {
    for (const GemvMmaShape& shape : gemv_mma_shapes) test_shape(shape);
    for (const Device& device : devices) {
        for (int batch = 2; batch <= gemv_mma_max_batch; ++batch) {
            for (const bool programmatic : {false, true}) {
                // q, k, qkv, o, gate and up, down, lm_head of the studied models, Llama-3.2-1B, and odd ones.
                for (const int width : {8, 520, 2048, 3584, 4096, 4104, 8192, 14336, 18944, 100000})
                    for (const int pairs : {1, 7, 131, 133, 256, 1024, 1792, 2304, 8192, 18944, 76032})
                        test_plan(pairs, width, batch, programmatic, device);
            }
        }
    }
    test_choice();
    return pykernels::test::failed();
}
