#include "simt/global_memory.h"

#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

namespace pykernels::simt {
namespace {

constexpr size_t guard_bytes = 256;
constexpr unsigned char canary = 0xa5;

}  // namespace

void* GlobalMemory::allocate(size_t bytes, size_t offset) {
    Buffer buffer = {};
    const size_t total = bytes + offset + 2 * guard_bytes + 64;
    buffer.memory = std::make_unique<unsigned char[]>(total);
    unsigned char* memory = buffer.memory.get();
    buffer.begin =
        memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64 + guard_bytes / 64 * 64 + offset;
    buffer.bytes = bytes;
    std::memset(memory, canary, total);
    std::memset(buffer.begin, 0xff, bytes);
    const size_t granules = bytes / granule_bytes + 2;
    buffer.writer = std::make_unique<Touch[]>(granules);
    buffer.reader = std::make_unique<Touch[]>(granules);
    buffer.early = std::make_unique<Unit[]>(granules);
    ASAN_POISON_MEMORY_REGION(memory, static_cast<size_t>(buffer.begin - memory));
    ASAN_POISON_MEMORY_REGION(buffer.begin + bytes, guard_bytes);
    void* begin = buffer.begin;
    buffers_.emplace(reinterpret_cast<uintptr_t>(begin), std::move(buffer));
    return begin;
}

void GlobalMemory::release(void* begin) {
    const auto found = buffers_.find(reinterpret_cast<uintptr_t>(begin));
    if (found == buffers_.end()) throw std::invalid_argument("release: not the begin of a buffer");
    const Buffer buffer = std::move(found->second);
    buffers_.erase(found);
    last_ = nullptr;
    ASAN_UNPOISON_MEMORY_REGION(buffer.memory.get(), static_cast<size_t>(buffer.begin - buffer.memory.get()));
    ASAN_UNPOISON_MEMORY_REGION(buffer.begin + buffer.bytes, guard_bytes);
    for (size_t i = 1; i <= guard_bytes; ++i) {
        if (buffer.begin[-static_cast<ptrdiff_t>(i)] != canary) {
            throw std::runtime_error("a buffer of " + std::to_string(buffer.bytes) + " bytes was written " +
                                     std::to_string(i) + " bytes before its begin");
        }
        if (buffer.begin[buffer.bytes + i - 1] != canary) {
            throw std::runtime_error("a buffer of " + std::to_string(buffer.bytes) + " bytes was written " +
                                     std::to_string(i - 1) + " bytes past its end");
        }
    }
}

Buffer* GlobalMemory::find(const void* address) {
    const auto* wanted = static_cast<const unsigned char*>(address);
    if (last_ && wanted >= last_->begin && wanted < last_->begin + last_->bytes) return last_;
    auto next = buffers_.upper_bound(reinterpret_cast<uintptr_t>(address));
    if (next == buffers_.begin()) return nullptr;
    Buffer& buffer = (--next)->second;
    if (wanted >= buffer.begin + buffer.bytes) return nullptr;
    last_ = &buffer;
    return last_;
}

}  // namespace pykernels::simt
