#include "runtime/ranges.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/program.h"

#ifdef PYKERNELS_CUDA
#include "cuda/common/launch.h"
#endif

namespace pykernels {
namespace {

std::atomic<bool> enabled{[] {
    const char* value = std::getenv("PYKERNELS_CHECK_RANGES");
    return value != nullptr && std::string(value) == "1";
}()};

// Index tensors of one launch, readable by the host.
class IndexReader {
  public:
    IndexReader(const char* op, const Target& target) : op_(op), target_(target) {}

    // values[0..count) are in [low, high]; null pointers are not there.
    template <class T>
    void check(const char* name, const T* values, int64_t count, int64_t low, int64_t high, const char* why,
               bool of_sequences = true) const {
        if (values == nullptr) return;
        std::vector<T> copy;
        const T* host = readable(values, count, copy);
        for (int64_t i = 0; host != nullptr && i < count; ++i) {
            if (host[i] >= low && host[i] <= high) continue;
            std::string message = std::string("pykernels::") + op_ + ": " + name + " must be in [" +
                                  std::to_string(low) + ", " + std::to_string(high) + "] (" + why +
                                  "), got " + std::to_string(host[i]);
            if (of_sequences) message += " for sequence " + std::to_string(i);
            throw std::invalid_argument(message);
        }
    }

    void position(const int32_t* values, int64_t batch, int64_t max_len, int64_t max_position) const {
        const int64_t limit = max_len < max_position ? max_len : max_position;
        check("position", values, batch, 0, limit - 1, "the slots of the cache and the rows of cos_sin");
    }

    void perm(const char* name, const Int4WeightParams& weight, int64_t in_features) const {
        check(name, weight.perm, in_features, 0, in_features - 1, "the columns of x", false);
    }

  private:
    template <class T>
    const T* readable(const T* values, int64_t count, std::vector<T>& copy) const {
#ifdef PYKERNELS_CUDA
        if (target_.cuda_device >= 0) {
            auto* const stream = static_cast<cudaStream_t>(target_.stream);
            cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
            PYKERNELS_CHECK_CUDA(cudaStreamIsCapturing(stream, &status));
            if (status != cudaStreamCaptureStatusNone) return nullptr;
            copy.resize(static_cast<size_t>(count));
            PYKERNELS_CHECK_CUDA(cudaMemcpyAsync(copy.data(), values, copy.size() * sizeof(T),
                                                 cudaMemcpyDeviceToHost, stream));
            PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(stream));
            return copy.data();
        }
#endif
        (void)count;
        (void)copy;
        return values;
    }

    const char* op_;
    const Target& target_;
};

}  // namespace

void check_ranges(const RopeKvAppendParams& p, const Target& target) {
    IndexReader("rope_kv_append", target).position(p.position, p.batch, p.max_len, p.max_position);
}

void check_ranges(const GqaDecodeParams& p, const Target& target) {
    IndexReader("gqa_decode", target)
        .check("kv_len", p.kv_len, p.batch, 1, p.max_len, "the slots of the cache");
}

void check_ranges(const QkvGemvParams& p, const Target& target) {
    IndexReader("qkv_gemv", target).position(p.position, p.batch, p.max_len, p.max_position);
}

void check_ranges(const Int4GemvParams& p, const Target& target) {
    IndexReader("int4_gemv", target).perm("perm", p.weight, p.in_features);
}

void check_ranges(const Int4SwigluGemvParams& p, const Target& target) {
    const IndexReader reader("int4_swiglu_gemv", target);
    reader.perm("gate_perm", p.gate, p.in_features);
    reader.perm("up_perm", p.up, p.in_features);
}

void check_ranges(const Int4QkvGemvParams& p, const Target& target) {
    const IndexReader reader("int4_qkv_gemv", target);
    reader.perm("q_perm", p.q, p.hidden);
    reader.perm("k_perm", p.k, p.hidden);
    reader.perm("v_perm", p.v, p.hidden);
    reader.position(p.position, p.batch, p.max_len, p.max_position);
}

void check_ranges(const EmbeddingParams& p, const Target& target) {
    IndexReader("embedding", target).check("token", p.token, p.batch, 0, p.vocab - 1, "the rows of table");
}

void check_ranges(const ArgmaxParams& p, const Target& target) {
    IndexReader("argmax", target)
        .check("position", p.position, p.batch, 0, p.max_len - 1, "the slots of the cache");
}

bool range_checks() {
    return enabled.load(std::memory_order_relaxed);
}

void set_range_checks(bool enable) {
    enabled.store(enable, std::memory_order_relaxed);
}

}  // namespace pykernels
