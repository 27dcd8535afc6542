// The device's memory: buffers between guard zones, and who last read and wrote every two bytes of them.
//
// "Who" is a unit: one block of one launch, numbered as launches are enqueued. The scheduler knows which
// units a thread may share memory with (block.h); here is only kept what happened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace pykernels::simt {

// The smallest thing a kernel stores; what is smaller shares its neighbour's record.
constexpr size_t granule_bytes = 2;

using Unit = uint32_t;  // 0: the host

struct Touch {
    Unit unit;
    uint32_t time;  // of Executor::time
};

struct Buffer {
    unsigned char* begin;
    size_t bytes;
    std::unique_ptr<unsigned char[]> memory;
    std::unique_ptr<Touch[]> writer, reader;
    std::unique_ptr<Unit[]> early;  // the last block to load it through the L1 before its PDL wait
};

class GlobalMemory {
  public:
    // Filled with 0xff, which is NaN; 64-byte aligned, then `offset` bytes on.
    void* allocate(size_t bytes, size_t offset);
    // Throws std::runtime_error where a guard zone was written over, std::invalid_argument for an address
    // that allocate() did not return.
    void release(void* begin);
    // The buffer that holds the address, or null.
    Buffer* find(const void* address);

  private:
    std::map<uintptr_t, Buffer> buffers_;
    Buffer* last_ = nullptr;  // what find() returned last
};

}  // namespace pykernels::simt
