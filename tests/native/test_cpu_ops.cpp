// The CPU launchers without torch or Python: float32 against loops in double, on every instruction set and
// number of threads, with NaN where nothing may be read. The Python tests go through all types and shapes.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops.h"

using namespace pykernels;

namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
std::mt19937 engine(1);

std::vector<float> random(size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float& value : values) value = normal(engine);
    return values;
}

struct Aligned {
    alignas(64) char bytes[1 << 16];
};

void compare(const char* what, const std::vector<float>& got, const std::vector<double>& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
        CHECK(std::fabs(got[i] - expected[i]) <= 1e-4 * (1 + std::fabs(expected[i])),
              "%s[%zu] %s, %d threads: %g, expected %g", what, i, cpu::isa_name(cpu::current_isa()),
              cpu::num_threads(), got[i], expected[i]);
    }
}

void gemv(int batch, int n_in, int n_out) {
    const auto x = random(size_t(batch) * n_in), weight = random(size_t(n_out) * n_in), bias = random(n_out),
               residual = random(size_t(batch) * n_out);
    std::vector<float> out(size_t(batch) * n_out + 1, nan);
    std::vector<double> expected(size_t(batch) * n_out);
    for (int b = 0; b < batch; ++b) {
        for (int n = 0; n < n_out; ++n) {
            double sum = double(bias[n]) + residual[size_t(b) * n_out + n];
            for (int k = 0; k < n_in; ++k)
                sum += double(x[size_t(b) * n_in + k]) * weight[size_t(n) * n_in + k];
            expected[size_t(b) * n_out + n] = sum;
        }
    }
    cpu::gemv({x.data(), weight.data(), bias.data(), residual.data(), out.data(), batch, n_in, n_out,
               Dtype::float32});
    compare("gemv", out, expected);
    CHECK(std::isnan(out.back()), "gemv wrote past its output");
}

void gqa_decode(int batch, int n_heads, int n_kv_heads, int dim, int max_len, int kv_len) {
    const auto q = random(size_t(batch) * n_heads * dim);
    auto k = random(size_t(batch) * n_kv_heads * max_len * dim), v = k;
    for (float& value : v) value = -value + 0.5f;
    const std::vector<int32_t> lengths(size_t(batch), kv_len);
    for (int h = 0; h < batch * n_kv_heads; ++h) {
        for (size_t i = (size_t(h) * max_len + kv_len) * dim; i < size_t(h + 1) * max_len * dim; ++i)
            k[i] = v[i] = nan;
    }
    const double scale = 1.0 / std::sqrt(double(dim));
    std::vector<double> expected(q.size());
    for (int h = 0; h < batch * n_heads; ++h) {
        const size_t kv_head = size_t(h / n_heads) * n_kv_heads + h % n_heads / (n_heads / n_kv_heads);
        std::vector<double> scores(kv_len);
        double top = -1e300, total = 0;
        for (int j = 0; j < kv_len; ++j) {
            for (int d = 0; d < dim; ++d) {
                scores[j] += double(q[size_t(h) * dim + d]) * k[(kv_head * max_len + j) * dim + d];
            }
            scores[j] *= scale;
            top = std::fmax(top, scores[j]);
        }
        for (double& score : scores) total += score = std::exp(score - top);
        for (int d = 0; d < dim; ++d) {
            for (int j = 0; j < kv_len; ++j) {
                expected[size_t(h) * dim + d] += scores[j] / total * v[(kv_head * max_len + j) * dim + d];
            }
        }
    }
    std::vector<float> out(q.size() + 1, nan);
    GqaDecodeParams params{
        q.data(), k.data(),   v.data(), lengths.data(), out.data(),   nullptr,        batch,
        n_heads,  n_kv_heads, dim,      max_len,        float(scale), Dtype::float32, 0};
    params.workspace_bytes = int64_t(cpu::gqa_decode_workspace_bytes(params));
    std::vector<Aligned> workspace(size_t(params.workspace_bytes) / sizeof(Aligned) + 1);
    for (Aligned& block : workspace) {
        for (char& byte : block.bytes) byte = char(0xff);
    }
    params.workspace = workspace.data();
    cpu::gqa_decode(params);
    compare("gqa_decode", out, expected);
    CHECK(std::isnan(out.back()), "gqa_decode wrote past its output");
}

