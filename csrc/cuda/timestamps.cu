// The host side of the in-kernel timestamps (common/timestamps.cuh): which files have timestamps, and the
// memory of their records. Only in builds with PYKERNELS_TIMESTAMPS.
#include "timestamps.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

// --- the memory of the records

#ifdef PYKERNELS_SIMT
void wait_until_idle() {
    simt::executor().synchronize();
}
void* allocate_zeroed(size_t bytes) {
    return std::memset(simt::executor().memory.allocate(bytes, 0), 0, bytes);
}
void release(void* memory) {
    simt::executor().memory.release(memory);
}
void copy_to_host(void* to, const void* from, size_t bytes) {
    std::memcpy(to, from, bytes);
}
void set_sink(StampSink& sink, const StampSink& value) {
    sink = value;
}
#else
void wait_until_idle() {
    PYKERNELS_CHECK_CUDA(cudaDeviceSynchronize());
}
void* allocate_zeroed(size_t bytes) {
    void* memory = nullptr;
    PYKERNELS_CHECK_CUDA(cudaMalloc(&memory, bytes));
    PYKERNELS_CHECK_CUDA(cudaMemset(memory, 0, bytes));
    return memory;
}
void release(void* memory) {
    PYKERNELS_CHECK_CUDA(cudaFree(memory));
}
void copy_to_host(void* to, const void* from, size_t bytes) {
    PYKERNELS_CHECK_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
// `sink` is the host's name for the device's variable.
void set_sink(StampSink& sink, const StampSink& value) {
    PYKERNELS_CHECK_CUDA(cudaMemcpyToSymbol(sink, &value, sizeof value));
}
#endif

// --- the files, in the order of their static initialisation

struct File {
    std::string op;
    StampSink* sink;
};

std::vector<File>& files() {
    static std::vector<File> list;
    return list;
}

struct Recording {
    int device;
    uint32_t capacity;
    StampRing* ring;
};
std::optional<Recording> recording;

void set_sinks(StampRing* ring, uint32_t capacity) {
    for (size_t i = 0; i < files().size(); ++i)
        set_sink(*files()[i].sink, {ring, capacity, static_cast<uint32_t>(i)});
}

}  // namespace

StampedFile::StampedFile(const char* source, StampSink& sink) {
    std::string op = source;
    op.erase(0, op.find_last_of('/') + 1);
    op.resize(std::min(op.find('.'), op.size()));
    if (op != "timestamps") files().push_back({op, &sink});
}

std::vector<std::string> timestamped_kernels() {
    std::vector<std::string> ops;
    for (const File& file : files()) ops.push_back(file.op);
    return ops;
}

void start_timestamps(int device, uint32_t capacity) {
    if (recording) throw std::runtime_error("in-kernel timestamps are being recorded already");
    const DeviceScope scope(device);
    wait_until_idle();
    void* ring = allocate_zeroed(sizeof(StampRing) + size_t{capacity} * sizeof(StampRecord));
    recording = {device, capacity, static_cast<StampRing*>(ring)};
    set_sinks(recording->ring, capacity);
    wait_until_idle();  // the copies may be asynchronous, and a non-blocking stream would not wait for them
}

Timestamped stop_timestamps() {
    if (!recording) throw std::runtime_error("no in-kernel timestamps are being recorded");
    const Recording ended = *recording;
    recording.reset();
    const DeviceScope scope(ended.device);
    wait_until_idle();
    set_sinks(nullptr, 0);
    StampRing head = {};
    copy_to_host(&head, ended.ring, sizeof head);
    Timestamped result;
    result.records.resize(std::min(head.taken, ended.capacity));
    result.lost = head.taken - result.records.size();
    copy_to_host(result.records.data(), ended.ring + 1, result.records.size() * sizeof(StampRecord));
    release(ended.ring);
    return result;
}

}  // namespace pykernels::cuda
