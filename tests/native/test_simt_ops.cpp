// The CUDA launchers on the SIMT executor under AddressSanitizer and UndefinedBehaviorSanitizer, against
// loops in double. The Python tests (tests/simt) go through more shapes without the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "ops.h"
#include "simt/executor.h"
#include "simt/numeric.h"

using namespace pykernels;

namespace {

constexpr float nan = NAN;
std::mt19937 engine(1);
Dtype dtype = Dtype::bfloat16;
bool programmatic = false;

cuda::Stream stream() {
    return {nullptr, programmatic};
}

// A tensor of the current dtype on the device, and its values in double.
class Tensor {
  public:
    Tensor(size_t count, float scale) : Tensor(count) {
        std::normal_distribution<float> normal(0, scale);
        for (size_t i = 0; i < count; ++i) set(i, normal(engine));
    }
    explicit Tensor(size_t count)  // NaN
        : count_(count), bits_(static_cast<uint16_t*>(simt::executor().memory.allocate(count * 2, 0))) {}
    ~Tensor() { simt::executor().memory.release(bits_); }
    Tensor(const Tensor&) = delete;
    Tensor& operator=(const Tensor&) = delete;

    operator void*() { return bits_; }
    size_t size() const { return count_; }
    double operator[](size_t i) const {
        return dtype == Dtype::bfloat16 ? simt::bits_to_float(uint32_t{bits_[i]} << 16)
                                        : simt::fp16_to_float(bits_[i]);
    }
    void set(size_t i, float value) {
        bits_[i] = dtype == Dtype::bfloat16 ? simt::float_to_bf16(value) : simt::float_to_fp16(value);
    }

  private:
    size_t count_;
    uint16_t* bits_;
};

template <class T>
class Numbers {
  public:
    explicit Numbers(const std::vector<T>& values)
        : data_(static_cast<T*>(simt::executor().memory.allocate(values.size() * sizeof(T), 0))) {
        std::copy(values.begin(), values.end(), data_);
    }
    ~Numbers() { simt::executor().memory.release(data_); }
    Numbers(const Numbers&) = delete;
    Numbers& operator=(const Numbers&) = delete;
    T* data() const { return data_; }

  private:
    T* data_;
};

void compare(const std::string& what, const Tensor& got, const std::vector<double>& expected) {
    const double tolerance = dtype == Dtype::bfloat16 ? 0x1p-6 : 0x1p-9;
    for (size_t i = 0; i < expected.size(); ++i) {
        CHECK(std::fabs(got[i] - expected[i]) <= tolerance * (1 + std::fabs(expected[i])),
              "%s[%zu], %s: %g, expected %g", what.c_str(), i, dtype == Dtype::bfloat16 ? "bf16" : "fp16",
              got[i], expected[i]);
    }
}

// Values as the hardware would round them to the dtype.
double rounded(double value) {
    const auto x = static_cast<float>(value);
    return dtype == Dtype::bfloat16 ? simt::bits_to_float(uint32_t{simt::float_to_bf16(x)} << 16)
                                    : simt::fp16_to_float(simt::float_to_fp16(x));
}

std::vector<double> norm(const Tensor& x, const Tensor& weight, int batch) {
    const size_t width = weight.size();
    std::vector<double> out(x.size());
    for (size_t b = 0; b < size_t(batch); ++b) {
        double squares = 0;
        for (size_t i = 0; i < width; ++i) squares += x[b * width + i] * x[b * width + i];
        const double scale = 1 / std::sqrt(squares / double(width) + 1e-6);
        for (size_t i = 0; i < width; ++i) out[b * width + i] = rounded(x[b * width + i] * scale * weight[i]);
    }
    return out;
}

// x @ weight^T
template <class X, class Weight>
std::vector<double> product(const X& x, const Weight& weight, int batch, int width) {
    const size_t k = size_t(width), n = weight.size() / k;
    std::vector<double> out(size_t(batch) * n);
    for (size_t b = 0; b < size_t(batch); ++b) {
        for (size_t row = 0; row < n; ++row) {
            for (size_t i = 0; i < k; ++i) out[b * n + row] += x[b * k + i] * weight[row * k + i];
        }
    }
    return out;
}

float scale_of(int width) {
    return 1.0f / std::sqrt(float(width));
}

void gemv(int batch, int n_in, int n_out) {
    Tensor x(size_t(batch * n_in), 1), weight(size_t(n_in * n_out), scale_of(n_in)), bias(size_t(n_out), 1),
        residual(size_t(batch * n_out), 1), out(size_t(batch * n_out));
    cuda::gemv({x, weight, bias, residual, out, batch, n_in, n_out, dtype}, stream());
    simt::executor().synchronize();
    auto expected = product(x, weight, batch, n_in);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % size_t(n_out)] + residual[i];
    compare("gemv", out, expected);
}

