// The executor finds what it is there to find: every planted fault is reported with its kind and its line,
// whatever the seed, and a clean kernel with none.
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "simt/executor.h"
#include "simt_faults.h"

using namespace pykernels;
using simt::FaultKind;

namespace {

constexpr int seeds = 30;
int arch = 0;
constexpr int n = cuda::fault_threads;

// "file:line", without a folder, of every line of the kernels' sources that ends in "// FAULT name".
std::set<std::string> fault_lines(const std::string& name) {
    static const auto lines = [] {
        std::map<std::string, std::set<std::string>> found;
        for (const std::string source : {"simt_faults.cu", "simt_order_faults.cu"}) {
            std::ifstream file(SIMT_FAULTS_FOLDER "/" + source);
            std::string line;
            for (int number = 1; std::getline(file, line); ++number) {
                const size_t mark = line.rfind("// FAULT ");
                if (mark != std::string::npos) {
                    found[line.substr(mark + 9)].insert(source + ":" + std::to_string(number));
                }
            }
        }
        return found;
    }();
    const auto found = lines.find(name);
    CHECK(found != lines.end(), "no line is marked FAULT %s", name.c_str());
    return found == lines.end() ? std::set<std::string>{} : found->second;
}

struct Buffers {
    uint32_t* in = allocate();
    uint32_t* middle = allocate();
    uint32_t* out = allocate();
    Buffers() {
        for (int i = 0; i < n; ++i) in[i] = static_cast<uint32_t>(i);
    }
    ~Buffers() {
        for (uint32_t* buffer : {in, middle, out}) simt::executor().memory.release(buffer);
    }
    static uint32_t* allocate() {
        return static_cast<uint32_t*>(simt::executor().memory.allocate(n * sizeof(uint32_t), 0));
    }
};

// What synchronize() reports of what `enqueue` enqueued.
template <class Enqueue>
std::optional<simt::Fault> run(uint64_t seed, Enqueue&& enqueue) {
    simt::Settings settings;
    settings.seed = seed;
    settings.arch = arch;
    simt::executor().configure(settings);
    enqueue();
    try {
        simt::executor().synchronize();
    } catch (const simt::Fault& fault) {
        return fault;
    }
    return std::nullopt;
}

// `kind`, or for a fault that shows in two ways the `other`; at a line of this name, or of `other_name`.
void expect(const char* name, const std::optional<simt::Fault>& fault, FaultKind kind, uint64_t seed,
            std::optional<FaultKind> other = std::nullopt, const char* other_name = nullptr) {
    CHECK(fault, "%s, seed %d: nothing was reported", name, int(seed));
    if (!fault) return;
    CHECK(fault->kind == kind || fault->kind == other, "%s, seed %d: expected %s, got %s", name, int(seed),
          simt::kind_name(kind), fault->what());
    // How much of its path a compiler is given depends on the build (ccache's base_dir, say).
    const std::string file = fault->site.file;
    const std::string line = file.substr(file.rfind('/') + 1) + ":" + std::to_string(fault->site.line);
    CHECK(fault_lines(name).count(line) || (other_name && fault_lines(other_name).count(line)),
          "%s, seed %d: wrong line: %s", name, int(seed), fault->what());
    CHECK(std::strstr(fault->what(), line.c_str()), "%s: the message does not name the line: %s", name,
          fault->what());
}

void expect_none(const char* name, const std::optional<simt::Fault>& fault, uint64_t seed) {
    CHECK(!fault, "%s, seed %d: %s", name, int(seed), fault ? fault->what() : "");
}

const std::map<std::string, FaultKind> kinds = {
    {"missing_block_barrier", FaultKind::shared_race},
    {"missing_warp_barrier", FaultKind::shared_race},
    {"missing_barrier_before_reuse", FaultKind::shared_race},
    {"missing_async_wait", FaultKind::pending_copy},
    {"too_weak_async_wait", FaultKind::pending_copy},
    {"barrier_missing_after_async_wait", FaultKind::shared_race},
    {"missing_bulk_wait", FaultKind::pending_copy},
    {"bulk_wait_of_one", FaultKind::pending_copy},
    {"wrong_parity", FaultKind::pending_copy},
    {"wrong_byte_count", FaultKind::deadlock},
    {"divergent_barrier", FaultKind::divergent_barrier},
    {"divergent_shuffle", FaultKind::divergent_barrier},
    {"two_barriers", FaultKind::divergent_barrier},
    {"read_past_the_end", FaultKind::out_of_bounds},
    {"prefetch_past_the_end", FaultKind::out_of_bounds},
    {"write_past_the_end", FaultKind::out_of_bounds},
    {"shared_past_the_end", FaultKind::out_of_bounds},
    {"misaligned_load", FaultKind::misaligned},
    {"misaligned_copy", FaultKind::misaligned},
    {"misaligned_bulk_copy", FaultKind::misaligned},
    {"uninitialised_read", FaultKind::uninitialised_read},
    {"copy_never_waited_for", FaultKind::pending_copy},
    {"barrier_not_shown", FaultKind::misuse},
    {"no_cluster_barrier", FaultKind::shared_race},
    {"no_cluster_wait", FaultKind::shared_race},
    {"ends_while_read", FaultKind::misuse},
    {"two_arrivals", FaultKind::misuse},
    {"write_after_arrival", FaultKind::shared_race},
    {"push_read_early", FaultKind::pending_copy},
    {"push_not_shown", FaultKind::misuse},
    {"ends_while_pushed", FaultKind::misuse},
    {"push_place_in_use", FaultKind::shared_race},
};

// Of faults that show in two ways, the other.
const std::map<std::string, FaultKind> other_kinds = {
    // Who comes too early finds the copy of another thread under way, or landed for that thread alone.
    {"barrier_missing_after_async_wait", FaultKind::pending_copy},
    // Or nothing has been pushed there yet.
    {"push_read_early", FaultKind::uninitialised_read},
    // The push finds the read, or the read the push.
    {"push_place_in_use", FaultKind::pending_copy},
};

// An access before the wait is found by the later of the two that meet in it: the early one itself, or, where
// the early launch came first, the one it should have waited for. In order (seed % 3 == 2) it is the early
// one.
void check_chains(uint64_t seed) {
    Buffers b;
    const cuda::Stream plain = {nullptr, false}, programmatic = {nullptr, true};
    const auto chain = [&](cuda::FaultLauncher second, const cuda::Stream& stream) {
        return run(seed, [&] {
            cuda::chain_clean(b.in, b.middle, plain);
            second(b.middle, b.out, stream);
        });
    };
    expect_none("a programmatic chain", chain(cuda::chain_clean, programmatic), seed);
    for (int i = 0; i < n; ++i) CHECK(b.out[i] == b.in[i] + 2, "chain: out[%d] = %u", i, b.out[i]);
    expect_none("a plain chain needs no wait", chain(cuda::chain_without_wait, plain), seed);
    const auto expect_early = [&](const char* name, const std::optional<simt::Fault>& fault) {
        if (arch < 90) {
            expect_none("before sm_90 launches are not chained", fault, seed);
        } else {
            expect(name, fault, FaultKind::unordered_launches, seed, std::nullopt,
                   seed % 3 == 2 ? nullptr : "chain_clean");
        }
    };
    expect_early("chain_without_wait", chain(cuda::chain_without_wait, programmatic));
    expect_early("chain_late_wait", chain(cuda::chain_late_wait, programmatic));
    for (const cuda::FaultLauncher early : {cuda::chain_early_fresh, cuda::chain_early_streamed}) {
        std::memset(b.middle, 0xff, n * sizeof *b.middle);  // what is there before the first kernel writes
        expect_none("an early load", chain(early, programmatic), seed);
        for (int i = 0; i < n; ++i) {
            const uint32_t expected = arch < 90 ? b.in[i] + 1 : 0xffffffffu;
            CHECK(b.out[i] == expected, "seed %d: an early load brought %u", int(seed), b.out[i]);
        }
    }
    expect_none("lines loaded again", chain(cuda::chain_again, programmatic), seed);
    for (int i = 0; i < n; ++i) CHECK(b.out[i] == b.in[i] + 2, "again: out[%d] = %u", i, b.out[i]);
    const std::optional<simt::Fault> stale = chain(cuda::chain_stale, programmatic);
    if (arch < 90) {
        expect_none("before sm_90 nothing is loaded early", stale, seed);
    } else {
        expect("chain_stale", stale, FaultKind::unordered_launches, seed);
    }
    // The second kernel writes what the first one reads.
    expect_early("chain_early_write", run(seed, [&] {
                     cuda::chain_clean(b.in, b.middle, plain);
                     cuda::chain_early_write(b.out, b.in, programmatic);
                 }));
}

void check_joins(uint64_t seed) {
    Buffers b;
    const auto join = [&](cuda::Joining joining) {
        std::memset(b.middle, 0, n * sizeof *b.middle);
        return run(seed, [&] { cuda::join_blocks(joining, b.middle, b.out, {nullptr, false}); });
    };
    for (const auto joining : {cuda::Joining::clean, cuda::Joining::two_counters}) {
        expect_none("blocks joined", join(joining), seed);
        CHECK(b.out[0] == 15 && b.middle[0] == 0, "blocks joined: %u, counter %u", b.out[0], b.middle[0]);
    }
    expect("join", join(cuda::Joining::no_fence), FaultKind::unordered_blocks, seed);
    expect("stale_load", join(cuda::Joining::stale_load), FaultKind::unordered_blocks, seed);
    expect("join", join(cuda::Joining::no_atomic), FaultKind::unordered_blocks, seed, std::nullopt, "parts");
}

// Whether a word was used that was not there yet.
bool check_flags(uint64_t seed) {
    Buffers b;
    const auto join = [&](cuda::Flagging flagging) {
        std::memset(b.middle, 0, n * sizeof *b.middle);
        return run(seed, [&] { cuda::join_flagged(flagging, b.middle, b.out, {nullptr, false}); });
    };
    expect("plain_load", join(cuda::Flagging::plain_load), FaultKind::unordered_blocks, seed);
    expect_none("a word too few looked at", join(cuda::Flagging::first_word), seed);
    const bool early = b.out[0] != 15;
    expect_none("flagged words joined", join(cuda::Flagging::clean), seed);
    bool zero = true;
    for (int i = 0; i < 24; ++i) zero &= b.middle[i] == 0;
    CHECK(b.out[0] == 15 && zero, "flagged words joined: %u, %s", b.out[0], zero ? "cleared" : "not cleared");
    return early;
}

void check_fault(const cuda::FaultCase& fault, uint64_t seed) {
    if (fault.needs_sm_90 && arch < 90) return;
    Buffers b;
    const std::string name = fault.name;
    const auto found = other_kinds.find(name);
    const auto other = found == other_kinds.end() ? std::nullopt : std::optional(found->second);
    // Both cluster kernels write at the same line.
    expect(fault.name, run(seed, [&] { fault.launch(b.in, b.out, {nullptr, false}); }), kinds.at(name), seed,
           other, name == "no_cluster_wait" ? "no_cluster_barrier" : nullptr);
}

}  // namespace

int main(int, char** arguments) {
    arch = std::stoi(arguments[1]);
    const cuda::Stream stream = {nullptr, false};
    int used_early = 0;
    for (uint64_t seed = 0; seed < seeds; ++seed) {
        for (int i = 0; i < cuda::n_block_faults; ++i) check_fault(cuda::block_faults[i], seed);
        for (int i = 0; i < cuda::n_cluster_faults; ++i) check_fault(cuda::cluster_faults[i], seed);
        Buffers b;
        expect_none("clean", run(seed, [&] { cuda::clean(b.in, b.out, stream); }), seed);
        if (arch >= 90) {
            expect_none("a cluster", run(seed, [&] { cuda::cluster_clean(b.in, b.out, stream); }), seed);
            expect_none("pushes", run(seed, [&] { cuda::push_clean(b.in, b.out, stream); }), seed);
            for (uint32_t i = 0; i < n; ++i)
                CHECK(b.out[i] == 1000 + n - 1 - i, "pushes, seed %d: out[%u] = %u", int(seed), i, b.out[i]);
        }
        check_chains(seed);
        check_joins(seed);
        used_early += check_flags(seed);
    }
    CHECK(used_early > 0, "no seed in %d wrote one word of four before the other", int(seeds));
    return test::failed();
}
