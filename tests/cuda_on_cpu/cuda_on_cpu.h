// Runs CUDA kernels on a CPU: the words of CUDA that csrc/cuda/*.cuh use, and a block whose threads are fibers.
//
//     fiber::launch(blocks, threads, seed, kernel, arguments...)
//
// Blocks run one after another, in an order shuffled by the seed; within a block one runnable thread after another runs
// until it meets the others (__syncthreads, __syncwarp, a shuffle) or ends. Which one, the seed decides, in one of two
// ways by block: any of them, so that threads of a warp drift apart; or the one that became runnable last, so that one
// warp runs as far ahead of the others as it can. What it finds, it reports with the place and ends the program with a
// status of its own:
//     a thread at a barrier that others have left for good, or at another meeting than the rest of its warp;
//     a shuffle with a mask that is not full, or of more than 4 bytes;
//     a vector access at an address that is no multiple of its size;
//     a write before or after an array of shared memory.
// Shared memory starts as NaN in every block: a read without a write shows in the results, and so does a read before
// another thread's write, because the order is shuffled.
//
// Not modelled: memory ordering within a warp that runs in lockstep, blocks that race with each other, tensor cores,
// TMA, caches, and the rounding of the special functions except ex2.approx, which is given an error of its own.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "fiber_switch.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3_index {
  unsigned int x = 0, y = 0, z = 0;
};
inline dim3_index threadIdx, blockIdx, blockDim, gridDim;

