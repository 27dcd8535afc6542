// How a warp of gqa_decode loads K and V: to registers, or with cp.async.bulk to its own ring in shared
// memory. The kernel calls start() before wait_for_producers(), start_late() after it where the launch is
// programmatic, and run() when q is in shared memory.
#pragma once

#include "cuda/common/timestamps.cuh"
#include "cuda/gqa_tile.cuh"

namespace pykernels::cuda::gqa {

// A warp's tiles of one KV head.
template <class T>
struct Tiles {
    const T* k_cache;
    const T* v_cache;
    int max_len, kv_len;
    int first_key;  // of the warp's first tile
    int step;       // keys from one of its tiles to the next
    bool programmatic;

    // Behind the scores of the tile of `key`: a timestamp, of the warp's first ones.
    template <class Stamps>
    __device__ __forceinline__ void mark_scores(int key, Stamps& timestamps) const {
        if constexpr (Stamps::enabled) {
            if (key == first_key) timestamps.mark(TimestampPoint::first_scores);
        }
    }

    // Whether the tile holds the newest key, which the previous launch may have written.
    __device__ __forceinline__ bool has_newest(int key) const {
        return key < kv_len && key + gqa_tile_keys >= kv_len;
    }
};

// Two tiles at a time, so that the latencies of one hide those of the other. K of the next two tiles is
// issued after S of these, V after O^T.
template <class T, class Dims>
class RegisterStream {
  public:
    static constexpr bool needs_sm_90 = false;
    static constexpr int head_dim = Dims::head_dim;
    static constexpr int resident_blocks = 1;  // of an SM
    template <class Softmax>
    using State = Partial<Dims::value_max, Softmax>;

    __device__ __forceinline__ RegisterStream(const Tiles<T>& tiles, const GqaPlan&, const Dims&)
        : tiles_(tiles) {}

    // The first tile is issued before kv_len is known, and so is the second where the cache holds no more
    // than two.
    __device__ __forceinline__ void start() {
        const int key = tiles_.first_key, second = key + tiles_.step, max_len = tiles_.max_len;
        if (key < max_len) read<Reading::first>(0, key);
        if (second < (max_len <= 2 * tiles_.step ? max_len : tiles_.kv_len)) read<Reading::first>(1, second);
    }

    __device__ __forceinline__ void start_late() {
        const int key = tiles_.first_key, second = key + tiles_.step;
        if (tiles_.has_newest(key)) read<Reading::again>(0, key);
        if (tiles_.has_newest(second)) read<Reading::again>(1, second);
    }

    // In place of both, behind the wait: this block may have read these tiles ahead of it.
    __device__ __forceinline__ void start_again() {
        const int key = tiles_.first_key, second = key + tiles_.step;
        if (key < tiles_.kv_len) read<Reading::again>(0, key);
        if (second < tiles_.kv_len) read<Reading::again>(1, second);
    }

    template <class Softmax, class Stamps>
    __device__ __forceinline__ void run(const T* q, float scale, Partial<head_dim, Softmax>& partial,
                                        Stamps& timestamps) {
        const int kv_len = tiles_.kv_len, step = tiles_.step;
        int key = tiles_.first_key;
        // Two tiles are worked on while the next two are in flight.
        for (; key + step < kv_len; key += 2 * step) {
            const int valid_keys[2] = {kv_len - key, kv_len - key - step};
            const int next[2] = {key + 2 * step, key + 3 * step};
            float scores[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) score<T>(scores[i], keys_[i], q, valid_keys[i], scale);
            tiles_.mark_scores(key, timestamps);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (next[i] < kv_len)
                    load_keys<Reading::first>(keys_[i], tiles_.k_cache, next[i], tiles_.max_len);
            }
            attend<T>(scores, values_, valid_keys, partial);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (next[i] < kv_len)
                    load_values<Reading::first>(values_[i], tiles_.v_cache, next[i], tiles_.max_len);
            }
        }
        if (key < kv_len) {  // the last of an odd number
            const int valid_keys[1] = {kv_len - key};
            float scores[1][4];
            score<T>(scores[0], keys_[0], q, valid_keys[0], scale);
            tiles_.mark_scores(key, timestamps);
            attend<T>(scores, values_, valid_keys, partial);
        }
    }

    // The first of the eight dimensions in V's vector j of a lane.
    static __device__ __forceinline__ int value_dim(int j) { return j * 64 + lane_group() * 8; }

  private:
    template <Reading reading>
    __device__ __forceinline__ void read(int i, int key) {
        load_keys<reading>(keys_[i], tiles_.k_cache, key, tiles_.max_len);
        load_values<reading>(values_[i], tiles_.v_cache, key, tiles_.max_len);
    }

    const Tiles<T>& tiles_;
    Keys<head_dim> keys_[2];
    Values<head_dim> values_[2];
};

// K of a tile is contiguous in memory, and so is V: each is one bulk copy with its own mbarrier, issued when
// its slot of the ring has been read. max_len is a multiple of gqa_tile_keys.
template <class T, class Dims>
class BulkStream {
  public:
    static constexpr bool needs_sm_90 = true;
    static constexpr int head_dim = Dims::head_dim;
    static constexpr int resident_blocks = 1;  // of an SM
    template <class Softmax>
    using State = Partial<Dims::value_max, Softmax>;

    __device__ __forceinline__ BulkStream(const Tiles<T>& tiles, const GqaPlan& plan, const Dims&)
        : tiles_(tiles), stages_(plan.ring_stages) {
        unsigned char* const rings = shared_memory() + plan.ring_offset;
        const int slots = 2 * stages_;
        ring_ = rings + warp() * slots * tile_bytes;
        barriers_ = reinterpret_cast<Mbarrier*>(rings + gqa_warps * slots * tile_bytes) + warp() * slots;
    }

