// pykernels._runtime's part for the table of launch plans: pykernels/plans.py reads the file and asks here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <stdexcept>

#include "ops.h"
#include "plan_table.h"
#include "runtime/program.h"

namespace py = pybind11;

namespace pykernels {
namespace {

using Words = std::map<std::string, int32_t>;

struct PyEntry {
    std::string op;
    Words sizes;
    int32_t batch;
    std::string dtype;
    std::string kernel;  // "": none is chosen
    Words choice;
};

constexpr const char* dtypes[] = {"fp32", "bf16", "fp16"};

PlanKey key_of(const PyEntry& entry, bool cuda) {
    const std::vector<std::string> ops = planned_ops();
    const auto op = std::find(ops.begin(), ops.end(), entry.op);
    if (op == ops.end()) {
        std::string allowed;
        for (const std::string& name : ops) allowed += (allowed.empty() ? "" : ", ") + name;
        throw std::invalid_argument("op must be one of " + allowed + ", got " + entry.op);
    }
    PlanKey key = {static_cast<int32_t>(op - ops.begin()), cuda, Dtype::float32, entry.batch, {}};
    const auto dtype = std::find(std::begin(dtypes), std::end(dtypes), entry.dtype);
    if (dtype == std::end(dtypes))
        throw std::invalid_argument(entry.op + ": dtype must be one of fp32, bf16, fp16, got " + entry.dtype);
    key.dtype = static_cast<Dtype>(dtype - std::begin(dtypes));
    const std::vector<std::string> names = plan_size_names(key.op);
    for (const auto& [name, value] : entry.sizes) {
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) throw std::invalid_argument(entry.op + ": has no size " + name);
        key.sizes[found - names.begin()] = value;
    }
    for (const std::string& name : names) {
        if (entry.sizes.count(name) == 0) throw std::invalid_argument(entry.op + ": sizes must have " + name);
    }
    return key;
}

PlanChoice choice_of(const PyEntry& entry) {
    PlanChoice choice;
    if (!entry.kernel.empty()) choice.kernel = plan_kernel(entry.kernel);
    for (const auto& [name, value] : entry.choice) {
        const auto same_name = [&](const PlanField& field) { return name == field.name; };
        const auto field = std::find_if(std::begin(plan_fields), std::end(plan_fields), same_name);
        if (field == std::end(plan_fields))
            throw std::invalid_argument(entry.op + ": choice has no field " + name);
        choice.*(field->value) = value;
    }
    return choice;
}

using EntryTuple = std::tuple<std::string, Words, int32_t, std::string, std::string, Words>;

void set_table(const std::string& name, const std::string& card, int threads, const std::string& refusal,
               const std::vector<EntryTuple>& entries) {
    auto table = std::make_unique<PlanTable>();
    table->name = name;
    table->card = card;
    table->threads = threads;
    table->refusal = refusal;
    for (const auto& [op, sizes, batch, dtype, kernel, choice] : entries) {
        const PyEntry entry = {op, sizes, batch, dtype, kernel, choice};
        table->entries.push_back({key_of(entry, !card.empty()), choice_of(entry)});
    }
    set_plan_table(std::move(table));
}

// (kernel, fields) as a file has them.
std::pair<std::string, Words> words_of_choice(const PlanChoice& choice) {
    Words fields;
    for (const PlanField& field : plan_fields) {
        if (choice.*field.value) fields[field.name] = choice.*field.value;
    }
    return {choice.kernel == PlanKernel::built_in ? "" : plan_kernel_name(choice.kernel), fields};
}

template <class Body>
void with_planned(const Op& op, Body&& body) {
    std::visit(
        [&](const auto& params) {
            using Params = std::decay_t<decltype(params)>;
            bool planned = false;
#define PYKERNELS_TRY(op, OpParams) planned = planned || std::is_same_v<Params, OpParams>;
            PYKERNELS_PLANNED(PYKERNELS_TRY)
#undef PYKERNELS_TRY
            if (!planned) throw std::invalid_argument("the op has no plans to choose from");
            body(params);
        },
        op);
}

// For ops without plans, which with_planned() has refused by then.
template <class Params>
PlanKey plan_key(const Params&, bool) {
    return {};
}
template <class Params>
std::vector<PlanChoice> plan_candidates(const Params&, const PlanDevice*, int) {
    return {};
}

const Op& op_of(const Program& program, size_t index) {
    if (index >= program.size() || program.is_recording())
        throw std::invalid_argument("the program must be recorded and have op " + std::to_string(index));
    return program.op(index);
}

py::tuple key_words(const Program& program, size_t index, bool cuda) {
    py::tuple words;
    with_planned(op_of(program, index), [&](const auto& params) {
        const PlanKey key = plan_key(params, cuda);
        Words sizes;
        const std::vector<std::string> names = plan_size_names(key.op);
        for (size_t i = 0; i < names.size(); ++i) sizes[names[i]] = key.sizes[i];
        words = py::make_tuple(planned_ops()[static_cast<size_t>(key.op)], sizes, key.batch,
                               dtypes[static_cast<int>(key.dtype)]);
    });
    return words;
}

// (SMs, largest shared memory of a block, sm_90, resident clusters by size)
using DeviceTuple = std::tuple<int, int, bool, std::vector<int>>;

std::vector<std::pair<std::string, Words>> candidates(const Program& program, size_t index,
                                                      const std::optional<DeviceTuple>& device) {
    PlanDevice limits = {};
    if (device) {
        const auto& [sm_count, shared_bytes, sm_90, clusters] = *device;
        if (sm_count < 1) throw std::invalid_argument("a device has at least one SM");
        limits = {sm_count, shared_bytes, sm_90, {}};
        for (size_t i = 0; i < std::min(clusters.size(), std::size(limits.resident_clusters.counts)); ++i)
            limits.resident_clusters.counts[i] = clusters[i];
    }
    std::vector<std::pair<std::string, Words>> words;
    with_planned(op_of(program, index), [&](const auto& params) {
        for (const PlanChoice& choice :
             plan_candidates(params, device ? &limits : nullptr, cpu::num_threads()))
            words.push_back(words_of_choice(choice));
    });
    return words;
}

#ifdef PYKERNELS_CUDA
DeviceTuple device_words(int index) {
    const PlanDevice device = cuda::plan_device(index);
    const auto& counts = device.resident_clusters.counts;
    return {device.sm_count, device.shared_bytes, device.sm_90, {std::begin(counts), std::end(counts)}};
}
#endif

}  // namespace

void bind_plans(py::module_& module) {
    module.def("set_plan_table", &set_table, py::arg("name"), py::arg("card"), py::arg("threads"),
               py::arg("refusal"), py::arg("entries"));
    module.def("clear_plan_table", [] { set_plan_table(nullptr); });
    module.def("plan_key", &key_words, py::arg("program"), py::arg("index"), py::arg("cuda"));
    module.def("plan_candidates", &candidates, py::arg("program"), py::arg("index"), py::arg("device"));
#ifdef PYKERNELS_CUDA
    module.def("plan_device", &device_words, py::arg("index"));
#endif
}

}  // namespace pykernels
