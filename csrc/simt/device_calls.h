// What device.h asks of the executor, for the thread that runs. No CUDA names here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/fault.h"

namespace pykernels::simt {

enum class Source { any, global, fresh_global, streamed_global };

// Each is a fault where the thread must not make the access; the caller then makes it. check_load() is false
// where the load comes so early that what it finds must not be used.
bool check_load(const void* pointer, size_t bytes, Source source, Site site);
void check_prefetch(const void* pointer, Site site);  // its byte is in a buffer
void check_store(const void* pointer, size_t bytes, Site site);
void check_atomic(const void* pointer, size_t bytes, Site site);
// Words that carry their own flag: ordered between launches, not between blocks.
void check_flagged(const void* pointer, size_t bytes, bool writes, Site site);

unsigned char* shared_begin();
int lane_index();
int warp_lane_count();

void meet_block(Site site);
bool vote_in_block(bool vote, Site site);
void meet_warp(Site site);
constexpr size_t exchange_slot_bytes = 32;
// A warp-collective call: every lane gives up to exchange_slot_bytes and gets the slots of all lanes,
// exchange_slot_bytes apart, which stay valid until the second call from here. `name` is a string literal
// that no other call has: lanes in calls of different names are a divergent barrier.
const unsigned char* exchange(const void* value, size_t bytes, const char* name, Site site);
[[noreturn]] void no_lane(const char* name, int lane, Site site);

int cluster_rank();
void arrive_in_cluster(Site site);
void wait_in_cluster(Site site);
// The address, in the shared memory of the cluster's block `rank`, that corresponds to `own` in the caller's.
const void* check_load_of_cluster(int rank, const void* own, size_t bytes, Site site);
// st.async: stores 8 or 16 bytes there, and counts them at the mbarrier of block `barrier_rank`.
void begin_push(int rank, const void* own, const void* value, size_t bytes, int barrier_rank,
                const void* own_barrier, Site site);

void make_barrier(const void* barrier, uint32_t arrivals, Site site);
void show_barriers();
void arrive(const void* barrier, uint32_t bytes, Site site);
void begin_bulk_copy(void* to, const void* from, uint32_t bytes, const void* barrier, Site site);
void wait_barrier(const void* barrier, uint32_t parity, Site site);

void begin_async_copy(void* to, const void* from, size_t bytes, Site site);
void commit_async_copies();
void wait_async_copies(int pending);

void trigger_dependents();
void wait_producers(Site site);
void fence();
uint64_t clock_ns(Site site);
uint32_t sm_index();

}  // namespace pykernels::simt
