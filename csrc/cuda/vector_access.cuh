// How a block reaches a run of adjacent elements: scalars up to the first aligned address, 16-byte vectors, scalars.
//
//     | head | vector 0 | vector 1 | ... | tail |        head, tail < elements of a vector
//
// Any element-aligned address and any length work; a row of an odd vocabulary starts at another alignment than the row
// before it. Nothing outside the run is touched: a vector that would cross its end is left to the tail.
#pragma once

#include "kernels.h"
#include "scalar_types.h"

namespace cer {
namespace device {

// What one thread moves in one instruction: 16 or 8 bytes, at an address that is a multiple of that.
//
// Stores are said outright in PTX. Where the words of a vector come from two branches, the compiler moves the store of
// an assigned uint4 into the branches and splits it there (seen in nvcc 13.0: STG.64 and two STG.32 for a row of
// gradients or of zeros).
__device__ __forceinline__ void load_words(unsigned int (&words)[4], const void* at) {
  const uint4 raw = *static_cast<const uint4*>(at);
  words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
}
__device__ __forceinline__ void load_words(unsigned int (&words)[2], const void* at) {
  const uint2 raw = *static_cast<const uint2*>(at);
  words[0] = raw.x, words[1] = raw.y;
}
__device__ __forceinline__ void store_words(const unsigned int (&words)[4], void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
#else
  uint4 raw;
  raw.x = words[0], raw.y = words[1], raw.z = words[2], raw.w = words[3];
  *static_cast<uint4*>(at) = raw;
#endif
}
__device__ __forceinline__ void store_words(const unsigned int (&words)[2], void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(at)), "r"(words[0]), "r"(words[1])
               : "memory");
#else
  uint2 raw;
  raw.x = words[0], raw.y = words[1];
  *static_cast<uint2*>(at) = raw;
#endif
}

// The stored bits of kCount elements <-> accumulators, through registers only.
template <typename T, int kCount>
struct Packed {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  unsigned int words[kWords];

  __device__ __forceinline__ void read(const T* aligned) { load_words(words, aligned); }
  __device__ __forceinline__ void write(T* aligned) const { store_words(words, aligned); }
  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = 0u;
  }
};

template <int kCount>
__device__ __forceinline__ float element(const Packed<float, kCount>& v, int j) {
  return detail::float_of_bits(v.words[j]);
}
template <int kCount>
__device__ __forceinline__ double element(const Packed<double, kCount>& v, int j) {
  return __hiloint2double(static_cast<int>(v.words[2 * j + 1]), static_cast<int>(v.words[2 * j]));
}
template <typename T, int kCount>
__device__ __forceinline__ float element(const Packed<T, kCount>& v, int j) {
  return T{static_cast<unsigned short>(j & 1 ? v.words[j / 2] >> 16 : v.words[j / 2] & 0xffffu)}.to_float();
}

template <int kCount>
__device__ __forceinline__ void set_element(Packed<float, kCount>& v, int j, float x) {
  v.words[j] = detail::bits_of_float(x);
}
template <int kCount>
__device__ __forceinline__ void set_element(Packed<double, kCount>& v, int j, double x) {
  v.words[2 * j] = static_cast<unsigned int>(__double2loint(x));
  v.words[2 * j + 1] = static_cast<unsigned int>(__double2hiint(x));
}
// 16-bit elements are set in ascending order: the even one starts the word, the odd one completes it.
template <typename T, int kCount>
__device__ __forceinline__ void set_element(Packed<T, kCount>& v, int j, float x) {
  const unsigned int bits = T::from_float(x).bits;
  v.words[j / 2] = j & 1 ? v.words[j / 2] | bits << 16 : bits;
}

// Where the vectors of `count` elements of T from `first` lie, kCount elements each.
struct Run {
  std::int64_t head, vectors, tail_begin;
};

// Elements from `address` to the next boundary of a vector of kCount elements of T.
template <typename T, int kCount>
__device__ __forceinline__ int elements_to_boundary(const T* address) {
  const unsigned long long misaligned = reinterpret_cast<unsigned long long>(address) % (kCount * sizeof(T));
  return misaligned == 0 ? 0 : static_cast<int>((kCount * sizeof(T) - misaligned) / sizeof(T));
}

template <int kCount>
__device__ __forceinline__ Run run_of(std::int64_t count, std::int64_t to_boundary) {
  Run run;
  run.head = to_boundary < count ? to_boundary : count;
  run.vectors = (count - run.head) / kCount;
  run.tail_begin = run.head + run.vectors * kCount;
  return run;
}

// Which row a block works on, and which of its `parts` (adjacent blocks). A grid has fewer than 2^31 blocks, so both fit
// 32 bits, whose division takes a quarter of the instructions of 64.
struct RowPart {
  std::int64_t row, index;
};
__device__ __forceinline__ RowPart row_part_of_block(std::int64_t parts) {
  const unsigned int per_row = static_cast<unsigned int>(parts);
  const unsigned int row = blockIdx.x / per_row;
  return {row, blockIdx.x - row * per_row};
}

// Columns [begin, end) of piece `index` when a row of `columns` is cut into `pieces`. Boundaries are multiples of 16
// elements, so every piece but a row's first and last starts at the row's own alignment; late pieces may be empty.
struct Piece {
  std::int64_t begin, end;
};
__device__ __forceinline__ Piece piece_of(std::int64_t columns, std::int64_t pieces, std::int64_t index) {
  const std::int64_t length = ((columns + pieces - 1) / pieces + 15) / 16 * 16;
  Piece piece;
  piece.begin = index * length < columns ? index * length : columns;
  piece.end = piece.begin + length < columns ? piece.begin + length : columns;
  return piece;
}

}  // namespace device
}  // namespace cer
