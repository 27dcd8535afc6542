// What gqa_decode has of its own where every KV head has one query head (MHA): both products on CUDA cores.
// An MMA would compute eight columns, seven of them for nothing, and its operands take 164 registers; here
// they are few enough for two blocks an SM, so that clusters of a size that is not one of a GPC's SMs still
// fill it.
//
// 16 lanes take a row of K or V, eight dimensions (16 bytes) each, so a warp takes two rows at a time. The
// halves of a warp have the same maximum and sums of their own, which are added at the end.
#pragma once

#include "cuda/common/ptx_guarded.cuh"
#include "cuda/gqa_stream.cuh"

namespace pykernels::cuda::gqa {

struct CoreDims {
    static constexpr bool exact = false, one_head = true;
    static constexpr int key_max = gqa_core_dims, value_max = gqa_core_dims;
    static constexpr int first_value = 0;

    int head_dim, n_values;

    __device__ __forceinline__ CoreDims(const GqaDecodeParams& params, const GqaPlan&, int)
        : head_dim(params.head_dim), n_values(params.head_dim) {}

    __device__ __forceinline__ int cell(const GqaPlan&, int group) const { return group; }
};

constexpr int row_lanes = 16;
static_assert(row_lanes * vector_elements == gqa_core_dims);
constexpr int lane_rows = gqa_tile_keys * row_lanes / warp_size;  // rows of a tile that a lane has a part of

// The running softmax of a warp: the maximum, and of the half warp's keys the sum of exponentials and the
// output's dimensions of the lane.
struct HalfPartial {
    float maximum = lowest;
    float sum = 0;
    float out[vector_elements] = {};
};

// Both halves, to the warp's row of the block's one head. All lanes call it.
template <class Stream>
__device__ __forceinline__ void store_rows(const HalfPartial& partial) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size,
              lane = static_cast<int>(threadIdx.x) % warp_size;
    const float sum = partial.sum + shuffle_xor(partial.sum, row_lanes);
    float outs[vector_elements];
#pragma unroll
    for (int d = 0; d < vector_elements; ++d)
        outs[d] = partial.out[d] + shuffle_xor(partial.out[d], row_lanes);
    if (lane >= row_lanes) return;
    float* row =
        reinterpret_cast<float*>(shared_memory()) + warp * gqa_tile_heads * gqa_row_floats(gqa_core_dims);
    auto* to = reinterpret_cast<float4*>(row + lane * vector_elements);
    store(to, make_float4(outs[0], outs[1], outs[2], outs[3]));
    store(to + 1, make_float4(outs[4], outs[5], outs[6], outs[7]));
    if (lane == 0)
        store(reinterpret_cast<float4*>(row + gqa_core_dims), make_float4(partial.maximum, sum, 0, 0));
}

// A tile at a time. K of the next one is issued after the scores of this one, V after its product.
template <class T, class Dims>
class CoreStream {
  public:
    static constexpr bool needs_sm_90 = true;  // it is planned in clusters alone
    static constexpr int resident_blocks = 2;
    template <class Softmax>
    using State = HalfPartial;

    __device__ __forceinline__ CoreStream(const Tiles<T>& tiles, const GqaPlan&, const Dims& dims)
        : tiles_(tiles),
          row_(static_cast<int>(threadIdx.x) % warp_size / row_lanes),
          dim_(static_cast<int>(threadIdx.x) % row_lanes * vector_elements),
          head_dim_(dims.head_dim) {}

    // The first tile is issued before kv_len is known.
    __device__ __forceinline__ void start() {
        const int key = tiles_.first_key;
        read<Reading::first>(keys_, tiles_.k_cache, key, key < tiles_.max_len);
        read<Reading::first>(values_, tiles_.v_cache, key, key < tiles_.max_len);
    }

    __device__ __forceinline__ void start_late() {
        const int key = tiles_.first_key;
        read<Reading::again>(keys_, tiles_.k_cache, key, tiles_.has_newest(key));
        read<Reading::again>(values_, tiles_.v_cache, key, tiles_.has_newest(key));
    }

