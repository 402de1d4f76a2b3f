// Comparisons that name the first bad coordinate and both values. A test program calls them and returns failures().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace expect {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void fail(const std::string& what, std::int64_t where, double got, double wanted) {
  if (++failures() <= 20) {
    std::printf("%s: at %lld got %.17g, wanted %.17g\n", what.c_str(), static_cast<long long>(where), got, wanted);
  }
}

inline void is_true(bool condition, const std::string& what) {
  if (!condition && ++failures() <= 20) std::printf("%s: false\n", what.c_str());
}

// |got - wanted| <= relative |wanted| + absolute; NaN equals NaN, infinities themselves. Reports the first of an array.
template <typename T, typename U>
bool close(const std::vector<T>& got, const std::vector<U>& wanted, double relative, double absolute,
           const std::string& what) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double a = static_cast<double>(got[i]), b = static_cast<double>(wanted[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    if (a == b || std::fabs(a - b) <= relative * std::fabs(b) + absolute) continue;
    fail(what, static_cast<std::int64_t>(i), a, b);
    return false;
  }
  return true;
}

// The same bits (NaN may differ in its bits).
template <typename T>
bool same(const std::vector<T>& got, const std::vector<T>& wanted, const std::string& what) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (std::memcmp(&got[i], &wanted[i], sizeof(T)) == 0) continue;
    const double a = static_cast<double>(got[i]), b = static_cast<double>(wanted[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    fail(what + " (bits)", static_cast<std::int64_t>(i), a, b);
    return false;
  }
  return true;
}

inline int finish(const char* subject) {
  if (failures()) {
    std::printf("%s: %d failed\n", subject, failures());
    return 1;
  }
  std::printf("%s: ok\n", subject);
  return 0;
}

}  // namespace expect