// A 4-bit weight with zero points, in the kernels' layout, and its values in double.
class Int4Weight {
  public:
    Int4Weight(int n_in, int n_out, int group_size)
        : scales_(size_t(n_out * (n_in / group_size)), 0.1f * scale_of(n_in)),
          zeros_(random(scales_.size(), 15)),
          packed_(random(size_t(n_out * n_in / 2), 255)),
          values(size_t(n_out * n_in)),
          params{packed_.data(), scales_, zeros_.data(), nullptr, n_in / group_size} {
        constexpr size_t nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of a word's elements
        for (size_t i = 0; i < values.size(); ++i) {
            const size_t bits = i / 8 * 32 + nibble[i % 8] * 4, group = i / size_t(group_size);
            const int q = packed_.data()[bits / 8] >> bits % 8 & 15;
            values[i] = (q - zeros_.data()[group]) * scales_[group];
        }
    }

  private:
    static std::vector<uint8_t> random(size_t count, int most) {
        std::vector<uint8_t> bytes(count);
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine() % unsigned(most + 1));
        return bytes;
    }
    Tensor scales_;
    Numbers<uint8_t> zeros_, packed_;

  public:
    std::vector<double> values;
    Int4WeightParams params;
};

void int4(int batch, int n_in, int n_out, int group_size) {
    Tensor x(size_t(batch * n_in), 1), norm_weight(size_t(n_in), 1), bias(size_t(n_out), 1),
        residual(size_t(batch * n_out), 1), out(size_t(batch * n_out)), activated(size_t(batch * n_out));
    const Int4Weight gate(n_in, n_out, group_size), up(n_in, n_out, group_size);
    cuda::int4_gemv({x, gate.params, bias, residual, out, nullptr, batch, n_in, n_out, dtype}, stream());
    cuda::int4_swiglu_gemv(
        {x, norm_weight, gate.params, up.params, activated, nullptr, batch, n_in, n_out, 1e-6f, dtype},
        stream());
    simt::executor().synchronize();
    auto expected = product(x, gate.values, batch, n_in);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % size_t(n_out)] + residual[i];
    compare("int4_gemv", out, expected);
    const auto n = norm(x, norm_weight, batch), g = product(n, gate.values, batch, n_in),
               u = product(n, up.values, batch, n_in);
    for (size_t i = 0; i < g.size(); ++i) expected[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
    compare("int4_swiglu_gemv", activated, expected);
}

