// Which instruction set runs, and the settings read from the environment.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/settings.h"
#include "ops.h"

namespace pykernels::cpu {
namespace {

constexpr const char* names[] = {"generic", "avx2", "avx512", "avx512_bf16"};
constexpr int n_isas = 4;

// The kernels that this build has: the definitions come from CMakeLists.txt.
constexpr bool built[] = {
    true,
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

std::string supported_names() {
    std::string list;
    for (int i = 0; i < n_isas; ++i) {
        if (isa_supported(static_cast<Isa>(i))) list += (list.empty() ? "" : ", ") + std::string(names[i]);
    }
    return list;
}

Isa default_isa() {
    const char* wanted = std::getenv("PYKERNELS_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') {
        int best = n_isas - 1;
        while (!isa_supported(static_cast<Isa>(best))) --best;
        return static_cast<Isa>(best);
    }
    for (int i = 0; i < n_isas; ++i) {
        if (std::strcmp(wanted, names[i]) == 0 && isa_supported(static_cast<Isa>(i)))
            return static_cast<Isa>(i);
    }
    throw std::invalid_argument("PYKERNELS_CPU_ISA must be one of " + supported_names() + ", got " + wanted);
}

std::atomic<int> chosen{-1};

}  // namespace

const char* isa_name(Isa isa) {
    return names[static_cast<int>(isa)];
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
    int isa = chosen.load(std::memory_order_relaxed);
    if (isa < 0) {
        isa = static_cast<int>(default_isa());
        chosen.store(isa, std::memory_order_relaxed);
    }
    return static_cast<Isa>(isa);
}

void set_isa(Isa isa) {
    if (!isa_supported(isa)) {
        throw std::invalid_argument("isa must be one of " + supported_names() + ", got " + isa_name(isa));
    }
    chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
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