namespace fiber {

constexpr int kDetected = 3;  // exit status: the harness found misuse (1: a wrong result, 4: a stray address)
constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
#if defined(FIBER_ASAN)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif
constexpr std::size_t kCanaryBytes = 64;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating type

enum class Meeting { kNone, kBlock, kWarp, kShuffle };

struct Thread {
  Context context;
  Meeting waiting = Meeting::kNone;
  bool exited = false;
};

struct Warp {
  int arrived = 0;
  int exited = 0;
  unsigned int generation = 0;
  Meeting meeting = Meeting::kNone;
  std::uint32_t slots[2][kWarpSize];
};

struct SharedArray {
  const void* key;
  unsigned char* memory;  // canary, data, canary
  std::size_t bytes;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> ready;
  std::vector<SharedArray> shared;
  Context main;
  std::mt19937 order;
  int current = 0;
  int arrived = 0;
  int exited = 0;
  bool last_first = false;  // the order: any runnable thread, or the one that became runnable last
  char* stacks = nullptr;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  const char* kernel = "";
};

inline Block block;

[[noreturn]] inline void detected(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] inline void detected(const char* format, ...) {
  std::fprintf(stderr, "DETECTED in %s, block %u, thread %d: ", block.kernel, blockIdx.x, block.current);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(nullptr);
  _exit(kDetected);
}

inline void leave(bool last) {
  Thread& self = block.threads[static_cast<std::size_t>(block.current)];
  switch_context(self.context, block.main, last);
}

inline void thread_entry() {
  entered(block.main);
  block.body(block.arguments);
  Thread& self = block.threads[static_cast<std::size_t>(block.current)];
  Warp& warp = block.warps[static_cast<std::size_t>(block.current / kWarpSize)];
  self.exited = true;
  ++block.exited;
  ++warp.exited;
  if (block.arrived > 0) detected("exited while %d threads wait at __syncthreads", block.arrived);
  if (warp.arrived > 0) detected("exited while %d lanes of its warp wait for it", warp.arrived);
  leave(true);
  std::abort();
}

inline void wake(int first, int count, Meeting meeting) {
  // In the order of the indices, changed by the seed: i ^ mask permutes a power of two of threads.
  const int mask = (count & (count - 1)) == 0 ? static_cast<int>(block.order() % static_cast<unsigned int>(count)) : 0;
  for (int index = 0; index < count; ++index) {
    const int i = first + (index ^ mask);
    Thread& thread = block.threads[static_cast<std::size_t>(i)];
    if (thread.waiting == meeting) {
      thread.waiting = Meeting::kNone;
      block.ready.push_back(i);
    }
  }
}

inline const char* name_of(Meeting meeting) {
  return meeting == Meeting::kShuffle ? "a shuffle" : meeting == Meeting::kWarp ? "__syncwarp" : "__syncthreads";
}

inline void meet_block() {
  if (block.exited > 0) detected("__syncthreads after %d threads of the block exited", block.exited);
  const int threads = static_cast<int>(block.threads.size());
  block.threads[static_cast<std::size_t>(block.current)].waiting = Meeting::kBlock;
  if (++block.arrived == threads) {
    block.arrived = 0;
    wake(0, threads, Meeting::kBlock);
  }
  leave(false);
}

inline void meet_warp(Meeting meeting, unsigned int mask) {
  Warp& warp = block.warps[static_cast<std::size_t>(block.current / kWarpSize)];
  if (mask != 0xffffffffu) detected("%s with mask %08x: only the full mask is allowed here", name_of(meeting), mask);
  if (warp.exited > 0) detected("%s after %d lanes of the warp exited", name_of(meeting), warp.exited);
  if (warp.arrived > 0 && warp.meeting != meeting) {
    detected("at %s while its warp is at %s", name_of(meeting), name_of(warp.meeting));
  }
  warp.meeting = meeting;
  block.threads[static_cast<std::size_t>(block.current)].waiting = meeting;
  if (++warp.arrived == kWarpSize) {
    warp.arrived = 0;
    ++warp.generation;
    wake(block.current / kWarpSize * kWarpSize, kWarpSize, meeting);
  }
  leave(false);
}

// Every lane deposits 4 bytes and takes those of lane `source`. Two generations of slots: a lane may be one ahead.
template <typename Value>
Value exchange(unsigned int mask, Value value, int source) {
  static_assert(sizeof(Value) == 4, "shuffles carry 4 bytes");
  Warp& warp = block.warps[static_cast<std::size_t>(block.current / kWarpSize)];
  std::uint32_t* const slots = warp.slots[warp.generation % 2];
  std::memcpy(&slots[block.current % kWarpSize], &value, 4);
  meet_warp(Meeting::kShuffle, mask);
  Value result;
  std::memcpy(&result, &slots[source], 4);
  return result;
}

inline void poison_canary(unsigned char* at, bool poisoned) {
#if defined(FIBER_ASAN)
  if (poisoned) {
    __asan_poison_memory_region(at, kCanaryBytes);
  } else {
    __asan_unpoison_memory_region(at, kCanaryBytes);
  }
#else
  (void)at, (void)poisoned;
#endif
}

template <typename Type>
Type* shared_array(const void* key, std::size_t count) {
  for (const SharedArray& array : block.shared) {
    if (array.key == key) return reinterpret_cast<Type*>(array.memory + kCanaryBytes);
  }
  const std::size_t bytes = count * sizeof(Type);
  // The rear canary starts at the very next byte; AddressSanitizer needs it on a multiple of 8.
  unsigned char* const memory = static_cast<unsigned char*>(std::malloc((bytes + 2 * kCanaryBytes + 7) / 8 * 8));
  std::memset(memory, kPoison, bytes + 2 * kCanaryBytes);
  poison_canary(memory, true);
  if (bytes % 8 == 0) poison_canary(memory + kCanaryBytes + bytes, true);
  block.shared.push_back({key, memory, bytes});
  return reinterpret_cast<Type*>(memory + kCanaryBytes);
}

inline void release_shared() {
  for (const SharedArray& array : block.shared) {
    poison_canary(array.memory, false);
    if (array.bytes % 8 == 0) poison_canary(array.memory + kCanaryBytes + array.bytes, false);
    for (std::size_t i = 0; i < kCanaryBytes; ++i) {
      if (array.memory[i] != kPoison) detected("shared memory written %zu bytes before its start", kCanaryBytes - i);
      if (array.memory[kCanaryBytes + array.bytes + i] != kPoison) {
        detected("shared memory written %zu bytes after its end", i);
      }
    }
    std::free(array.memory);
  }
  block.shared.clear();
}

inline void run_block(int threads) {
  if (block.stacks == nullptr) {
    const std::size_t bytes = kStackBytes * kMaxThreads;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    block.stacks = static_cast<char*>(memory);
  }
  const std::size_t count = static_cast<std::size_t>(threads);
  block.threads.assign(count, Thread());
  block.warps.assign(count / kWarpSize, Warp());
  block.arrived = block.exited = 0;
  block.ready.clear();
  block.last_first = block.order() % 2 == 0;
  for (int i = 0; i < threads; ++i) {
    block.threads[static_cast<std::size_t>(i)].context.prepare(block.stacks + static_cast<std::size_t>(i) * kStackBytes,
                                                               kStackBytes, thread_entry);
    block.ready.push_back(i);
  }
  while (!block.ready.empty()) {
    const std::size_t drawn = block.last_first ? block.ready.size() - 1 : block.order() % block.ready.size();
    block.current = block.ready[drawn];
    block.ready[drawn] = block.ready.back();
    block.ready.pop_back();
    threadIdx.x = static_cast<unsigned int>(block.current);
    switch_context(block.main, block.threads[static_cast<std::size_t>(block.current)].context);
  }
  if (block.exited != threads) {
    for (int i = 0; i < threads; ++i) {
      const Thread& thread = block.threads[static_cast<std::size_t>(i)];
      if (!thread.exited) {
        block.current = i;
        detected("waits at %s for ever: the others are elsewhere", name_of(thread.waiting));
      }
    }
  }
  release_shared();
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, std::int64_t blocks, int threads, std::uint32_t seed, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  if (blocks < 1 || blocks > 2147483647 || threads < 1 || threads > kMaxThreads || threads % kWarpSize != 0) {
    std::fprintf(stderr, "DETECTED: %s launched with %lld blocks of %d threads\n", name,
                 static_cast<long long>(blocks), threads);
    _exit(kDetected);
  }
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Arguments...> arguments;
  } call{kernel, {arguments...}};
  block.kernel = name;
  block.arguments = &call;
  block.body = [](void* at) {
    const Call& c = *static_cast<Call*>(at);
    std::apply(c.kernel, c.arguments);
  };
  block.order.seed(seed);
  blockDim.x = static_cast<unsigned int>(threads);
  gridDim.x = static_cast<unsigned int>(blocks);
  std::vector<unsigned int> order(static_cast<std::size_t>(blocks));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned int>(i);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[block.order() % i]);
  for (const unsigned int index : order) {
    blockIdx.x = index;
    run_block(threads);
  }
}

