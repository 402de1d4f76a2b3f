// Memory for a kernel's arguments that does not forgive: what lies outside [begin, end) is no memory, or known bytes.
//
// The elements end (or start) at a page that may not be touched, to the byte. The other side is filled with 0xff (NaN)
// and looked at again when the buffer goes: a stray write is reported, a stray read poisons the result.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda_on_cpu.h"

namespace fiber {

enum class Guard { kBehind, kBefore };

struct Region {
  const char* name;
  unsigned char* mapping;
  std::size_t mapped;
  unsigned char* data;
  std::size_t bytes;
};
inline std::vector<Region> regions;

inline void report_stray_address(int, siginfo_t* info, void*) {
  const unsigned char* const address = static_cast<const unsigned char*>(info->si_addr);
  for (const Region& r : regions) {
    if (address >= r.mapping && address < r.mapping + r.mapped) {
      const bool behind = address >= r.data + r.bytes;
      const long long distance = behind ? address - (r.data + r.bytes) : r.data - address;
      std::fprintf(stderr, "DETECTED in %s, block %u, thread %d: access %lld bytes %s '%s' (%zu bytes)\n", block.kernel,
                   blockIdx.x, block.current, distance, behind ? "after the end of" : "before the start of", r.name,
                   r.bytes);
      _exit(4);
    }
  }
  std::fprintf(stderr, "DETECTED in %s, block %u, thread %d: access at %p\n", block.kernel, blockIdx.x, block.current,
               info->si_addr);
  _exit(4);
}

// Threads' stacks are small and may be the problem: the handler has its own. AddressSanitizer brings a handler itself.
inline void catch_stray_addresses() {
#if !defined(FIBER_ASAN)
  static char stack[64 * 1024];
  stack_t alternative = {};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = report_stray_address;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
#endif
}

template <typename T>
class GuardedBuffer {
 public:
  // `offset`: elements by which the start is moved from the boundary, for Guard::kBefore (a misaligned start).
  GuardedBuffer(const char* name, std::size_t count, Guard guard = Guard::kBehind, std::size_t offset = 0)
      : count_(count) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = count * sizeof(T);
    const std::size_t body = (bytes + offset * sizeof(T) + page - 1) / page * page + page;
    void* const memory = mmap(nullptr, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    unsigned char* const first = static_cast<unsigned char*>(memory) + page;
    if (mprotect(first, body, PROT_READ | PROT_WRITE) != 0) std::abort();
    std::memset(first, kPoison, body);
    unsigned char* const data = guard == Guard::kBehind ? first + body - bytes : first + offset * sizeof(T);
    regions.push_back({name, static_cast<unsigned char*>(memory), body + 2 * page, data, bytes});
    region_ = regions.back();
    body_ = first;
    body_bytes_ = body;
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  ~GuardedBuffer() {
    check_surroundings();
    for (std::size_t i = 0; i < regions.size(); ++i) {
      if (regions[i].mapping == region_.mapping) {
        regions.erase(regions.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      }
    }
    munmap(region_.mapping, region_.mapped);
  }

  T* data() { return reinterpret_cast<T*>(region_.data); }
  const T* data() const { return reinterpret_cast<const T*>(region_.data); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  std::size_t size() const { return count_; }

 private:
  void check_surroundings() const {
    for (const unsigned char* at = body_; at < body_ + body_bytes_; ++at) {
      const bool inside = at >= region_.data && at < region_.data + region_.bytes;
      if (!inside && *at != kPoison) {
        std::fprintf(stderr, "DETECTED: '%s' was written %lld bytes from its start (it has %zu)\n", region_.name,
                     static_cast<long long>(at - region_.data), region_.bytes);
        std::fflush(nullptr);
        _exit(kDetected);
      }
    }
  }

  std::size_t count_;
  Region region_;
  unsigned char* body_;
  std::size_t body_bytes_;
};

}  // namespace fiber
