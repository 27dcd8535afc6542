// What the kernel for any head_dim has of its own: the dimensions that a block takes, and loads of K and V
// that leave out what is past them.
//
// head_dim is any multiple of 8 up to `max_dims`, 128 or 256. A lane's vectors are those of a head of
// max_dims dimensions. Vectors past head_dim are not loaded and stay zero, and q is padded with zeros, so
// that the products are the same.
#pragma once

#include "cuda/common/ptx_guarded.cuh"
#include "cuda/gqa_stream.cuh"

namespace pykernels::cuda::gqa {

template <int max_dims>
struct AnyDims {
    static constexpr bool exact = false, one_head = false;
    static constexpr int key_max = max_dims, value_max = gqa_max_value_dims;
    // K and V of so many tiles at a time fit a thread's registers.
    static constexpr int tiles = max_dims <= 128 ? 2 : 1;

    int head_dim;
    int first_value, n_values;  // the block's slice of V's dimensions

    __device__ __forceinline__ AnyDims(const GqaDecodeParams& params, const GqaPlan& plan, int group)
        : head_dim(params.head_dim) {
        const int slice = plan.value_slices == 1 ? 0 : group % plan.value_slices;
        first_value = slice * plan.value_dims;
        n_values = min(plan.value_dims, head_dim - first_value);
    }

    __device__ __forceinline__ int cell(const GqaPlan& plan, int group) const {
        return plan.value_slices == 1 ? group : group / plan.value_slices;
    }

    __device__ __forceinline__ void cap(float (&)[4]) const {}  // gqa_softcap.cuh has one
};

// Dims::tiles tiles at a time, of which the first has a valid key. K of the next ones is issued after S of
// these, V after O^T.
template <class T, class Dims>
class GuardedStream {
  public:
    static constexpr bool needs_sm_90 = false;
    static constexpr int resident_blocks = 1;  // of an SM
    template <class Softmax>
    using State = Partial<Dims::value_max, Softmax>;

    __device__ __forceinline__ GuardedStream(const Tiles<T>& tiles, const GqaPlan&, const Dims& dims)
        : tiles_(tiles), dims_(dims) {}

    // The first tile is issued before kv_len is known, and so is the second where the cache holds no more
    // than two.
    __device__ __forceinline__ void start() {
#pragma unroll
        for (int i = 0; i < Dims::tiles; ++i) {
            const int key = tiles_.first_key + i * tiles_.step;
            const bool known = i == 0 || tiles_.max_len <= 2 * tiles_.step;
            const bool issued = key < (known ? tiles_.max_len : tiles_.kv_len);
            read_keys<Reading::first>(i, key, issued);
            read_values<Reading::first>(i, key, issued);
        }
    }

    __device__ __forceinline__ void start_late() {
#pragma unroll
        for (int i = 0; i < Dims::tiles; ++i) {
            const int key = tiles_.first_key + i * tiles_.step;
            read_keys<Reading::again>(i, key, tiles_.has_newest(key));
            read_values<Reading::again>(i, key, tiles_.has_newest(key));
        }
    }

    // In place of both, behind the wait: this block may have read these tiles ahead of it.
    __device__ __forceinline__ void start_again() {
#pragma unroll
        for (int i = 0; i < Dims::tiles; ++i) {
            const int key = tiles_.first_key + i * tiles_.step;
            read_keys<Reading::again>(i, key, key < tiles_.kv_len);
            read_values<Reading::again>(i, key, key < tiles_.kv_len);
        }
    }

    template <class Softmax, class Stamps>
    __device__ __forceinline__ void run(const T* q, float scale, Partial<Dims::value_max, Softmax>& partial,
                                        Stamps& timestamps) {
        const int kv_len = tiles_.kv_len, step = tiles_.step;
        for (int key = tiles_.first_key; key < kv_len; key += Dims::tiles * step) {
            int valid_keys[Dims::tiles];  // of a second tile: none, where it is past kv_len
            float scores[Dims::tiles][4];
#pragma unroll
            for (int i = 0; i < Dims::tiles; ++i) {
                valid_keys[i] = kv_len - key - i * step;
                score<T>(scores[i], keys_[i], q, valid_keys[i], scale);
                dims_.cap(scores[i]);
            }
            tiles_.mark_scores(key, timestamps);
#pragma unroll
            for (int i = 0; i < Dims::tiles; ++i) {
                const int next = key + (Dims::tiles + i) * step;
                read_keys<Reading::first>(i, next, next < kv_len);
            }
            attend<T>(scores, values_, valid_keys, partial);
#pragma unroll
            for (int i = 0; i < Dims::tiles; ++i) {
                const int next = key + (Dims::tiles + i) * step;
                read_values<Reading::first>(i, next, next < kv_len);
            }
        }
    }

    // The first of the eight dimensions, counted in the slice, in V's vector j of a lane.
    static __device__ __forceinline__ int value_dim(int j) { return j * 64 + lane_group() * vector_elements; }

  private:
    template <Reading reading>
    static __device__ __forceinline__ void read(uint4& vector, const T* from, bool loads) {
        const auto* pointer = reinterpret_cast<const uint4*>(from);
        if (reading == Reading::first)
            load_streamed_if(vector, pointer, loads);
        else
            load_fresh_if(vector, pointer, loads);
    }

    template <Reading reading>
    __device__ __forceinline__ void read_keys(int tile, int first_key, bool issued) {
        const int lane_dim = lane_in_group() * vector_elements;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const T* row = row_of(tiles_.k_cache, first_key + lane_group() + 8 * half) + lane_dim;
#pragma unroll
            for (int i = 0; i < Dims::key_max / 32; ++i)
                read<reading>(keys_[tile].rows[half][i], row + i * 32,
                              issued && i * 32 + lane_dim < dims_.head_dim);
        }
    }

    template <Reading reading>
    __device__ __forceinline__ void read_values(int tile, int first_key, bool issued) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T* row = row_of(tiles_.v_cache, first_key + value_row(i, lane_in_group())) +
                           dims_.first_value + value_dim(0);
#pragma unroll
            for (int j = 0; j < Dims::value_max / 64; ++j)
                read<reading>(values_[tile].rows[i][j], row + j * 64,
                              issued && value_dim(j) < dims_.n_values);
        }
    }

    // For slots past max_len - 1 the last slot is loaded instead; it is masked in the sums.
    __device__ __forceinline__ const T* row_of(const T* cache, int key) const {
        return cache +
               static_cast<uint32_t>(min(key, tiles_.max_len - 1)) * static_cast<uint32_t>(dims_.head_dim);
    }

    const Tiles<T>& tiles_;
    const Dims& dims_;
    Keys<Dims::key_max> keys_[Dims::tiles] = {};
    Values<Dims::value_max> values_[Dims::tiles] = {};
};

}  // namespace pykernels::cuda::gqa
