// What the executor reports: what went wrong, and the source line of the device function that noticed.
#pragma once

#include <stdexcept>
#include <string>

namespace pykernels::simt {

// Every device function takes one as its last argument, by default the line that called it.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

enum class FaultKind {
    out_of_bounds,       // an access that is not within one buffer, or past the block's shared memory
    misaligned,          // an address that the access's size does not divide
    uninitialised_read,  // of shared memory that nobody wrote
    pending_copy,        // shared memory touched, or left, while an asynchronous copy into it is under way
    shared_race,         // two threads of a block, one writing, with no barrier between
    divergent_barrier,   // threads that must meet are elsewhere, or have ended
    deadlock,            // a mbarrier that nobody completes
    unordered_launches,  // memory shared with a launch that wait_for_producers() has not waited for
    unordered_blocks,    // memory shared between blocks of one launch without fence, atomic and fresh load
    misuse,              // a call that the hardware's rules forbid
};

const char* kind_name(FaultKind kind);

class Fault : public std::runtime_error {
  public:
    Fault(FaultKind kind, Site site, const std::string& message)
        : std::runtime_error(message), kind(kind), site(site) {}
    FaultKind kind;
    Site site;
};

}  // namespace pykernels::simt
