// The executor's own arithmetic: MMA and the warp functions by ptx_math.cuh's layouts, written out
// element by element; 16-bit floats; the clock; what is refused.
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/common/ptx_math.cuh"

using namespace pykernels;

namespace {

constexpr int lanes = 32;
const cuda::Stream stream = {nullptr, false};

template <class T>
class DeviceVector {
  public:
    explicit DeviceVector(size_t count)
        : data_(static_cast<T*>(simt::executor().memory.allocate(count * sizeof(T), 0))) {}
    ~DeviceVector() { simt::executor().memory.release(data_); }
    DeviceVector(const DeviceVector&) = delete;
    DeviceVector& operator=(const DeviceVector&) = delete;
    T* data() { return data_; }
    T& operator[](size_t i) { return data_[i]; }

  private:
    T* data_;
};

// a: [16][16], b: [16][8], c: [16][8], row-major; every lane picks its elements by hand.
template <bool bf16>
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* c) {
    using namespace cuda;
    const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
    const auto a_pair = [&](int row, int column) {
        return uint32_t{load(a + row * 16 + column)} | uint32_t{load(a + row * 16 + column + 1)} << 16;
    };
    const auto b_pair = [&](int row) {
        return uint32_t{load(b + row * 8 + g)} | uint32_t{load(b + (row + 1) * 8 + g)} << 16;
    };
    const uint32_t a_part[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                                a_pair(g + 8, 2 * t + 8)};
    const uint32_t b_part[2] = {b_pair(2 * t), b_pair(2 * t + 8)};
    float* const places[4] = {c + g * 8 + 2 * t, c + g * 8 + 2 * t + 1, c + (g + 8) * 8 + 2 * t,
                              c + (g + 8) * 8 + 2 * t + 1};
    float c_part[4];
    for (int i = 0; i < 4; ++i) c_part[i] = load(places[i]);
    if (bf16) {
        mma_bf16(c_part, a_part, b_part);
    } else {
        mma_fp16(c_part, a_part, b_part);
    }
    for (int i = 0; i < 4; ++i) store(places[i], c_part[i]);
}

template <bool bf16>
void check_mma() {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    DeviceVector<uint16_t> a(256), b(128);
    DeviceVector<float> c(128);
    std::vector<double> expected(128), a_values(256), b_values(128);
    const auto round = [&](double& value, uint16_t& bits) {
        const float x = normal(engine);
        bits = bf16 ? cuda::float_to_bf16(x) : cuda::float_to_fp16(x);
        value = double{bf16 ? cuda::bits_to_float(uint32_t{bits} << 16) : cuda::fp16_to_float(bits)};
    };
    for (size_t i = 0; i < 256; ++i) round(a_values[i], a[i]);
    for (size_t i = 0; i < 128; ++i) round(b_values[i], b[i]);
    for (size_t i = 0; i < 128; ++i) {
        c[i] = normal(engine);
        expected[i] = double{c[i]};
        for (size_t k = 0; k < 16; ++k) expected[i] += a_values[i / 8 * 16 + k] * b_values[k * 8 + i % 8];
    }
    cuda::launch(mma_kernel<bf16>, 1, lanes, 0, stream, static_cast<const uint16_t*>(a.data()),
                 static_cast<const uint16_t*>(b.data()), c.data());
    simt::executor().synchronize();
    for (size_t i = 0; i < 128; ++i) {
        CHECK(std::fabs(c[i] - expected[i]) < 1e-5, "mma c[%zu] = %g, expected %g", i, c[i], expected[i]);
    }
}

