// Switching between stacks on one OS thread: what the threads of an emulated block are made of.
//
// x86-64 and aarch64 save the callee-saved registers and swap the stack pointer, by hand: ten thousand shuffles are
// then cheap. Elsewhere ucontext does it (about seven times slower: it saves the signal mask by a system call).
// AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#if defined(FIBER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fiber {

using Entry = void (*)();  // runs on the new stack and never returns

#if defined(__x86_64__)
#define FIBER_ASSEMBLY 1
asm(R"(
.text
.globl fiber_switch_stacks
.type fiber_switch_stacks,@function
fiber_switch_stacks:
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
.size fiber_switch_stacks,.-fiber_switch_stacks
)");
inline void* first_frame(char* stack, std::size_t bytes, Entry entry) {
  // Six registers, then the address `ret` takes, then the slot a call would have left: rsp % 16 is 8 at the entry.
  std::uintptr_t* top = reinterpret_cast<std::uintptr_t*>(stack + bytes) - 2;
  top[0] = reinterpret_cast<std::uintptr_t>(entry);
  top[1] = 0;
  for (int i = 1; i <= 6; ++i) top[-i] = 0;
  return top - 6;
}
#elif defined(__aarch64__)
#define FIBER_ASSEMBLY 1
asm(R"(
.text
.globl fiber_switch_stacks
.type fiber_switch_stacks,@function
fiber_switch_stacks:
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
.size fiber_switch_stacks,.-fiber_switch_stacks
)");
inline void* first_frame(char* stack, std::size_t bytes, Entry entry) {
  std::uintptr_t* frame = reinterpret_cast<std::uintptr_t*>(stack + bytes - 160);
  for (int i = 0; i < 20; ++i) frame[i] = 0;
  frame[11] = reinterpret_cast<std::uintptr_t>(entry);  // x30
  return frame;
}
#else
#include <ucontext.h>
#endif

#if defined(FIBER_ASSEMBLY)
extern "C" void fiber_switch_stacks(void** save, void* load) asm("fiber_switch_stacks");
#endif

// A stack and where on it execution stands. The main stack is a Context that was never prepared.
struct Context {
#if defined(FIBER_ASSEMBLY)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  std::size_t bytes = 0;
#if defined(FIBER_ASAN)
  void* fake_stack = nullptr;
#endif

  void prepare(char* stack_memory, std::size_t stack_bytes, Entry entry) {
    stack = stack_memory;
    bytes = stack_bytes;
#if defined(FIBER_ASAN)
    __asan_unpoison_memory_region(stack, bytes);
#endif
#if defined(FIBER_ASSEMBLY)
    stack_pointer = first_frame(stack, bytes, entry);
#else
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#endif
  }
};

// Leaves `from` and continues `to`; returns when something switches back. `last`: `from` will never be continued.
inline void switch_context(Context& from, Context& to, bool last = false) {
#if defined(FIBER_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.bytes);
#else
  (void)last;
#endif
#if defined(FIBER_ASSEMBLY)
  fiber_switch_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(FIBER_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// First thing on a new stack. Learns, for AddressSanitizer, where the main stack lies.
inline void entered(Context& main) {
#if defined(FIBER_ASAN)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  main.stack = const_cast<char*>(static_cast<const char*>(bottom));
  main.bytes = bytes;
#else
  (void)main;
#endif
}

}  // namespace fiber
