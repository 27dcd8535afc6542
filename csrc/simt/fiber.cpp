#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace pykernels::simt {
namespace {

constexpr size_t page_bytes = 64 * 1024;  // the largest page of either architecture
constexpr size_t stack_bytes = 4 * page_bytes;

// The scheduler's side of the one switch that is under way.
Fiber* entered = nullptr;
void* scheduler_stack_pointer = nullptr;
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_shadow_frames = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

}  // namespace

// Pushes the callee-saved registers, stores the stack pointer in *from, and resumes the stack `to`.
extern "C" void pykernels_simt_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.type pykernels_simt_switch, @function
.globl pykernels_simt_switch
.hidden pykernels_simt_switch
pykernels_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size pykernels_simt_switch, . - pykernels_simt_switch
)");
// A new stack: six callee-saved registers, the return address, aligned to 16 bytes as at a call, and above it
// a null return address, which ends backtraces.
constexpr int return_word = 6, frame_words = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.type pykernels_simt_switch, %function
.globl pykernels_simt_switch
.hidden pykernels_simt_switch
pykernels_simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size pykernels_simt_switch, . - pykernels_simt_switch
)");
constexpr int return_word = 11, frame_words = 20;
#else
#error "the SIMT executor switches stacks on x86-64 and aarch64 only"
#endif

Fiber::Fiber() {
    void* memory = mmap(nullptr, page_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page_bytes, PROT_NONE);
    stack_ = static_cast<unsigned char*>(memory) + page_bytes;
}

Fiber::~Fiber() {
    munmap(stack_ - page_bytes, page_bytes + stack_bytes);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, stack_bytes);  // frames that were never left
#endif
    auto* frame = reinterpret_cast<uintptr_t*>(stack_ + stack_bytes) - frame_words;
    for (int i = 0; i < frame_words; ++i) frame[i] = 0;
    frame[return_word] = reinterpret_cast<uintptr_t>(&Fiber::main);
    stack_pointer_ = frame;
    shadow_frames_ = nullptr;
}

void Fiber::enter() {
    entered = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_shadow_frames, stack_, stack_bytes);
#endif
    pykernels_simt_switch(&scheduler_stack_pointer, stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_shadow_frames, nullptr, nullptr);
#endif
}

void Fiber::switch_out(bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &shadow_frames_, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    (void)for_good;
    pykernels_simt_switch(&stack_pointer_, scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow_frames_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fiber::leave() {
    switch_out(false);
}

void Fiber::main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    Fiber* self = entered;
    self->entry_(self->argument_);
    self->switch_out(true);
    std::abort();
}

}  // namespace pykernels::simt