// a: [16][32], b: [32][8], c: [16][8], row-major; every lane picks its elements by hand.
__global__ void mma_bytes_kernel(const uint8_t* a, const int8_t* b, int* c) {
    using namespace cuda;
    const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
    uint32_t a_part[4] = {}, b_part[2] = {};
    for (int i = 0; i < 4; ++i) {
        for (int part = 0; part < 4; ++part) {
            const int row = g + part % 2 * 8, column = 4 * t + i + part / 2 * 16;
            a_part[part] |= uint32_t{load(a + row * 32 + column)} << 8 * i;
        }
        for (int part = 0; part < 2; ++part)
            b_part[part] |= uint32_t{static_cast<uint8_t>(load(b + (4 * t + i + part * 16) * 8 + g))}
                            << 8 * i;
    }
    int* const places[4] = {c + g * 8 + 2 * t, c + g * 8 + 2 * t + 1, c + (g + 8) * 8 + 2 * t,
                            c + (g + 8) * 8 + 2 * t + 1};
    int c_part[4];
    for (int i = 0; i < 4; ++i) c_part[i] = load(places[i]);
    mma_u8s8(c_part, a_part, b_part);
    for (int i = 0; i < 4; ++i) store(places[i], c_part[i]);
}

void check_mma_bytes() {
    std::mt19937 engine(2);
    DeviceVector<uint8_t> a(512);
    DeviceVector<int8_t> b(256);
    DeviceVector<int> c(128);
    std::vector<int> expected(128);
    for (size_t i = 0; i < 512; ++i) a[i] = static_cast<uint8_t>(engine());
    for (size_t i = 0; i < 256; ++i) b[i] = static_cast<int8_t>(engine());
    for (size_t i = 0; i < 128; ++i) {
        expected[i] = c[i] = static_cast<int>(engine() % 1000);
        for (size_t k = 0; k < 32; ++k) expected[i] += int{a[i / 8 * 32 + k]} * int{b[k * 8 + i % 8]};
    }
    cuda::launch(mma_bytes_kernel, 1, lanes, 0, stream, static_cast<const uint8_t*>(a.data()),
                 static_cast<const int8_t*>(b.data()), c.data());
    simt::executor().synchronize();
    for (size_t i = 0; i < 128; ++i)
        CHECK(c[i] == expected[i], "mma of bytes c[%zu] = %d, expected %d", i, c[i], expected[i]);
}

// out: [lanes][8]
__global__ void warp_kernel(uint32_t* out) {
    using namespace cuda;
    const auto lane = static_cast<uint32_t>(threadIdx.x);
    // Element (row, column) of the matrix is 16 * row + column.
    const uint32_t rows = (16 * (lane / 4) + 2 * (lane % 4)) | (16 * (lane / 4) + 2 * (lane % 4) + 1) << 16;
    store(out + lane * 8 + 0, transpose_8x8(rows));
    store(out + lane * 8 + 1, shuffle_xor(lane, 5));
    store(out + lane * 8 + 2, shuffle_down(lane, 3));
    store(out + lane * 8 + 3, shuffle_index(lane * 2, 9));
    store(out + lane * 8 + 4, ballot(lane % 3 == 0));
    store(out + lane * 8 + 5, low_halves(0x11112222u, 0x33334444u));
    store(out + lane * 8 + 6, high_halves(0x11112222u, 0x33334444u));
    store(out + lane * 8 + 7, static_cast<uint32_t>(shuffle_xor(uint64_t{lane} << 33, 1) >> 33));
}

void check_warp() {
    DeviceVector<uint32_t> out(lanes * 8);
    uint32_t votes = 0;
    for (uint32_t lane = 0; lane < lanes; lane += 3) votes |= 1u << lane;
    cuda::launch(warp_kernel, 1, lanes, 0, stream, out.data());
    simt::executor().synchronize();
    for (uint32_t lane = 0; lane < lanes; ++lane) {
        const uint32_t row = lane / 4, column = lane % 4 * 2;
        const uint32_t expected[8] = {(16 * column + row) | (16 * (column + 1) + row) << 16,
                                      lane ^ 5,
                                      lane + 3 < lanes ? lane + 3 : lane,
                                      18,
                                      votes,
                                      0x44442222u,
                                      0x33331111u,
                                      lane ^ 1};
        for (size_t i = 0; i < 8; ++i) {
            CHECK(out[lane * 8 + i] == expected[i], "lane %u, %zu: %x, expected %x", lane, i,
                  out[lane * 8 + i], expected[i]);
        }
    }
}