void rmsnorm_and_swiglu(int batch, int n_in, int n_out) {
    const auto x = random(size_t(batch) * n_in), norm = random(n_in), gate = random(size_t(n_out) * n_in),
               up = random(size_t(n_out) * n_in);
    std::vector<double> normed(x.size()), expected(size_t(batch) * n_out);
    for (int b = 0; b < batch; ++b) {
        double squares = 0;
        for (int k = 0; k < n_in; ++k) squares += double(x[size_t(b) * n_in + k]) * x[size_t(b) * n_in + k];
        for (int k = 0; k < n_in; ++k) {
            normed[size_t(b) * n_in + k] =
                x[size_t(b) * n_in + k] / std::sqrt(squares / n_in + 1e-6) * norm[k];
        }
        for (int n = 0; n < n_out; ++n) {
            double g = 0, u = 0;
            for (int k = 0; k < n_in; ++k) {
                g += normed[size_t(b) * n_in + k] * gate[size_t(n) * n_in + k];
                u += normed[size_t(b) * n_in + k] * up[size_t(n) * n_in + k];
            }
            expected[size_t(b) * n_out + n] = g / (1 + std::exp(-g)) * u;
        }
    }
    std::vector<float> rms(x.size(), nan), out(expected.size(), nan);
    cpu::rmsnorm({x.data(), norm.data(), rms.data(), batch, n_in, 1e-6f, Dtype::float32});
    compare("rmsnorm", rms, normed);
    SwigluGemvParams params{x.data(), norm.data(), gate.data(), up.data(), out.data(),    nullptr,
                            batch,    n_in,        n_out,       1e-6f,     Dtype::float32};
    std::vector<Aligned> workspace(cpu::swiglu_gemv_workspace_bytes(params) / sizeof(Aligned) + 1);
    params.workspace = workspace.data();
    cpu::swiglu_gemv(params);
    compare("swiglu_gemv", out, expected);
}

void argmax(int batch, int vocab) {
    const auto logits = random(size_t(batch) * vocab);
    std::vector<int64_t> token(size_t(batch) + 1, -1);
    std::vector<int32_t> position(size_t(batch), 3), kv_len(size_t(batch), 4);
    const ArgmaxParams params{logits.data(), token.data(), position.data(), kv_len.data(), batch, vocab, 5,
                              Dtype::float32};
    for (const int expected : {4, 4}) {  // the second run stands at the cache's last slot
        cpu::argmax(params);
        for (int b = 0; b < batch; ++b) {
            const float* row = logits.data() + size_t(b) * vocab;
            for (int i = 0; i < vocab; ++i) CHECK(row[i] <= row[token[size_t(b)]], "argmax: %d is larger", i);
            CHECK(position[size_t(b)] == expected && kv_len[size_t(b)] == expected + 1,
                  "argmax: position %d, kv_len %d", position[size_t(b)], kv_len[size_t(b)]);
        }
    }
    CHECK(token.back() == -1, "argmax wrote past its output");
}

}  // namespace

int main() {
    for (int i = 0; i <= static_cast<int>(cpu::Isa::avx512_bf16); ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (!cpu::isa_supported(isa)) continue;
        cpu::set_isa(isa);
        for (const int threads : {1, 2, 3}) {
            cpu::set_num_threads(threads);
            for (const int batch : {1, 3, 8}) {
                for (const int n_in : {1, 7, 130, 1024}) {
                    for (const int n_out : {1, 5, 129}) gemv(batch, n_in, n_out);
                }
                rmsnorm_and_swiglu(batch, 130, 37);
                argmax(batch, 1);
                argmax(batch, 1001);
            }
            for (const int kv_len : {1, 2, 63, 64, 65, 500}) {
                gqa_decode(1, 28, 4, 128, 500, kv_len);
                gqa_decode(2, 8, 8, 96, 500, kv_len);
                gqa_decode(3, 12, 1, 64, 500, kv_len);
            }
        }
    }
    return test::failed();
}
