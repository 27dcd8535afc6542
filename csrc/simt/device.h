// cuda/common/ptx.cuh for the host: the same names, run by the executor.
//
// To add a function: declare it here as it is in ptx.cuh, with `Site site = Site::here()` last where it can
// go wrong. Memory goes through check_load and check_store, what lanes do together through exchange(), whose
// name must be its own. Anything that needs more of the executor gets a function in device_calls.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "simt/cuda_language.h"
#include "simt/device_calls.h"
#include "simt/numeric.h"
#include "simt/target.h"

namespace pykernels::cuda {

using simt::Site;

inline unsigned char* shared_memory() {
    return simt::shared_begin();
}

// --- loads and stores

template <class T>
T copy_out(const T* pointer) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) <= 16);
    T value;
    std::memcpy(&value, static_cast<const void*>(pointer), sizeof(T));
    return value;
}

template <class T>
T load(const T* pointer, Site site = Site::here()) {
    simt::check_load(pointer, sizeof(T), simt::Source::any, site);
    return copy_out(pointer);
}

template <class T>
void store(T* pointer, T value, Site site = Site::here()) {
    simt::check_store(pointer, sizeof(T), site);
    std::memcpy(static_cast<void*>(pointer), &value, sizeof(T));
}

inline uint4 load_once(const uint4* pointer, Site site = Site::here()) {
    simt::check_load(pointer, sizeof(uint4), simt::Source::global, site);
    return copy_out(pointer);
}

template <class T>
T load_from(const T* pointer, simt::Source source, Site site) {
    const bool usable = simt::check_load(pointer, sizeof(T), source, site);
    T value = copy_out(pointer);
    if (!usable) std::memset(static_cast<void*>(&value), 0xff, sizeof(T));  // NaN, so that a use shows
    return value;
}

template <class T>
T load_fresh(const T* pointer, Site site = Site::here()) {
    return load_from(pointer, simt::Source::fresh_global, site);
}

inline uint4 load_streamed(const uint4* pointer, Site site = Site::here()) {
    return load_from(pointer, simt::Source::streamed_global, site);
}

inline void prefetch_l2(const void* pointer, Site site = Site::here()) {
    simt::check_prefetch(pointer, site);
}

// A __device__ variable is plain host memory here, not one of the executor's buffers.
inline uint4 load_variable(const uint4* pointer) {
    return copy_out(pointer);
}

// --- barriers, and what the lanes of a warp do together

inline void block_barrier(Site site = Site::here()) {
    simt::meet_block(site);
}

inline bool block_any(bool vote, Site site = Site::here()) {
    return simt::vote_in_block(vote, site);
}

inline void warp_barrier(Site site = Site::here()) {
    simt::meet_warp(site);
}

// The values of all lanes, once every lane has arrived.
template <class T>
class Lanes {
  public:
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= simt::exchange_slot_bytes);
    Lanes(const char* name, const T& value, Site site)
        : slots_(simt::exchange(&value, sizeof(T), name, site)), name_(name), site_(site) {}
    T operator[](int lane) const {
        if (lane < 0 || lane >= simt::warp_lane_count()) simt::no_lane(name_, lane, site_);
        T value;
        std::memcpy(&value, slots_ + static_cast<size_t>(lane) * simt::exchange_slot_bytes, sizeof(T));
        return value;
    }

  private:
    const unsigned char* slots_;
    const char* name_;
    Site site_;
};

template <class T>
T shuffle_xor(T value, int mask, Site site = Site::here()) {
    return Lanes<T>("shuffle_xor", value, site)[simt::lane_index() ^ mask];
}

// A lane that would read past the last one keeps its own value.
template <class T>
T shuffle_down(T value, int distance, Site site = Site::here()) {
    const int from = simt::lane_index() + distance;
    return Lanes<T>("shuffle_down", value, site)[from < 32 ? from : simt::lane_index()];
}

template <class T>
T shuffle_index(T value, int lane, Site site = Site::here()) {
    return Lanes<T>("shuffle_index", value, site)[lane % 32];
}

inline uint32_t ballot(bool vote, Site site = Site::here()) {
    const Lanes<bool> votes("ballot", vote, site);
    uint32_t bits = 0;
    for (int lane = 0; lane < simt::warp_lane_count(); ++lane) bits |= uint32_t{votes[lane]} << lane;
    return bits;
}

// --- asynchronous copies

using Mbarrier = uint64_t;

inline void barrier_init(Mbarrier* barrier, uint32_t arrivals, Site site = Site::here()) {
    simt::make_barrier(barrier, arrivals, site);
}

inline void barriers_ready() {
    simt::show_barriers();
}