// out: [12]
__global__ void fma_kernel(uint32_t* out) {
    using namespace cuda;
    // 3 * 0.5 - 1 and -2 * 4 + 0.25; subnormal numbers of 5 and 240 smallest steps, by a power of two.
    store(out + 0, fma_bf16x2(0xc0004040u, 0x40803f00u, 0x3e80bf80u));
    store(out + 1, fma_fp16x2(0xc0004200u, 0x44003800u, 0x3400bc00u));
    store(out + 2, fma_bf16x2(0x00f00005u, 0x7d007f00u, 0));
    store(out + 3, fma_fp16x2(0x00f00005u, 0x68007800u, 0));
    // Rounded once, to the even neighbour: 1 + 2^-8 and 1 + 3 * 2^-8, 1 + 2^-11 and 1 + 3 * 2^-11.
    store(out + 4, fma_bf16x2(0x40403f80u, 0x3b803b80u, 0x3f803f80u));
    store(out + 5, fma_fp16x2(0x42003c00u, 0x10001000u, 0x3c003c00u));
    // Copied, and zeros.
    auto* words = reinterpret_cast<uint32_t*>(shared_memory());
    for (int i = 0; i < 4; ++i) store(words + 4 + i, 7u);
    async_copy16_or_zeros(words, out, true);
    async_copy16_or_zeros(words + 4, out, false);
    async_commit();
    async_wait<0>();
    store(out + 6, load(words + 3));
    store(out + 7, load(words + 4) | load(words + 5) | load(words + 6) | load(words + 7));
    async_copy4(words + 1, out + 5);
    async_commit();
    async_wait<0>();
    store(out + 8, load(words + 1));
    store(out + 9, select_bytes<0x7052>(0x33221100u, 0x77665544u));
    store(out + 10, float_to_bits(max_magnitude(-3.0f, 2.0f)));
    store(out + 11, float_to_bits(max_magnitude(bits_to_float(0x7fc00000u), 2.0f)) & 0x7fc00000u);
}

void check_fma() {
    DeviceVector<uint32_t> out(12);
    cuda::launch(fma_kernel, 1, 1, 32, stream, out.data());
    simt::executor().synchronize();
    const uint32_t expected[12] = {0xc0f83f00u, 0xc7c03800u, 0x3e703da0u, 0x27802100u,
                                   0x3f823f80u, 0x3c023c00u, 0x27802100u, 0,
                                   0x3c023c00u, 0x77005522u, 0x40400000u, 0x7fc00000u};
    for (size_t i = 0; i < 12; ++i)
        CHECK(out[i] == expected[i], "fma %zu: %08x, expected %08x", i, out[i], expected[i]);
}

void check_conversions() {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float fp16 = cuda::fp16_to_float(half), bf16 = cuda::bits_to_float(bits << 16);
        const int exponent = half >> 10 & 31;
        const double magnitude = exponent == 31  ? ((half & 0x3ff) ? NAN : INFINITY)
                                 : exponent == 0 ? std::ldexp(half & 0x3ff, -24)
                                                 : std::ldexp(1024 + (half & 0x3ff), exponent - 25);
        const double expected = half & 0x8000 ? -magnitude : magnitude;
        CHECK(std::isnan(expected) ? std::isnan(fp16) : fp16 == expected, "fp16 %04x: %g", bits, fp16);
        CHECK(std::isnan(fp16) ? cuda::float_to_fp16(fp16) == 0x7fff : cuda::float_to_fp16(fp16) == half,
              "fp16 %04x there and back: %04x", bits, cuda::float_to_fp16(fp16));
        CHECK(std::isnan(bf16) ? cuda::float_to_bf16(bf16) == 0x7fff : cuda::float_to_bf16(bf16) == half,
              "bf16 %04x there and back: %04x", bits, cuda::float_to_bf16(bf16));
    }
    // Half-way between neighbours goes to the even one; a little more and a little less do not.
    for (uint16_t half = 0; half < 0x7bff; ++half) {
        const float low = cuda::fp16_to_float(half), high = cuda::fp16_to_float(half + 1),
                    middle = (low + high) / 2;
        CHECK(cuda::float_to_fp16(middle) == (half % 2 ? half + 1 : half), "the middle above %04x", half);
        CHECK(cuda::float_to_fp16(std::nextafterf(middle, high)) == half + 1, "above the middle of %04x",
              half);
        CHECK(cuda::float_to_fp16(std::nextafterf(middle, low)) == half, "below the middle of %04x", half);
    }
    CHECK(cuda::float_to_fp16(65519.0f) == 0x7bff && cuda::float_to_fp16(65520.0f) == 0x7c00,
          "fp16 overflow");
    for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
        const uint32_t middle = bits << 16 | 0x8000;
        CHECK(cuda::float_to_bf16(cuda::bits_to_float(middle)) == (bits % 2 ? bits + 1 : bits), "%x", middle);
        CHECK(cuda::float_to_bf16(cuda::bits_to_float(middle + 1)) == bits + 1, "%x", middle + 1);
        CHECK(cuda::float_to_bf16(cuda::bits_to_float(middle - 1)) == bits, "%x", middle - 1);
    }
}

