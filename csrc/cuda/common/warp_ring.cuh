// A warp's own stream of memory: a ring of slots in shared memory, filled ahead of use by copies that cost
// the warp no registers. Slots hold two pieces (of two weight rows), which come from two places and are used
// together. No block barrier: a warp waits for nothing but its own copies.
//
// On sm_90 lane 0 asks the copy engine, one bulk copy a piece, and a transaction barrier a slot tells when
// they have landed; before, every lane copies 16 bytes at a time by cp.async, one group a slot.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/ring_plan.h"

namespace pykernels::cuda {

class WarpRing {
  public:
    // `memory`: ring_bytes(n_stages, piece_bytes) bytes of this warp's, 16-byte aligned. Of `barriers`,
    // n_stages are this warp's. All lanes construct it, then meet at a warp barrier.
    __device__ WarpRing(unsigned char* memory, TransactionBarrier* barriers, int n_stages, int piece_bytes)
        : memory_(memory),
          barriers_(barriers),
          n_stages_(has_bulk_copy ? n_stages : ring_async_stages),
          piece_bytes_(piece_bytes) {
        if (has_bulk_copy && lane() == 0) {
            for (int i = 0; i < n_stages_; ++i) barrier_init(barriers_ + i, 1);
            barriers_ready();
        }
    }

    // Starts copying the pieces into the next slot; `b` may be null. Every slot before it that held something
    // else has been released. `bytes` (of one piece) is a multiple of 16 up to piece_bytes; 0 keeps the
    // count of groups right and copies nothing.
    __device__ __forceinline__ void issue(const void* a, const void* b, int bytes) {
        unsigned char* slot = memory_ + issue_stage_ * 2 * piece_bytes_;
        if constexpr (has_bulk_copy) {
            if (bytes > 0 && lane() == 0) {
                TransactionBarrier* barrier = barriers_ + issue_stage_;
                barrier_expect(barrier, static_cast<uint32_t>(b ? 2 * bytes : bytes));
                bulk_copy(slot, a, static_cast<uint32_t>(bytes), barrier);
                if (b) bulk_copy(slot + piece_bytes_, b, static_cast<uint32_t>(bytes), barrier);
            }
        } else {
            for (int i = lane() * 16; i < bytes; i += warp_size * 16) {
                async_copy16(slot + i, static_cast<const unsigned char*>(a) + i);
                if (b) async_copy16(slot + piece_bytes_ + i, static_cast<const unsigned char*>(b) + i);
            }
            async_commit();
        }
        if (++issue_stage_ == n_stages_) issue_stage_ = 0;
    }

    // Waits for the oldest slot. Piece a lies at its begin, piece b piece_bytes on.
    __device__ __forceinline__ const unsigned char* wait() {
        if constexpr (has_bulk_copy) {
            barrier_wait(barriers_ + wait_stage_, parity_);
        } else {
            async_wait<ring_async_stages - 1>();
            warp_barrier();  // the other lanes' copies have landed as well
        }
        return memory_ + wait_stage_ * 2 * piece_bytes_;
    }

    // The warp is done with the slot that wait() returned; issue() may fill it again.
    __device__ __forceinline__ void release() {
        warp_barrier();  // no lane still reads what is copied over next
        if (++wait_stage_ == n_stages_) {
            wait_stage_ = 0;
            parity_ ^= 1;
        }
    }

    __device__ __forceinline__ int n_stages() const { return n_stages_; }

  private:
    __device__ static __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_size; }

    unsigned char* memory_;
    TransactionBarrier* barriers_;
    int n_stages_, piece_bytes_;
    int issue_stage_ = 0, wait_stage_ = 0;
    uint32_t parity_ = 0;
};

}  // namespace pykernels::cuda
