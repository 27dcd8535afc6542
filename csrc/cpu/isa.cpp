// Which instruction set runs, and the settings read from the environment.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/isa_names.h"
#include "cpu/settings.h"
#include "cpu/vnni.h"
#include "ops.h"

namespace pykernels::cpu {
namespace {

// The kernels that this build has: the definitions come from CMakeLists.txt.
constexpr bool built[] = {
#ifdef PYKERNELS_HAS_GENERIC
    true,
#else
    false,
#endif
#ifdef PYKERNELS_HAS_AVX2
    true,
#else
    false,
#endif
#ifdef PYKERNELS_HAS_AVX512
    true,
#else
    false,
#endif
#ifdef PYKERNELS_HAS_AVX512_BF16
    true,
#else
    false,
#endif
};

struct Choice {
    const char* name;
    Isa isa;
    bool vnni;
};
// From the least to the best. An Isa's own name comes first.
constexpr Choice choices[] = {
    {"generic", Isa::generic, false},         {"avx2", Isa::avx2, false},
    {"avx512", Isa::avx512, false},           {"avx512_vnni", Isa::avx512, true},
    {"avx512_bf16", Isa::avx512_bf16, false},
};
constexpr int n_choices = sizeof(choices) / sizeof(choices[0]);

bool supported(const Choice& choice) {
    if (!isa_supported(choice.isa)) return false;
#ifdef PYKERNELS_X86
    if (choice.vnni) return __builtin_cpu_supports("avx512vnni");
#endif
    return true;
}

// -1: none of that name that this CPU has.
int choice_of(const std::string& name) {
    for (int i = 0; i < n_choices; ++i) {
        if (name == choices[i].name && supported(choices[i])) return i;
    }
    return -1;
}

std::string allowed() {
    std::string list;
    for (const std::string& name : supported_isa_names()) list += (list.empty() ? "" : ", ") + name;
    return list;
}

int default_choice() {
    const std::vector<std::string> supported_names = supported_isa_names();
    if (supported_names.empty()) {
        std::string sets;
        for (const Choice& choice : choices) {
            if (!choice.vnni && built[static_cast<int>(choice.isa)])
                sets += (sets.empty() ? "" : ", ") + std::string(choice.name);
        }
        throw std::invalid_argument("this build's CPU kernels are for " + sets +
                                    ", which this CPU lacks: build again here, or name the sets by "
                                    "CMAKE_ARGS=-DPYKERNELS_CPU_ISAS=generic");
    }
    const char* wanted = std::getenv("PYKERNELS_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return choice_of(supported_names.back());
    const int found = choice_of(wanted);
    if (found >= 0) return found;
    throw std::invalid_argument("PYKERNELS_CPU_ISA must be one of " + allowed() + ", got " + wanted);
}

std::atomic<int> chosen{-1};

const Choice& current() {
    int choice = chosen.load(std::memory_order_relaxed);
    if (choice < 0) {
        choice = default_choice();
        chosen.store(choice, std::memory_order_relaxed);
    }
    return choices[choice];
}

}  // namespace

std::vector<std::string> supported_isa_names() {
    std::vector<std::string> found;
    for (const Choice& choice : choices) {
        if (supported(choice)) found.emplace_back(choice.name);
    }
    return found;
}

const char* current_isa_name() {
    return current().name;
}

void set_isa_by_name(const std::string& name) {
    const int found = choice_of(name);
    if (found < 0) throw std::invalid_argument("isa must be one of " + allowed() + ", got " + name);
    chosen.store(found, std::memory_order_relaxed);
}

bool uses_vnni() {
    return current().vnni;
}

const char* isa_name(Isa isa) {
    int i = 0;
    while (choices[i].isa != isa) ++i;
    return choices[i].name;
}

bool isa_supported(Isa isa) {
    if (!built[static_cast<int>(isa)]) return false;
#ifdef PYKERNELS_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq");
    switch (isa) {
        case Isa::generic:
            return true;
        case Isa::avx2:  // every CPU with AVX2 has F16C
            return has_avx2;
        case Isa::avx512:
            return has_avx512;
        case Isa::avx512_bf16:
            return has_avx512 && __builtin_cpu_supports("avx512bf16");
    }
    return false;
#else
    return isa == Isa::generic;
#endif
}

Isa current_isa() {
    return current().isa;
}

void set_isa(Isa isa) {
    set_isa_by_name(isa_name(isa));
}

int environment_integer(const char* name, int low, int high) {
    const char* text = std::getenv(name);
    if (text == nullptr || *text == '\0') return 0;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end != '\0' || value < low || value > high) {
        throw std::invalid_argument(std::string(name) + " must be an integer in " + std::to_string(low) +
                                    ".." + std::to_string(high) + ", got " + text);
    }
    return static_cast<int>(value);
}

}  // namespace pykernels::cpu