void norm_and_swiglu(int batch, int n_in, int n_out) {
    Tensor x(size_t(batch * n_in), 1), weight(size_t(n_in), 1), gate(size_t(n_in * n_out), scale_of(n_in)),
        up(size_t(n_in * n_out), scale_of(n_in)), normed(x.size()), out(size_t(batch * n_out)),
        activated(out.size());
    cuda::rmsnorm({x, weight, normed, batch, n_in, 1e-6f, dtype}, stream());
    cuda::swiglu_gemv({x, weight, gate, up, out, nullptr, batch, n_in, n_out, 1e-6f, dtype}, stream());
    cuda::silu_mul({out, out, activated, batch, n_out, dtype}, stream());
    simt::executor().synchronize();
    const auto n = norm(x, weight, batch), g = product(n, gate, batch, n_in), u = product(n, up, batch, n_in);
    compare("rmsnorm", normed, n);
    std::vector<double> expected(g.size());
    for (size_t i = 0; i < g.size(); ++i) expected[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
    compare("swiglu_gemv", out, expected);
    for (size_t i = 0; i < g.size(); ++i) expected[i] = out[i] / (1 + std::exp(-out[i])) * out[i];
    compare("silu_mul", activated, expected);
}

void embedding_and_add(int batch, int hidden) {
    Tensor table(size_t(5 * hidden), 1), out(size_t(batch * hidden)), sum(out.size());
    std::vector<int64_t> token(size_t(batch), 4);
    token[0] = 2;
    const Numbers<int64_t> tokens(token);
    cuda::embedding({tokens.data(), table, out, batch, hidden, 5, dtype}, stream());
    cuda::add({out, out, sum, batch * hidden, dtype}, stream());
    simt::executor().synchronize();
    for (size_t i = 0; i < out.size(); ++i) {
        const double expected = table[size_t(token[i / size_t(hidden)] * hidden) + i % size_t(hidden)];
        CHECK(out[i] == expected && sum[i] == 2 * expected, "embedding[%zu] %g, add %g, of %g", i, out[i],
              sum[i], expected);
    }
}

// The greatest logit of each sequence among ties, twice in a row: the second finds the step that the first
// made, and the cache's end.
void argmax_twice(int batch, int vocab) {
    Tensor logits(size_t(batch * vocab), 1);
    std::vector<int64_t> expected;
    for (int b = 0; b < batch; ++b) {
        int64_t best = 0;
        for (int i = 1; i < vocab; ++i) {
            if (logits[size_t(b * vocab + i)] > logits[size_t(b * vocab) + size_t(best)]) best = i;
        }
        expected.push_back(best);
    }
    const Numbers<int64_t> token(std::vector<int64_t>(size_t(batch), -1));
    const Numbers<int32_t> position(std::vector<int32_t>(size_t(batch), 7)),
        kv_len(std::vector<int32_t>(size_t(batch), 8));
    for (int i = 0; i < 2; ++i) {
        cuda::argmax({logits, token.data(), position.data(), kv_len.data(), batch, vocab, 9, dtype},
                     stream());
    }
    simt::executor().synchronize();
    for (int b = 0; b < batch; ++b) {
        CHECK(token.data()[b] == expected[size_t(b)], "argmax[%d] %lld, expected %lld", b,
              static_cast<long long>(token.data()[b]), static_cast<long long>(expected[size_t(b)]));
        CHECK(position.data()[b] == 8 && kv_len.data()[b] == 9, "position %d, kv_len %d", position.data()[b],
              kv_len.data()[b]);
    }
}

// The append, fused or alone, then attention over what it left.
void attention_half(bool fused, int batch, int hidden, int heads, int kv_heads, int dim, int max_len,
                    int position) {
    const int kv = kv_heads * dim, half = dim / 2;
    Tensor x(size_t(batch * hidden), 1), norm_weight(size_t(hidden), 1),
        q_weight(size_t(heads * dim * hidden), scale_of(hidden)),
        k_weight(size_t(kv * hidden), scale_of(hidden)), v_weight(size_t(kv * hidden), scale_of(hidden)),
        q_out(size_t(batch * heads * dim)), out(q_out.size()), k_cache(size_t(batch * kv * max_len), 1),
        v_cache(k_cache.size(), 1), q(q_out.size(), 1), k(size_t(batch * kv), 1), v(k.size(), 1);
    for (size_t row = 0; row < size_t(batch * kv_heads); ++row) {
        for (size_t i = size_t(position * dim); i < size_t(max_len * dim); ++i) {
            k_cache.set(row * size_t(max_len * dim) + i, nan);
            v_cache.set(row * size_t(max_len * dim) + i, nan);
        }
    }
    std::vector<float> angles(size_t(max_len * dim));
    for (size_t i = 0; i < angles.size(); ++i) angles[i] = std::sin(float(i));
    const Numbers<float> cos_sin(angles);
    const Numbers<int32_t> positions(std::vector<int32_t>(size_t(batch), position)),
        lengths(std::vector<int32_t>(size_t(batch), position + 1));
    if (fused) {
        cuda::qkv_gemv({x,
                        norm_weight,
                        q_weight,
                        k_weight,
                        v_weight,
                        nullptr,
                        nullptr,
                        nullptr,
                        cos_sin.data(),
                        positions.data(),
                        q_out,
                        k_cache,
                        v_cache,
                        nullptr,
                        batch,
                        hidden,
                        heads,
                        kv_heads,
                        dim,
                        max_len,
                        max_len,
                        1e-6f,
                        dtype},
                       stream());
    } else {
        cuda::rope_kv_append({q, k, v, cos_sin.data(), positions.data(), q_out, k_cache, v_cache, batch,
                              heads, kv_heads, dim, max_len, max_len, dtype},
                             stream());
    }
    GqaDecodeParams params{q_out, k_cache,  v_cache, lengths.data(), out,           nullptr, batch,
                           heads, kv_heads, dim,     max_len,        scale_of(dim), dtype,   0};
    const size_t workspace_bytes = cuda::gqa_decode_workspace_bytes(params);
    const Numbers<unsigned char> workspace(std::vector<unsigned char>(workspace_bytes, 0));
    params.workspace = workspace.data();
    params.workspace_bytes = int64_t(workspace_bytes);
    cuda::gqa_decode(params, stream());
    simt::executor().synchronize();

    const auto read = [](const Tensor& tensor) {
        std::vector<double> values(tensor.size());
        for (size_t i = 0; i < values.size(); ++i) values[i] = tensor[i];
        return values;
    };
    const auto n = norm(x, norm_weight, batch);
    const auto turned = [&](std::vector<double> rows) {
        for (size_t row = 0; row < rows.size(); row += size_t(dim)) {
            for (size_t d = 0; d < size_t(half); ++d) {
                const double cosine = angles[size_t(position * dim) + d],
                             sine = angles[size_t(position * dim + half) + d];
                const double low = rows[row + d], high = rows[row + d + size_t(half)];
                rows[row + d] = low * cosine - high * sine;
                rows[row + d + size_t(half)] = high * cosine + low * sine;
            }
        }
        return rows;
    };
    compare("q", q_out, turned(fused ? product(n, q_weight, batch, hidden) : read(q)));
    const auto k_rows = turned(fused ? product(n, k_weight, batch, hidden) : read(k));
    const auto v_rows = fused ? product(n, v_weight, batch, hidden) : read(v);
    std::vector<double> expected(q_out.size());
    for (size_t b = 0; b < size_t(batch); ++b) {
        for (size_t h = 0; h < size_t(heads); ++h) {
            const size_t kv_row = b * size_t(kv_heads) + h / size_t(heads / kv_heads);
            const size_t cache = kv_row * size_t(max_len * dim),
                         q_row = (b * size_t(heads) + h) * size_t(dim);
            for (size_t d = 0; d < size_t(dim); ++d) {
                const size_t at = cache + size_t(position * dim) + d;
                CHECK(std::fabs(k_cache[at] - k_rows[kv_row * size_t(dim) + d]) < 0.05 &&
                          std::fabs(v_cache[at] - v_rows[kv_row * size_t(dim) + d]) < 0.05,
                      "appended row %zu, dimension %zu", kv_row, d);
            }
            std::vector<double> weights(size_t(position) + 1);
            double total = 0;
            for (size_t key = 0; key < weights.size(); ++key) {
                for (size_t d = 0; d < size_t(dim); ++d)
                    weights[key] += q_out[q_row + d] * k_cache[cache + key * size_t(dim) + d];
                total += weights[key] = std::exp(weights[key] * double{scale_of(dim)});
            }
            for (size_t d = 0; d < size_t(dim); ++d) {
                for (size_t key = 0; key < weights.size(); ++key)
                    expected[q_row + d] += weights[key] / total * v_cache[cache + key * size_t(dim) + d];
            }
        }
    }
    compare("gqa_decode", out, expected);
}

void ceilings(size_t bytes) {
    std::vector<uint64_t> values(bytes / 8);
    uint64_t total = 0;
    for (uint64_t& value : values) total += value = engine();
    const Numbers<uint64_t> src(values), out(std::vector<uint64_t>(values.size())),
        sink(std::vector<uint64_t>(8));
    cuda::ceiling_read({src.data(), sink.data(), int64_t(bytes)}, stream());
    cuda::ceiling_copy({src.data(), out.data(), int64_t(bytes)}, stream());
    simt::executor().synchronize();
    CHECK(sink.data()[0] == total, "ceiling_read");
    CHECK(std::memcmp(src.data(), out.data(), bytes) == 0, "ceiling_copy");
}

}  // namespace