void check_controls() {
    int released = 1;
    cuda::null({}, stream);
    cuda::spin({20.0}, stream);
    cuda::hold(&released, stream);
    simt::executor().synchronize();
    released = 0;
    cuda::hold(&released, stream);  // ten seconds of the executor's clock
    simt::executor().synchronize();
}

// Of every thread: two readings of the SM's clock, one of the device's between, and where it ran.
__global__ void clock_kernel(uint64_t* times, uint32_t* sms, const uint4* variable) {
    using namespace cuda;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t before = sm_clock(), between = device_clock_ns(), after = sm_clock();
    store(times + 3 * thread, before);
    store(times + 3 * thread + 1, between);
    store(times + 3 * thread + 2, after);
    store(sms + thread, sm_index() + load_variable(variable).z);
}

void check_clocks() {
    constexpr int blocks = 6, sm_count = 4;
    simt::Settings settings = simt::executor().settings();
    settings.sm_count = sm_count;
    simt::executor().configure(settings);
    DeviceVector<uint64_t> times(3 * blocks * lanes);
    DeviceVector<uint32_t> sms(blocks * lanes);
    const uint4 variable = {1, 2, 300, 4};
    cuda::launch(clock_kernel, blocks, lanes, 0, stream, times.data(), sms.data(), &variable);
    simt::executor().synchronize();
    for (size_t i = 0; i < blocks * lanes; ++i) {
        CHECK(0 < times[3 * i] && times[3 * i] < times[3 * i + 1] && times[3 * i + 1] < times[3 * i + 2],
              "the clocks of thread %zu stand still", i);
        CHECK(sms[i] == 300 + i / lanes % sm_count, "thread %zu ran on SM %u", i, sms[i] - 300);
    }
}

template <class Body>
bool throws(Body&& body) {
    try {
        body();
    } catch (const std::exception&) {
        return true;
    }
    return false;
}

void check_refusals() {
    const auto launch = [](int blocks, int threads, size_t shared_bytes) {
        return throws([&] {
            cuda::launch(warp_kernel, blocks, threads, shared_bytes, stream, static_cast<uint32_t*>(nullptr));
        });
    };
    CHECK(launch(0, 32, 0), "a launch of no blocks");
    CHECK(launch(1, 0, 0), "a launch of no threads");
    CHECK(launch(1, 1025, 0), "a launch of 1025 threads");
    CHECK(launch(1, 32, 300 * 1024), "a launch of 300 KB of shared memory");
    CHECK(throws([] { cuda::DeviceScope scope(1); }), "a second device");
    int not_a_buffer = 0;
    CHECK(throws([&] { simt::executor().memory.release(&not_a_buffer); }), "freeing what is no buffer");
}

}  // namespace

int main(int, char** arguments) {
    simt::Settings settings;
    settings.arch = std::stoi(arguments[1]);
    simt::executor().configure(settings);
    check_mma<true>();
    check_mma<false>();
    check_mma_bytes();
    check_warp();
    check_fma();
    check_conversions();
    check_controls();
    check_clocks();
    check_refusals();
    return test::failed();
}