inline void check_vector_address(const void* address, std::size_t bytes) {
  std::uintptr_t value = reinterpret_cast<std::uintptr_t>(address);
  asm volatile("" : "+r"(value));  // the compiler takes the alignment of a typed pointer for granted
  if (value % bytes != 0) detected("vector access of %zu bytes at %p", bytes, address);
}

}  // namespace fiber

// Copies look at their addresses: what was reinterpreted as a vector must lie as one.
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
  uint4() = default;
  uint4(const uint4& from) {
    fiber::check_vector_address(&from, 16);
    x = from.x, y = from.y, z = from.z, w = from.w;
  }
  uint4& operator=(const uint4& from) {
    fiber::check_vector_address(this, 16);
    x = from.x, y = from.y, z = from.z, w = from.w;
    return *this;
  }
};
struct alignas(8) uint2 {
  unsigned int x, y;
  uint2() = default;
  uint2(const uint2& from) {
    fiber::check_vector_address(&from, 8);
    x = from.x, y = from.y;
  }
  uint2& operator=(const uint2& from) {
    fiber::check_vector_address(this, 8);
    x = from.x, y = from.y;
    return *this;
  }
};

inline void __syncthreads() { fiber::meet_block(); }
inline void __syncwarp(unsigned int mask = 0xffffffffu) { fiber::meet_warp(fiber::Meeting::kWarp, mask); }
template <typename Value>
Value __shfl_down_sync(unsigned int mask, Value value, int offset) {
  const int lane = fiber::block.current % fiber::kWarpSize;
  return fiber::exchange(mask, value, lane + offset < fiber::kWarpSize ? lane + offset : lane);
}
template <typename Value>
Value __shfl_up_sync(unsigned int mask, Value value, int offset) {
  const int lane = fiber::block.current % fiber::kWarpSize;
  return fiber::exchange(mask, value, lane >= offset ? lane - offset : lane);
}
template <typename Value>
Value __shfl_xor_sync(unsigned int mask, Value value, int lane_mask) {
  return fiber::exchange(mask, value, (fiber::block.current % fiber::kWarpSize) ^ lane_mask);
}

// Products that are rounded by themselves; the programs are compiled with -ffp-contract=off.
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __hiloint2double(int high, int low) {
  const std::uint64_t upper = static_cast<std::uint32_t>(high);
  const std::uint64_t bits = upper << 32 | static_cast<std::uint32_t>(low);
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
inline int __double2loint(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return static_cast<int>(static_cast<std::uint32_t>(bits));
}
inline int __double2hiint(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return static_cast<int>(static_cast<std::uint32_t>(bits >> 32));
}

namespace fiber {

// `exact` off by a relative error, up or down by the argument's bits: what an approximate instruction may give.
inline float off_by(float exact, float argument, float relative) {
  if (exact == 0.0f || !(std::fabs(exact) < __builtin_huge_valf())) return exact;
  std::uint32_t bits;
  std::memcpy(&bits, &argument, 4);
  const bool up = (bits * 2654435761u) >> 31;
  return exact * (up ? 1.0f + relative : 1.0f - relative);
}

// ex2.approx.f32: exact at integers, as expf, which scales by it, takes for granted; elsewhere off by its documented 2^-22.
inline float ex2_approx(float x) {
  const float exact = std::exp2(x);
  return x == std::rint(x) ? exact : off_by(exact, x, 0x1p-22f);
}

}  // namespace fiber

namespace cer {
namespace device {
// Stands in for ex2.approx.ftz.f32: results below the smallest normal number are 0. Found before ::exp2f by the kernels.
inline float exp2f(float x) {
  const float y = fiber::ex2_approx(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
}  // namespace device
}  // namespace cer

#define CER_SHARED(type, name, count) \
  static const char name##_key = 0;   \
  type* const name = fiber::shared_array<type>(&name##_key, count)
