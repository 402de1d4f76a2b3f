// What PTX instructions do, as C++ on the fibers of cuda_on_cpu.h: the words that ptx_to_cpp.py writes.
//
// A register is its bits, in an unsigned integer of its width; as<T> reads them as T (a wider register: its low bytes),
// put writes them (into a wider register: extended by T's sign). Registers start as 0xff.., NaN in every floating type.
//
// Parameters and global memory are this process's own addresses. Shared memory has addresses of its own: array i begins
// at (i + 1) * 2^20, so an address that leaves its array is seen. Every access looks at its alignment.
//
// Approximate instructions are exact where the kernels may rely on it and elsewhere off by their documented error, up or
// down by the argument's bits: ex2.approx is exact at integers (libdevice's expf scales by it) and off by 2^-22;
// rcp.approx.ftz.f32 is off by one unit in the last place; rcp.approx.ftz.f64 keeps the upper word of the quotient.
//
// Not modelled: what ptxas does with it (scheduling, a product and a sum joined where PTX states no rounding), memory
// ordering, blocks that race with each other.
//
// Source: NVIDIA, "Parallel Thread Execution ISA", chapter 9 (instruction set).
#pragma once

#include <cfenv>

#include "cuda_on_cpu.h"

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using pred = bool;

template <typename Value, typename Register>
inline Value as(Register bits) {
  static_assert(sizeof(Value) <= sizeof(Register), "reads more than the register holds");
  Value value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename Value, typename Register>
inline void put(Register& bits, Value value) {
  static_assert(sizeof(Value) <= sizeof(Register), "writes more than the register holds");
  if constexpr (sizeof(Value) == sizeof(Register)) {
    std::memcpy(&bits, &value, sizeof bits);
  } else {
    bits = static_cast<Register>(value);  // integers: extended by their own sign
  }
}

// ---------------------------------------------------------------------------------------------------------------- memory

inline u64 aligned(u64 address, unsigned int bytes) {
  if (address % bytes != 0) fiber::detected("access of %u bytes at %#llx", bytes, (unsigned long long)address);
  return address;
}

template <typename Value>
inline Value load(u64 address) {
  Value value;
  std::memcpy(&value, reinterpret_cast<const void*>(aligned(address, sizeof value)), sizeof value);
  return value;
}

template <typename Value>
inline void store(u64 address, Value value) {
  std::memcpy(reinterpret_cast<void*>(aligned(address, sizeof value)), &value, sizeof value);
}

template <typename Parameter>
inline u64 address_of(const Parameter& parameter) {
  return reinterpret_cast<u64>(&parameter);
}

struct SharedArray {
  const void* key;
  std::size_t bytes;
};

constexpr unsigned int kSharedArrayBits = 20;
constexpr u32 shared_address(u32 index) { return (index + 1) << kSharedArrayBits; }

template <std::size_t kArrays>
struct Shared {
  const SharedArray (&arrays)[kArrays];

  void* at(u32 address, std::size_t bytes) const {
    const u32 index = (address >> kSharedArrayBits) - 1;
    const u32 offset = address & ((1u << kSharedArrayBits) - 1);
    if (index >= kArrays || offset + bytes > arrays[index].bytes) {
      fiber::detected("shared memory: %zu bytes at %#x lie outside every array", bytes, address);
    }
    if (offset % bytes != 0) fiber::detected("shared memory: access of %zu bytes at %#x", bytes, address);
    return fiber::shared_array<unsigned char>(arrays[index].key, arrays[index].bytes) + offset;
  }
  template <typename Value>
  Value load(u32 address) const {
    Value value;
    std::memcpy(&value, at(address, sizeof value), sizeof value);
    return value;
  }
  template <typename Value>
  void store(u32 address, Value value) const {
    std::memcpy(at(address, sizeof value), &value, sizeof value);
  }
};

// ------------------------------------------------------------------------------------------------------------- integers

template <typename Value>
inline Value shift_left(Value value, u32 count) {
  return count >= 8 * sizeof(Value) ? Value(0) : static_cast<Value>(value << count);
}
template <typename Value>
inline Value shift_right(Value value, u32 count) {  // a signed value fills up with its sign
  if (count >= 8 * sizeof(Value)) return value < Value(0) ? Value(-1) : Value(0);
  return static_cast<Value>(value >> count);
}
template <typename Value>
inline Value quotient(Value a, Value b) {
  if (b == 0) fiber::detected("integer division by zero");
  return a / b;
}
template <typename Value>
inline Value remainder(Value a, Value b) {
  if (b == 0) fiber::detected("integer division by zero");
  return a % b;
}

// -------------------------------------------------------------------------------------------------------- floating point

// A NaN loses to a number; +0 is larger than -0.
template <typename Value>
inline Value larger(Value a, Value b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <typename Value>
inline Value smaller(Value a, Value b) {
  return -larger(-a, -b);
}
inline f32 saturated(f32 x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN: 0

inline f32 fma_downward(f32 a, f32 b, f32 c) {
  const int rounding = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile f32 factor = a;  // the compiler does not know of rounding modes
  volatile f32 result = std::fma(factor, b, c);
  std::fesetround(rounding);
  return result;
}

inline f32 flushed(f32 x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline f32 ex2_approx(f32 x) { return fiber::ex2_approx(x); }
inline f32 ex2_approx_ftz(f32 x) { return flushed(fiber::ex2_approx(flushed(x))); }
inline f32 rcp_approx_ftz(f32 x) { return flushed(fiber::off_by(1.0f / flushed(x), x, 0x1p-23f)); }
inline f64 rcp_approx_ftz(f64 x) { return as<f64>(as<u64>(1.0 / x) & 0xffffffff00000000ull); }

// float -> bfloat16 and binary16. A NaN becomes the one that the hardware writes.
inline u16 bf16_rn(f32 x) {
  const u32 bits = as<u32>(x);
  return x != x ? u16(0x7fff) : static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline u16 bf16_rz(f32 x) { return x != x ? u16(0x7fff) : static_cast<u16>(as<u32>(x) >> 16); }

template <typename Round>
inline u16 f16_by(f32 x, Round round) {
  if (x != x) return 0x7fff;
  const u32 sign = std::signbit(x) ? 0x8000u : 0u;
  const f64 magnitude = std::fabs(static_cast<f64>(x));
  if (std::isinf(x)) return static_cast<u16>(sign | 0x7c00u);
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = [0.5, 1) * 2^exponent
  const int step = std::max(exponent - 11, -24);  // the distance of neighbours is 2^step
  const f64 steps = round(std::ldexp(magnitude, -step));
  const f64 rounded = std::ldexp(steps, step);
  if (rounded >= 65536.0) return static_cast<u16>(sign | (round(0.75) == 0.0 ? 0x7bffu : 0x7c00u));
  if (rounded < 0x1p-14) return static_cast<u16>(sign | static_cast<u32>(std::ldexp(rounded, 24)));  // subnormal
  std::frexp(rounded, &exponent);
  const u32 fraction = static_cast<u32>(std::ldexp(rounded, 11 - exponent)) - 1024u;
  return static_cast<u16>(sign | static_cast<u32>(exponent + 14) << 10 | fraction);
}
inline u16 f16_rn(f32 x) { return f16_by(x, [](f64 value) { return std::nearbyint(value); }); }
inline u16 f16_rz(f32 x) { return f16_by(x, [](f64 value) { return std::trunc(value); }); }
inline f32 f32_of_f16(u16 bits) {
  const int exponent = bits >> 10 & 0x1f;
  const int fraction = bits & 0x3ff;
  const f32 infinity = __builtin_huge_valf();
  const f32 special = fraction != 0 ? infinity - infinity : infinity;
  const f32 finite = std::ldexp(static_cast<f32>(exponent == 0 ? fraction : fraction + 1024), std::max(exponent, 1) - 25);
  return std::copysign(exponent == 0x1f ? special : finite, bits & 0x8000 ? -1.0f : 1.0f);
}

// --------------------------------------------------------------------------------------------------------- the warp

enum class Shuffle { kUp, kDown, kXor, kIndex };

// shfl.sync: the value of the source lane, one's own where there is none. `clamp` other than a whole warp's is refused.
inline u32 shuffled(Shuffle mode, u32 value, u32 b, u32 clamp, u32 mask) {
  if (clamp != (mode == Shuffle::kUp ? 0u : 31u)) fiber::detected("shuffle within a part of the warp (%#x)", clamp);
  const s64 lane = fiber::block.current % fiber::kWarpSize;
  const s64 source = mode == Shuffle::kUp     ? lane - s64(b)
                     : mode == Shuffle::kDown ? lane + s64(b)
                     : mode == Shuffle::kXor  ? lane ^ s64(b)
                                              : s64(b);
  const bool inside = source >= 0 && source < fiber::kWarpSize;
  return fiber::exchange<u32>(mask, value, static_cast<int>(inside ? source : lane));
}

}  // namespace ptx