    template <class Stamps>
    __device__ __forceinline__ void run(const T*, float scale, HalfPartial& state, Stamps& timestamps) {
        const int kv_len = tiles_.kv_len, step = tiles_.step;
        // The block's one head. It is loaded and unpacked for every tile: as floats it would cost eight
        // registers.
        const auto* q = reinterpret_cast<const uint4*>(reinterpret_cast<const T*>(shared_memory()) + dim_);
        for (int key = tiles_.first_key; key < kv_len; key += step) {
            const int valid_keys = kv_len - key, next = key + step;
            float scores[lane_rows];
            const uint4 q_vector = load(q);
#pragma unroll
            for (int i = 0; i < lane_rows; ++i)
                scores[i] = dot8(unpack8<T>(keys_[i]), unpack8<T>(q_vector), 0.0f) * scale;
            if (key == tiles_.first_key) timestamps.mark(TimestampPoint::first_scores);
            read<Reading::first>(keys_, tiles_.k_cache, next, next < kv_len);
            attend(scores, valid_keys, state);
            // The same key by a shuffle: else the eight offsets of K's rows would stay in registers for V's.
            const int next_value = shuffle_xor(next, row_lanes);
            read<Reading::first>(values_, tiles_.v_cache, next_value, next_value < kv_len);
        }
    }

  private:
    // Online softmax and the product with V. The tile has a valid key, of one half or of both.
    __device__ __forceinline__ void attend(float (&scores)[lane_rows], int valid_keys, HalfPartial& state) {
        float maximum = state.maximum;
#pragma unroll
        for (int i = 0; i < lane_rows; ++i) {
            const float score = warp_sum<row_lanes>(scores[i]);
            scores[i] = 2 * i + row_ < valid_keys ? score : lowest;
            maximum = fmaxf(maximum, scores[i]);
        }
        maximum = fmaxf(maximum, shuffle_xor(maximum, row_lanes));
        const float factor = exp2_approximate(state.maximum - maximum);
        state.maximum = maximum;
        state.sum *= factor;
#pragma unroll
        for (int d = 0; d < vector_elements; ++d) state.out[d] *= factor;
#pragma unroll
        for (int i = 0; i < lane_rows; ++i) {
            // Masked V is zeroed: 0 * NaN would be NaN.
            if (2 * i + row_ >= valid_keys) values_[i] = make_uint4(0, 0, 0, 0);
            const Floats8 value = unpack8<T>(values_[i]);
            const float weight = exp2_approximate(scores[i] - maximum);
            state.sum += weight;
#pragma unroll
            for (int d = 0; d < vector_elements; ++d) state.out[d] += weight * value[d];
        }
    }

    // Rows 2i and 2i + 1 of a tile are a warp's i-th load. For slots past max_len - 1 the last slot is loaded
    // instead; it is masked in the sums.
    template <Reading reading>
    __device__ __forceinline__ void read(uint4 (&vectors)[lane_rows], const T* cache, int first_key,
                                         bool issued) const {
        const bool loads = issued && dim_ < head_dim_;
#pragma unroll
        for (int i = 0; i < lane_rows; ++i) {
            const int slot = min(first_key + 2 * i + row_, tiles_.max_len - 1);
            const auto* from = reinterpret_cast<const uint4*>(
                cache + static_cast<uint32_t>(slot) * static_cast<uint32_t>(head_dim_) + dim_);
            if (reading == Reading::first)
                load_streamed_if(vectors[i], from, loads);
            else
                load_fresh_if(vectors[i], from, loads);
        }
    }

    const Tiles<T>& tiles_;
    const int row_, dim_, head_dim_;  // the lane's: of two rows, its first dimension
    uint4 keys_[lane_rows] = {}, values_[lane_rows] = {};
};

}  // namespace pykernels::cuda::gqa
