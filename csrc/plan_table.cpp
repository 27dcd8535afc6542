#include "plan_table.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace pykernels {
namespace {

enum PlannedOp : int32_t {
#define PYKERNELS_NUMBER(op, Params) op##_number,
    PYKERNELS_PLANNED(PYKERNELS_NUMBER)
#undef PYKERNELS_NUMBER
};

struct Rule {
    std::vector<std::string> sizes;
    std::vector<PlanKernel> kernels;          // on CUDA
    std::vector<int32_t PlanChoice::*> cuda;  // the fields that a choice may have there
    int32_t PlanChoice::* cpu;                // and the one that a CPU's has
};

const std::vector<PlanKernel> dense_kernels = {PlanKernel::cuda_cores, PlanKernel::tensor_cores},
                              int4_kernels = {PlanKernel::fast, PlanKernel::general};
const std::vector<int32_t PlanChoice::*> dense_fields = {&PlanChoice::blocks, &PlanChoice::vectors,
                                                         &PlanChoice::warps, &PlanChoice::row_tiles},
                                         int4_fields = {&PlanChoice::warps};

// In the order of PlannedOp. `in_order` is 1 where no weight has a perm.
const Rule rules[] = {
    {{"in_features", "out_features"}, dense_kernels, dense_fields, &PlanChoice::rows},
    {{"n_heads", "n_kv_heads", "head_dim", "max_len"},
     {PlanKernel::registers, PlanKernel::bulk, PlanKernel::any_dim},
     {&PlanChoice::splits, &PlanChoice::cluster},
     &PlanChoice::splits},
    {{"in_features", "out_features"}, dense_kernels, dense_fields, &PlanChoice::rows},
    {{"hidden", "n_heads", "n_kv_heads", "head_dim"}, dense_kernels, dense_fields, &PlanChoice::rows},
    {{"in_features", "out_features", "n_groups", "in_order"}, int4_kernels, int4_fields, &PlanChoice::rows},
    {{"in_features", "out_features", "n_groups", "in_order"}, int4_kernels, int4_fields, &PlanChoice::rows},
    {{"hidden", "n_heads", "n_kv_heads", "head_dim", "n_groups", "in_order"},
     int4_kernels,
     int4_fields,
     &PlanChoice::rows},
};

constexpr const char* kernel_names[] = {"built-in", "cuda-cores", "tensor-cores", "fast",
                                        "general",  "registers",  "bulk",         "any-dim"};

constexpr const char* dtype_names[] = {"fp32", "bf16", "fp16"};

bool same(const PlanKey& a, const PlanKey& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;  // int32 throughout: no padding
}

bool before(const PlanEntry& a, const PlanEntry& b) {
    return std::memcmp(&a.key, &b.key, sizeof a.key) < 0;
}

template <class Values, class Value>
bool holds(const Values& values, const Value& value) {
    return std::find(values.begin(), values.end(), value) != values.end();
}

[[noreturn]] void fail(const PlanEntry& entry, const std::string& why) {
    throw std::invalid_argument(words_of(entry.key) + ": " + why);
}

void check_entry(const PlanEntry& entry) {
    const PlanKey& key = entry.key;
    const Rule& rule = rules[key.op];
    for (int i = 0; i < plan_max_sizes; ++i) {
        if (key.sizes[i] < 0 || (i < static_cast<int>(rule.sizes.size()) && key.sizes[i] == 0 &&
                                 rule.sizes[static_cast<size_t>(i)] != "in_order"))
            fail(entry, "sizes must be positive");
    }
    if (key.batch < 1 || key.batch > max_batch) fail(entry, "batch must be in 1..8");
    const PlanKernel kernel = entry.choice.kernel;
    if (kernel != PlanKernel::built_in && (!key.cuda || !holds(rule.kernels, kernel)))
        fail(entry, std::string("kernel must be one that the op has there, got ") + plan_kernel_name(kernel));
    bool any = kernel != PlanKernel::built_in;
    for (const PlanField& field : plan_fields) {
        const int32_t value = entry.choice.*field.value;
        if (value == 0) continue;
        if (value < 0) fail(entry, std::string(field.name) + " must be positive");
        if (key.cuda ? !holds(rule.cuda, field.value) : rule.cpu != field.value)
            fail(entry, std::string(field.name) + " is no field of this op's plans there");
        any = true;
    }
    if (!any) fail(entry, "must choose something");
}

std::atomic<const PlanTable*> current{nullptr};

PlanChoice find(const PlanTable& table, const PlanKey& key) {
    const PlanEntry wanted = {key, {}};
    const auto found = std::lower_bound(table.entries.begin(), table.entries.end(), wanted, before);
    return found != table.entries.end() && same(found->key, key) ? found->choice : PlanChoice{};
}

void check_usable(const PlanTable& table) {
    if (!table.refusal.empty()) throw std::invalid_argument(table.refusal);
}

}  // namespace

void set_plan_table(std::unique_ptr<PlanTable> table) {
    // Launches of other threads may still read the one before: tables are small, and none is freed.
    static std::mutex mutex;
    static std::vector<std::unique_ptr<const PlanTable>> kept;
    if (table) {
        for (const PlanEntry& entry : table->entries) check_entry(entry);
        std::sort(table->entries.begin(), table->entries.end(), before);
        for (size_t i = 1; i < table->entries.size(); ++i) {
            if (same(table->entries[i - 1].key, table->entries[i].key))
                fail(table->entries[i], "is there twice");
        }
    }
    const std::lock_guard lock(mutex);
    current.store(table.get(), std::memory_order_release);
    if (table) kept.push_back(std::move(table));
}

