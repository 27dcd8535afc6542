// The table of launch plans: what it takes and refuses, what is found in it, and that every candidate of
// every card is one that its plan function allows and gives.
#include "plan_table.h"

#include <algorithm>
#include <stdexcept>

#include "check.h"
#include "cuda/gemv_mma_plan.h"
#include "cuda/gqa_decode_plan.h"
#include "cuda/int4_gemv_plan.h"
#include "devices.h"

namespace {

using namespace pykernels;

GemvParams gemv(int batch, int in_features, int out_features) {
    GemvParams params{};
    params.batch = batch;
    params.in_features = in_features;
    params.out_features = out_features;
    params.dtype = Dtype::bfloat16;
    return params;
}

GqaDecodeParams attention(int batch, int n_heads, int n_kv_heads, int head_dim, int max_len) {
    GqaDecodeParams params{};
    params.batch = batch;
    params.n_heads = n_heads;
    params.n_kv_heads = n_kv_heads;
    params.head_dim = head_dim;
    params.max_len = max_len;
    params.dtype = Dtype::bfloat16;
    return params;
}

PlanChoice with(PlanKernel kernel, int32_t PlanChoice::* field = nullptr, int value = 0) {
    PlanChoice choice;
    choice.kernel = kernel;
    if (field) choice.*field = value;
    return choice;
}

const char* h200() {
    return "H200";
}

const char* l4() {
    return "L4";
}

void set(const char* card, int threads, std::vector<PlanEntry> entries) {
    auto table = std::make_unique<PlanTable>();
    table->name = "plans.json";
    table->card = card;
    table->threads = threads;
    table->entries = std::move(entries);
    set_plan_table(std::move(table));
}

// The words of what `body` throws; "" where it throws nothing.
template <class Body>
std::string thrown(Body&& body) {
    try {
        body();
        return "";
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
}

#define CHECK_THROWS(words, ...)                                                                      \
    do {                                                                                              \
        const std::string said = thrown([&] { __VA_ARGS__; });                                        \
        CHECK(said.find(words) != std::string::npos, "said \"%s\", not \"%s\"", said.c_str(), words); \
    } while (false)

void test_lookup() {
    const PlanKey key = plan_key(gemv(2, 3584, 18944), true), other = plan_key(gemv(3, 3584, 18944), true);
    const PlanChoice choice = with(PlanKernel::cuda_cores, &PlanChoice::blocks, 64);
    CHECK(planned_on_cuda(key, h200).blocks == 0, "without a table");
    set("H200", 0, {{other, with(PlanKernel::tensor_cores)}, {key, choice}});
    CHECK(planned_on_cuda(key, h200).blocks == 64, "the entry");
    CHECK(planned_on_cuda(other, h200).kernel == PlanKernel::tensor_cores, "the other entry");
    CHECK(planned_on_cuda(plan_key(gemv(4, 3584, 18944), true), h200).blocks == 0, "another batch");
    CHECK(planned_on_cpu(plan_key(gemv(2, 3584, 18944), false), 2).blocks == 0, "a CPU");
    CHECK_THROWS("plans.json: its plans are for H200, and this is L4", planned_on_cuda(key, l4));
    set_plan_table(nullptr);
    CHECK(plan_table() == nullptr && planned_on_cuda(key, l4).blocks == 0, "cleared");

    PlanChoice rows;
    rows.rows = 7;
    set("", 2, {{plan_key(gemv(1, 64, 64), false), rows}});
    CHECK(planned_on_cpu(plan_key(gemv(1, 64, 64), false), 2).rows == 7, "the CPU's entry");
    CHECK_THROWS("for 2 threads, and there are 3", planned_on_cpu(plan_key(gemv(1, 64, 64), false), 3));
    CHECK(planned_on_cuda(key, l4).blocks == 0, "a CPU's table says nothing of a GPU");

    auto refused = std::make_unique<PlanTable>();
    refused->refusal = "no such file";
    set_plan_table(std::move(refused));
    CHECK_THROWS("no such file", planned_on_cpu(key, 2));
    CHECK_THROWS("no such file", planned_on_cuda(key, h200));
    set_plan_table(nullptr);
}

void test_refused_entries() {
    const PlanKey on_cuda = plan_key(gemv(1, 64, 64), true), on_cpu = plan_key(gemv(1, 64, 64), false);
    CHECK_THROWS("must choose something", set("H200", 0, {{on_cuda, {}}}));
    CHECK_THROWS("kernel must be one that the op has there, got bulk",
                 set("H200", 0, {{on_cuda, with(PlanKernel::bulk)}}));
    CHECK_THROWS("kernel must be one", set("", 1, {{on_cpu, with(PlanKernel::cuda_cores)}}));
    CHECK_THROWS("splits is no field",
                 set("H200", 0, {{on_cuda, with(PlanKernel::cuda_cores, &PlanChoice::splits, 2)}}));
    CHECK_THROWS("rows must be positive",
                 set("", 1, {{on_cpu, with(PlanKernel::built_in, &PlanChoice::rows, -1)}}));
    CHECK_THROWS(
        "is there twice",
        set("H200", 0, {{on_cuda, with(PlanKernel::cuda_cores)}, {on_cuda, with(PlanKernel::tensor_cores)}}));
    CHECK_THROWS("batch must be",
                 set("H200", 0, {{plan_key(gemv(9, 64, 64), true), with(PlanKernel::cuda_cores)}}));
    CHECK_THROWS("sizes must be",
                 set("H200", 0, {{plan_key(gemv(1, 0, 64), true), with(PlanKernel::cuda_cores)}}));
    CHECK(plan_table() == nullptr, "a refused table is not set");
    CHECK_THROWS("kernel must be one of cuda-cores,", plan_kernel("mma"));
}

PlanDevice limits_of(const test::Device& device) {
    return {device.sm_count, device.shared_bytes, device.sm_90, device.resident_clusters()};
}

void test_gemv_candidates(const test::Device& device) {
    const PlanDevice limits = limits_of(device);
    const cuda::GemvDevice of = {device.sm_count, device.shared_bytes};
    for (const int batch : {1, 2, 8}) {
        for (const auto& [width, rows] : {std::pair(3584, 18944), {18944, 3584}, {3584, 152064}, {64, 10}}) {
            const int pairs = (rows + 1) / 2;
            const auto candidates = plan_candidates(gemv(batch, width, rows), &limits, 1);
            for (const PlanChoice& choice : candidates) {
                CHECK(cuda::gemv_allows(pairs, width, batch, of, choice), "%s on %s",
                      words_of(choice).c_str(), device.name);
                const auto plan = cuda::plan_gemv_mma(pairs, width, batch, true, true, of, choice);
                CHECK((plan.shape >= 0) == (choice.kernel == PlanKernel::tensor_cores ||
                                            (choice.kernel == PlanKernel::built_in && batch > 1)),
                      "%s on %s: shape %d", words_of(choice).c_str(), device.name, plan.shape);
                if (plan.shape >= 0)
                    CHECK(plan.shared_bytes <= device.shared_bytes &&
                              cuda::gemv_mma_is_compiled(cuda::gemv_mma_shapes[plan.shape],
                                                         device.shared_bytes),
                          "shape %d, %d bytes on %s", plan.shape, plan.shared_bytes, device.name);
                if (choice.kernel == PlanKernel::tensor_cores)
                    CHECK(cuda::gemv_mma_shapes[plan.shape].warps == choice.warps, "shape %d", plan.shape);
            }
        }
    }
    PlanChoice choice = with(PlanKernel::cuda_cores);
    CHECK(!cuda::gemv_allows(100, 3584, 2, of, choice), "CUDA cores stream one sequence alone");
    choice = with(PlanKernel::tensor_cores, &PlanChoice::warps, 7);
    CHECK(!cuda::gemv_allows(100, 3584, 2, of, choice), "no shape has 7 warps");
    choice = with(PlanKernel::built_in, &PlanChoice::blocks, 101);
    CHECK(!cuda::gemv_allows(100, 3584, 1, of, choice), "more blocks than row pairs");
    CHECK(cuda::gemv_allows(100, 3584, 1, of, {}) && cuda::gemv_allows(100, 3584, 2, of, {}),
          "the built-in plan");
}

void test_gqa_candidates(const test::Device& device) {
    const PlanDevice limits = limits_of(device);
    const cuda::GqaDevice of = {device.sm_count, device.shared_bytes, device.sm_90, limits.resident_clusters};
    for (const int head_dim : {64, 80, 128, 256}) {
        for (const int max_len : {16, 1000, 2048, 65536}) {
            const GqaDecodeParams params = attention(1, 28, 4, head_dim, max_len);
            CHECK(cuda::gqa_allows(params, of, {}), "the built-in plan on %s", device.name);
            for (const PlanChoice& choice : plan_candidates(params, &limits, 1)) {
                const cuda::GqaPlan plan = cuda::plan_gqa_decode(params, of, false, choice),
                                    behind = cuda::plan_gqa_decode(params, of, true, choice);
                const std::string words = words_of(choice);
                CHECK(behind.bulk_copies == plan.bulk_copies && behind.splits == plan.splits &&
                          behind.cluster_splits == plan.cluster_splits,
                      "%s, a PDL launch", words.c_str());
                CHECK(behind.shared_bytes <= device.shared_bytes, "%s, a PDL launch: %d bytes on %s",
                      words.c_str(), behind.shared_bytes, device.name);
                CHECK(plan.any_dim == (choice.kernel == PlanKernel::any_dim), "%s", words.c_str());
                CHECK(plan.bulk_copies == (choice.kernel == PlanKernel::bulk), "%s", words.c_str());
                CHECK(plan.splits == (choice.splits ? choice.splits : choice.cluster), "%s", words.c_str());
                CHECK(plan.cluster_splits == std::max(choice.cluster, 1), "%s", words.c_str());
                CHECK(plan.shared_bytes <= device.shared_bytes, "%s: %d bytes on %s", words.c_str(),
                      plan.shared_bytes, device.name);
                CHECK(plan.reducers <= plan.splits, "%s: %d reducers", words.c_str(), plan.reducers);
            }
        }
    }
    const GqaDecodeParams params = attention(1, 28, 4, 80, 1000);
    CHECK(!cuda::gqa_allows(params, of, with(PlanKernel::registers, &PlanChoice::splits, 4)), "head_dim 80");
    CHECK(!cuda::gqa_allows(params, of, with(PlanKernel::any_dim, &PlanChoice::splits, 64)), "63 tiles");
    CHECK(!cuda::gqa_allows(params, of, with(PlanKernel::any_dim)), "neither splits nor cluster");
    CHECK(!cuda::gqa_allows(params, of, with(PlanKernel::any_dim, &PlanChoice::cluster, 17)),
          "a cluster of 17");
}

void test_int4_candidates(const test::Device& device) {
    const PlanDevice limits = limits_of(device);
    const cuda::GemvDevice of = {device.sm_count, device.shared_bytes};
    Int4GemvParams params{};
    params.dtype = Dtype::bfloat16;
    for (const int batch : {1, 4, 8}) {
        params.batch = batch;
        params.in_features = 4096;
        params.out_features = 14336;
        params.weight.n_groups = 32;
        const cuda::Int4GemvSizes sizes = {7168, 4096, batch, 32, 1, false, false};
        CHECK(cuda::int4_allows(sizes, true, of, {}), "the built-in plan on %s", device.name);
        for (const PlanChoice& choice : plan_candidates(params, &limits, 1)) {
            const auto fast = cuda::plan_int4_gemv_fast(sizes, true, false, of, 0, choice);
            CHECK(fast.fits == (choice.kernel == PlanKernel::fast), "%s", words_of(choice).c_str());
            const int warps = fast.fits ? fast.warps : cuda::plan_int4_gemv(sizes, false, of, choice).warps;
            CHECK(warps == choice.warps, "%s: %d warps", words_of(choice).c_str(), warps);
        }
        CHECK(!cuda::int4_allows(sizes, false, of, with(PlanKernel::fast)), "a perm on the fast path");
        CHECK(!cuda::int4_allows(sizes, true, of, with(PlanKernel::fast, &PlanChoice::warps, 12)),
              "12 warps");
        CHECK(!cuda::int4_allows(sizes, true, of, with(PlanKernel::general, &PlanChoice::warps, 5)),
              "5 warps");
    }
    // The built-in plan of long rows has pairs of blocks where there are clusters; the same warps without
    // them are a choice there, and only there.
    params.batch = 1;
    params.in_features = 18944;
    params.out_features = 3584;
    params.weight.n_groups = 148;
    const std::vector<PlanChoice> choices = plan_candidates(params, &limits, 1);
    const auto built_in = cuda::plan_int4_gemv_fast({1792, 18944, 1, 148, 1, false, false}, true, false, of,
                                                    limits.resident_clusters.counts[2]);
    const bool offered = std::any_of(choices.begin(), choices.end(), [&](const PlanChoice& choice) {
        return choice.kernel == PlanKernel::fast && choice.warps == built_in.warps;
    });
    const bool fits = cuda::int4_allows({1792, 18944, 1, 148, 1, false, false}, true, of,
                                        with(PlanKernel::fast, &PlanChoice::warps, built_in.warps));
    CHECK(!built_in.fits || offered == (built_in.ranks == 2 && fits), "%d ranks, %d warps on %s",
          built_in.ranks, built_in.warps, device.name);
}

void test_cpu_candidates() {
    for (const PlanChoice& choice : plan_candidates(gemv(1, 64, 100), nullptr, 4))
        CHECK(choice.rows >= 1 && choice.rows <= 25, "%d rows", choice.rows);
    for (const PlanChoice& choice : plan_candidates(attention(1, 8, 2, 64, 200), nullptr, 4))
        CHECK(choice.splits >= 1 && choice.splits <= 4, "%d splits of 200 slots", choice.splits);
}

}  // namespace

int main() {
    test_lookup();
    test_refused_entries();
    for (const pykernels::test::Device& device : pykernels::test::devices) {
        test_gemv_candidates(device);
        test_gqa_candidates(device);
        test_int4_candidates(device);
    }
    test_cpu_candidates();
    return pykernels::test::failed();
}