    // The first tile is issued before kv_len is known. Not in a PDL launch: the tile with the newest
    // key must wait for the producer, and there is time.
    __device__ __forceinline__ void start() {
        if (lane() == 0) {
            for (int i = 0; i < 2 * stages_; ++i) barrier_init(barriers_ + i, 1);
            barriers_ready();
        }
        warp_barrier();
        for (int stage = 0; stage < stages_; ++stage) {
            const int key = tiles_.first_key + stage * tiles_.step;
            const bool issued = tiles_.programmatic ? key < tiles_.kv_len && !tiles_.has_newest(key)
                                                    : key < (stage == 0 ? tiles_.max_len : tiles_.kv_len);
            if (issued) issue_both(stage, key);
        }
    }

    __device__ __forceinline__ void start_late() {
        for (int stage = 0; stage < stages_; ++stage) {
            const int key = tiles_.first_key + stage * tiles_.step;
            if (tiles_.has_newest(key)) issue_both(stage, key);
        }
    }

    template <class Softmax, class Stamps>
    __device__ __forceinline__ void run(const T* q, float scale, Partial<head_dim, Softmax>& partial,
                                        Stamps& timestamps) {
        const int kv_len = tiles_.kv_len, ring_step = stages_ * tiles_.step;
        int stage = 0;
        uint32_t parity = 0;
        for (int key = tiles_.first_key; key < kv_len; key += tiles_.step) {
            const int valid_keys[1] = {kv_len - key};
            barrier_wait(barriers_ + 2 * stage, parity);
            const Keys<head_dim> keys = keys_of(stage);
            float scores[1][4];
            score<T>(scores[0], keys, q, valid_keys[0], scale);
            tiles_.mark_scores(key, timestamps);
            warp_barrier();  // all lanes have read K
            if (key + ring_step < kv_len) issue(2 * stage, tiles_.k_cache, key + ring_step);
            barrier_wait(barriers_ + 2 * stage + 1, parity);
            Values<head_dim> values[1] = {values_of(stage)};
            attend<T>(scores, values, valid_keys, partial);
            warp_barrier();  // all lanes have read V
            if (key + ring_step < kv_len) issue(2 * stage + 1, tiles_.v_cache, key + ring_step);
            if (++stage == stages_) {
                stage = 0;
                parity ^= 1;
            }
        }
        // A first tile was issued that kv_len does not reach: the block must not exit before the copy has
        // landed.
        if (!tiles_.programmatic && tiles_.first_key >= kv_len && tiles_.first_key < tiles_.max_len) {
            barrier_wait(barriers_, 0);
            barrier_wait(barriers_ + 1, 0);
        }
    }

    // The first of the eight dimensions in V's vector j of a lane: a lane's vectors are neighbours here.
    static __device__ __forceinline__ int value_dim(int j) {
        return (lane_group() * (head_dim / 64) + j) * vector_elements;
    }

  private:
    static constexpr int tile_bytes = gqa_tile_bytes(head_dim), row_vectors = head_dim / vector_elements;

    static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / warp_size; }
    static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_size; }

    __device__ __forceinline__ void issue(int slot, const T* cache, int key) {
        if (lane() != 0) return;
        barrier_expect(barriers_ + slot, tile_bytes);
        bulk_copy(ring_ + slot * tile_bytes, cache + static_cast<uint32_t>(key) * head_dim, tile_bytes,
                  barriers_ + slot);
    }
    __device__ __forceinline__ void issue_both(int stage, int key) {
        issue(2 * stage, tiles_.k_cache, key);
        issue(2 * stage + 1, tiles_.v_cache, key);
    }

    // All rows start in the same bank. Eight lanes read at once: four vectors of two rows of K, or vectors of
    // two lane groups in four rows of V. Lanes of odd rows (K), or odd t (V), read their vectors in swapped
    // order. K then has no bank conflict; V has two-way conflicts, four-way where head_dim is 64.

    __device__ __forceinline__ Keys<head_dim> keys_of(int stage) const {
        const auto* rows = reinterpret_cast<const uint4*>(ring_ + 2 * stage * tile_bytes);
        const int g = lane_group(), odd = g & 1;
        Keys<head_dim> keys;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint4 read[head_dim / 32];
#pragma unroll
            for (int i = 0; i < head_dim / 32; ++i)
                read[i] = load(rows + (g + 8 * half) * row_vectors + (i ^ odd) * 4 + lane_in_group());
#pragma unroll
            for (int i = 0; i < head_dim / 32; ++i) keys.rows[half][i] = odd ? read[i ^ 1] : read[i];
        }
        return keys;
    }

    __device__ __forceinline__ Values<head_dim> values_of(int stage) const {
        constexpr int vectors = head_dim / 64;
        const auto* rows = reinterpret_cast<const uint4*>(ring_ + (2 * stage + 1) * tile_bytes);
        const int t = lane_in_group(), odd = t & (vectors - 1);
        Values<head_dim> values;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint4 read[vectors];
#pragma unroll
            for (int j = 0; j < vectors; ++j)
                read[j] = load(rows + value_row(i, t) * row_vectors + lane_group() * vectors + (j ^ odd));
#pragma unroll
            for (int j = 0; j < vectors; ++j) values.rows[i][j] = odd ? read[j ^ (vectors - 1)] : read[j];
        }
        return values;
    }

    const Tiles<T>& tiles_;
    const int stages_;
    unsigned char* ring_;  // the warp's: of every stage, K and V
    Mbarrier* barriers_;
};

}  // namespace pykernels::cuda::gqa