const PlanTable* plan_table() {
    return current.load(std::memory_order_acquire);
}

PlanChoice planned_on_cpu(const PlanKey& key, int threads) {
    const PlanTable* table = plan_table();
    if (table == nullptr) return {};
    check_usable(*table);
    const PlanChoice choice = table->card.empty() ? find(*table, key) : PlanChoice{};
    if (table->card.empty() && table->threads != threads) {
        throw std::invalid_argument(table->name + ": its plans are for " + std::to_string(table->threads) +
                                    " threads, and there are " + std::to_string(threads));
    }
    return choice;
}

PlanChoice planned_on_cuda(const PlanKey& key, const char* (*card)()) {
    const PlanTable* table = plan_table();
    if (table == nullptr) return {};
    check_usable(*table);
    if (table->card.empty()) return {};
    if (table->card != card()) {
        throw std::invalid_argument(table->name + ": its plans are for " + table->card + ", and this is " +
                                    card());
    }
    return find(*table, key);
}

void refuse_plan(const PlanKey& key, const PlanChoice& choice, const char* why) {
    const PlanTable* table = plan_table();
    throw std::invalid_argument((table ? table->name : "the plan table") + ": " + words_of(key) +
                                " cannot run with " + words_of(choice) + ": it needs " + why);
}

std::vector<std::string> planned_ops() {
#define PYKERNELS_NAME(op, Params) #op,
    return {PYKERNELS_PLANNED(PYKERNELS_NAME)};
#undef PYKERNELS_NAME
}

std::vector<std::string> plan_size_names(int op) {
    return rules[op].sizes;
}

const char* plan_kernel_name(PlanKernel kernel) {
    return kernel_names[static_cast<int>(kernel)];
}

PlanKernel plan_kernel(const std::string& name) {
    std::string allowed;
    for (int i = 1; i < static_cast<int>(std::size(kernel_names)); ++i) {
        if (name == kernel_names[i]) return static_cast<PlanKernel>(i);
        allowed += (i > 1 ? ", " : "") + std::string(kernel_names[i]);
    }
    throw std::invalid_argument("kernel must be one of " + allowed + ", got " + name);
}

std::string words_of(const PlanKey& key) {
    std::string words = planned_ops()[static_cast<size_t>(key.op)] + " (";
    const Rule& rule = rules[key.op];
    for (size_t i = 0; i < rule.sizes.size(); ++i)
        words += rule.sizes[i] + " " + std::to_string(key.sizes[i]) + ", ";
    return words + "batch " + std::to_string(key.batch) + ", " + dtype_names[static_cast<int>(key.dtype)] +
           (key.cuda ? ", cuda)" : ", cpu)");
}

std::string words_of(const PlanChoice& choice) {
    std::string words = choice.kernel == PlanKernel::built_in ? "" : plan_kernel_name(choice.kernel);
    for (const PlanField& field : plan_fields) {
        if (const int32_t value = choice.*field.value)
            words += (words.empty() ? "" : ", ") + std::string(field.name) + " " + std::to_string(value);
    }
    return words.empty() ? "built-in" : words;
}

// --- keys

PlanKey plan_key(const GemvParams& p, bool cuda) {
    return {gemv_number, cuda, p.dtype, p.batch, {p.in_features, p.out_features}};
}

PlanKey plan_key(const SwigluGemvParams& p, bool cuda) {
    return {swiglu_gemv_number, cuda, p.dtype, p.batch, {p.in_features, p.out_features}};
}

PlanKey plan_key(const QkvGemvParams& p, bool cuda) {
    return {qkv_gemv_number, cuda, p.dtype, p.batch, {p.hidden, p.n_heads, p.n_kv_heads, p.head_dim}};
}

PlanKey plan_key(const GqaDecodeParams& p, bool cuda) {
    return {gqa_decode_number, cuda, p.dtype, p.batch, {p.n_heads, p.n_kv_heads, p.head_dim, p.max_len}};
}

PlanKey plan_key(const Int4GemvParams& p, bool cuda) {
    const int32_t in_order = p.weight.perm == nullptr;
    return {int4_gemv_number,
            cuda,
            p.dtype,
            p.batch,
            {p.in_features, p.out_features, p.weight.n_groups, in_order}};
}

PlanKey plan_key(const Int4SwigluGemvParams& p, bool cuda) {
    const int32_t in_order = p.gate.perm == nullptr && p.up.perm == nullptr;
    const int32_t n_groups = std::max(p.gate.n_groups, p.up.n_groups);
    return {
        int4_swiglu_gemv_number, cuda, p.dtype, p.batch, {p.in_features, p.out_features, n_groups, in_order}};
}

PlanKey plan_key(const Int4QkvGemvParams& p, bool cuda) {
    const int32_t in_order = p.q.perm == nullptr && p.k.perm == nullptr && p.v.perm == nullptr;
    const int32_t n_groups = std::max({p.q.n_groups, p.k.n_groups, p.v.n_groups});
    return {int4_qkv_gemv_number,
            cuda,
            p.dtype,
            p.batch,
            {p.hidden, p.n_heads, p.n_kv_heads, p.head_dim, n_groups, in_order}};
}

}  // namespace pykernels
