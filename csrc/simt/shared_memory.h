// One block's shared memory, and for every two bytes of it: whether they were ever written, whether a copy
// into them is under way, and who wrote and read them last, when. Time is counted in barriers: two accesses
// of different threads are ordered where a barrier of the block lies between, or, within a warp, one of the
// warp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simt/fault.h"

namespace pykernels::simt {

struct Block;
struct Thread;

class SharedMemory {
  public:
    // `bytes` bytes full of NaN that nobody wrote.
    void reset(size_t bytes);
    unsigned char* begin() { return bytes_.data() + offset_; }
    size_t size() const { return size_; }
    bool holds(const void* pointer) {
        const auto* byte = static_cast<const unsigned char*>(pointer);
        return byte >= begin() && byte < begin() + size_;
    }
    // An access by a thread of the block; a fault where it is not ordered. The bytes are within the memory.
    void read(const Thread& thread, size_t offset, size_t bytes, Site site);
    void write(const Thread& thread, size_t offset, size_t bytes, Site site);

    // A thread of another block of the cluster reads the shared memory of `owner` (ld.shared::cluster).
    void read_from_outside(const Thread& thread, const Block& owner, size_t offset, size_t bytes, Site site);

    // A thread of another block stores into it (st.async): the cluster's barrier must order the accesses of
    // `owner` to those bytes, and to the mbarrier, before that.
    void use_barrier_from_outside(const Thread& thread, const Block& owner, size_t offset, Site site) const;
    void begin_push(const Thread& thread, const Block& owner, size_t offset, size_t bytes, Site site);

    // A thread issues an asynchronous copy. All earlier accesses to those bytes must be ordered before it;
    // until it has landed any access is a fault.
    void begin_copy(const Thread& thread, size_t offset, size_t bytes, Site site);
    // The copy lands: as a write of the thread (cp.async), or with a phase of a mbarrier, visible to
    // the threads that have observed that phase.
    void land(const Thread& thread, size_t offset, size_t bytes);
    void land(int barrier, uint32_t phase, size_t offset, size_t bytes);

    // mbarrier.init: from now on only mbarrier functions may access these eight bytes.
    void make_barrier(const Thread& thread, size_t offset, Site site);
    // Checks that the thread is ordered after the mbarrier.init there.
    void use_barrier(const Thread& thread, size_t offset, Site site);

  private:
    enum class State : uint8_t { unwritten, written, copying, barrier };
    struct Granule {
        uint32_t write_epoch, write_warp_epoch;  // or, of a landed bulk copy: barrier and phase
        uint32_t read_epoch, read_warp_epoch;
        uint32_t write_time;  // of the executor, for other blocks
        uint16_t writer, reader;
        // The phase of the cluster's barrier that ends the last read from another block, and the block's own.
        uint16_t outside_read, own_read;
        uint16_t line;  // of the last write
        uint8_t file;
        State state;
    };

    static bool shown_to_cluster(const Thread& thread, const Block& owner, const Granule& granule);
    bool in_order_with_writer(const Thread& thread, const Granule& granule) const;
    [[noreturn]] void report_writer(const Granule& granule, size_t offset, const char* action,
                                    Site site) const;
    void check_write(const Thread& thread, size_t offset, size_t bytes, Site site);
    void record_read(const Thread& thread, Granule& granule) const;
    void record_write(const Thread& thread, size_t offset, size_t bytes, State state, Site site);
    uint8_t file_number(const char* file);

    std::vector<unsigned char> bytes_;
    std::vector<Granule> granules_;
    size_t offset_ = 0, size_ = 0;
    std::vector<const char*> files_;
};

}  // namespace pykernels::simt