inline void barrier_expect(Mbarrier* barrier, uint32_t bytes, Site site = Site::here()) {
    simt::arrive(barrier, bytes, site);
}

inline void bulk_copy(void* to_shared, const void* from_global, uint32_t bytes, Mbarrier* barrier,
                      Site site = Site::here()) {
    simt::begin_bulk_copy(to_shared, from_global, bytes, barrier, site);
}

inline void barrier_wait(Mbarrier* barrier, uint32_t parity, Site site = Site::here()) {
    simt::wait_barrier(barrier, parity, site);
}

inline void async_copy16(void* to_shared, const void* from_global, Site site = Site::here()) {
    simt::begin_async_copy(to_shared, from_global, 16, site);
}

inline void async_copy4(void* to_shared, const void* from_global, Site site = Site::here()) {
    simt::begin_async_copy(to_shared, from_global, 4, site);
}

inline void async_copy16_or_zeros(void* to_shared, const void* from_global, bool copies,
                                  Site site = Site::here()) {
    if (copies) return simt::begin_async_copy(to_shared, from_global, 16, site);
    store(static_cast<uint4*>(to_shared), uint4{}, site);
}

inline void async_commit() {
    simt::commit_async_copies();
}

template <int pending>
void async_wait() {
    simt::wait_async_copies(pending);
}

// --- launches and blocks

inline void launch_dependents() {
    if (has_programmatic_launch) simt::trigger_dependents();
}

inline void wait_for_producers(Site site = Site::here()) {
    if (has_programmatic_launch) simt::wait_producers(site);
}

inline int cluster_rank() {
    return simt::cluster_rank();
}

inline void cluster_arrive(Site site = Site::here()) {
    simt::arrive_in_cluster(site);
}

inline void cluster_wait(Site site = Site::here()) {
    simt::wait_in_cluster(site);
}

inline float4 load_shared_of(int rank, const float4* own, Site site = Site::here()) {
    return copy_out(static_cast<const float4*>(simt::check_load_of_cluster(rank, own, sizeof(float4), site)));
}

struct ClusterAddress {
    int rank;
    const void* own;
};

inline ClusterAddress remote_address(int rank, const void* own) {
    return {rank, own};
}

template <class T>
void push(ClusterAddress to, T value, ClusterAddress barrier, Site site = Site::here()) {
    static_assert(std::is_same_v<T, float4> || std::is_same_v<T, float2>);
    simt::begin_push(to.rank, to.own, &value, sizeof(T), barrier.rank, barrier.own, site);
}

inline void wait_for_pushes(Mbarrier* barrier, Site site = Site::here()) {
    simt::wait_barrier(barrier, 0, site);
}

// One 32-bit word at a time, other threads running in between, as on hardware. Flagged words need no other
// ordering between blocks.
template <class T>
void store_flagged(T* pointer, T value, Site site = Site::here()) {
    float words[sizeof(T) / sizeof(float)];
    std::memcpy(words, &value, sizeof(T));
    for (size_t i = 0; i < sizeof(T) / sizeof(float); ++i) {
        float* const word = reinterpret_cast<float*>(pointer) + i;
        if (words[i] == 0.0f) words[i] = -0.0f;
        simt::check_flagged(word, sizeof(float), true, site);
        std::memcpy(word, &words[i], sizeof(float));
    }
}

template <class T>
T load_flagged(const T* pointer, Site site = Site::here()) {
    simt::check_flagged(pointer, sizeof(T), false, site);
    return copy_out(pointer);
}

inline bool is_written(const float4& words) {
    uint32_t bits[4];
    std::memcpy(bits, &words, sizeof bits);
    return bits[0] != 0 && bits[1] != 0 && bits[2] != 0 && bits[3] != 0;
}

template <class T>
void clear_flagged(T* pointer, Site site = Site::here()) {
    simt::check_flagged(pointer, sizeof(T), true, site);
    std::memset(static_cast<void*>(pointer), 0, sizeof(T));
}

inline void fence_device() {
    simt::fence();
}

inline uint32_t atomic_increment(uint32_t* counter, uint32_t last, Site site = Site::here()) {
    simt::check_atomic(counter, sizeof *counter, site);
    const uint32_t before = *counter;
    *counter = before >= last ? 0 : before + 1;
    return before;
}

inline uint32_t atomic_add(uint32_t* sum, uint32_t value, Site site = Site::here()) {
    simt::check_atomic(sum, sizeof *sum, site);
    const uint32_t before = *sum;
    *sum += value;
    return before;
}

inline void atomic_add(unsigned long long* sum, unsigned long long value, Site site = Site::here()) {
    simt::check_atomic(sum, sizeof *sum, site);
    *sum += value;
}

}  // namespace pykernels::cuda