int main(int, char** arguments) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
        dtype = seed % 2 ? Dtype::float16 : Dtype::bfloat16;
        programmatic = seed >= 3;
        simt::Settings settings;
        settings.seed = seed;
        settings.sm_count = 2 + int(seed);
        settings.arch = std::stoi(arguments[1]);
        simt::executor().configure(settings);
        const int batch = std::vector<int>{1, 2, 3, 8, 1, 5}[seed];
        gemv(batch, 1032, 37);
        gemv(batch, 4104, 21);  // x of several sequences a K tile at a time
        gemv(batch, 50, 9);
        int4(batch, 544, 37, 32);
        int4(batch, 1280, 21, 128);
        norm_and_swiglu(batch, 520, 35);
        norm_and_swiglu(batch, 4104, 9);
        norm_and_swiglu(batch, 33, 6);
        embedding_and_add(batch, 72);
        embedding_and_add(batch, 9);
        argmax_twice(batch, 9000);
        argmax_twice(batch, 1001);
        attention_half(true, std::min(batch, 3), 264, 7, 1, 64, 200, 150);
        attention_half(false, batch, 8, 16, 1, 128, 80, 64);
        attention_half(false, 1, 8, 4, 4, 64, 200, 0);
        ceilings(64 * 333);
    }
    return test::failed();
}
