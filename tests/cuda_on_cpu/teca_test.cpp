// teca_forward and teca_backward of csrc/cuda, run on a CPU, against sums in the order of the tokens.
//
//     teca_test SEED                 every case; the seed orders the threads and draws entropies, masks and gradients
#include "cuda_on_cpu.h"

#include "launch_plan.h"
#include "logits_cases.h"
#include "teca.cuh"

namespace {

using namespace cases;

std::uint32_t seed = 1;
double worst = 0.0;
int cases_run = 0;

enum class Mask { kNone, kRandom, kLeftPadded, kRightPadded, kNothingKept, kOneKept };

bool kept_by(Mask mask, std::int64_t token, std::int64_t length, std::mt19937_64& random) {
  switch (mask) {
    case Mask::kNone: return true;
    case Mask::kRandom: return random() % 3 != 0;
    case Mask::kLeftPadded: return token >= length / 3;
    case Mask::kRightPadded: return token < length - length / 4;
    case Mask::kNothingKept: return false;
    case Mask::kOneKept: return token == length / 2;
  }
  return true;
}

template <typename Real>
void run_case(const std::vector<std::int64_t>& lengths, bool packed, Mask mask, bool gradient_of_teca = true,
              bool gradient_of_last = true) {
  const std::size_t responses = lengths.size();
  std::mt19937_64 random(seed * 1000003u + static_cast<std::uint64_t>(cases_run));
  std::vector<std::int64_t> begins{0};
  for (const std::int64_t length : lengths) begins.push_back(begins.back() + length);
  const std::size_t tokens = static_cast<std::size_t>(begins.back());
  fiber::GuardedBuffer<Real> entropy("entropy", tokens), teca("teca", tokens), grad_teca("grad_teca", tokens),
      grad_entropy("grad_entropy", tokens), last("last", responses), grad_last("grad_last", responses);
  fiber::GuardedBuffer<std::uint8_t> keep("mask", tokens);
  fiber::GuardedBuffer<std::int64_t> cu_seqlens("cu_seqlens", responses + 1);
  for (std::size_t i = 0; i <= responses; ++i) cu_seqlens[i] = begins[i];
  std::uniform_real_distribution<double> uniform(0.0, 11.0);
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < responses; ++i) {
    grad_last[i] = static_cast<Real>(normal(random));
    for (std::int64_t t = 0; t < lengths[i]; ++t) {
      const std::size_t at = static_cast<std::size_t>(begins[i] + t);
      keep[at] = kept_by(mask, t, lengths[i], random) ? 1 : 0;
      // What does not count may be anything.
      entropy[at] = keep[at] ? static_cast<Real>(uniform(random) * (t % 5 == 0 ? 1e-6 : 1.0)) : static_cast<Real>(kNan);
      grad_teca[at] = keep[at] ? static_cast<Real>(normal(random)) : static_cast<Real>(kNan);
    }
  }
  cer::Teca p;
  p.is_double = sizeof(Real) == 8;
  p.responses = static_cast<std::int64_t>(responses);
  p.length = packed ? 0 : lengths[0];
  p.cu_seqlens = packed ? cu_seqlens.data() : nullptr;
  p.mask = mask == Mask::kNone ? nullptr : keep.data();
  p.entropy = entropy.data();
  p.teca = teca.data();
  p.last = last.data();
  cer::TecaBackward q;
  q.is_double = p.is_double;
  q.responses = p.responses;
  q.length = p.length;
  q.cu_seqlens = p.cu_seqlens;
  q.mask = p.mask;
  q.grad_teca = gradient_of_teca ? grad_teca.data() : nullptr;
  q.grad_last = gradient_of_last ? grad_last.data() : nullptr;
  q.grad_entropy = grad_entropy.data();
  const cer::LaunchPlan plan = cer::teca_plan(p.responses);
  const bool wide = p.is_double;
  void (*const forward)(cer::Teca) = wide ? cer_teca_forward_float64 : cer_teca_forward_float32;
  void (*const backward)(cer::TecaBackward) = wide ? cer_teca_backward_float64 : cer_teca_backward_float32;
  fiber::launch("teca_forward", plan.blocks, plan.threads, seed, forward, p);
  fiber::launch("teca_backward", plan.blocks, plan.threads, seed, backward, q);

  Check check{std::string(wide ? "float64 " : "float32 ") + std::to_string(responses) + " responses of " +
              std::to_string(lengths[0]) + (packed ? " packed" : " padded") + " mask " +
              std::to_string(static_cast<int>(mask))};
  const double relative = wide ? 1e-13 : 1.3e-7;
  for (std::size_t i = 0; i < responses; ++i) {
    Wide sum = 0;
    std::int64_t n = 0;
    for (std::int64_t t = 0; t < lengths[i]; ++t) {
      const std::size_t at = static_cast<std::size_t>(begins[i] + t);
      if (keep[at]) sum += static_cast<Wide>(entropy[at]), ++n;
      const double expected = keep[at] ? static_cast<double>(sum / n) : 0.0;
      check.close("teca", static_cast<std::int64_t>(i), t, static_cast<double>(teca[at]), expected, relative);
    }
    check.close("last", static_cast<std::int64_t>(i), -1, static_cast<double>(last[i]),
                n == 0 ? 0.0 : static_cast<double>(sum / n), relative);
    Wide later = gradient_of_last && n > 0 ? static_cast<Wide>(grad_last[i]) / n : 0;
    Wide size = std::fabs(later);  // what the terms amount to before they cancel
    for (std::int64_t t = lengths[i] - 1; t >= 0; --t) {
      const std::size_t at = static_cast<std::size_t>(begins[i] + t);
      if (!keep[at]) {
        check.close("grad_entropy of a masked token", static_cast<std::int64_t>(i), t,
                    static_cast<double>(grad_entropy[at]), 0.0, 0.0);
        continue;
      }
      const Wide share = gradient_of_teca ? static_cast<Wide>(grad_teca[at]) / n : 0;
      later += share;
      size += std::fabs(share);
      --n;
      check.close("grad_entropy", static_cast<std::int64_t>(i), t, static_cast<double>(grad_entropy[at]),
                  static_cast<double>(later), relative, 1e-13 * static_cast<double>(size));
    }
  }
  if (check.worst > worst) worst = check.worst;
  ++cases_run;
}

template <typename Real>
void run_dtype() {
  // One token, a lane's share, a warp's, a block's, their neighbours, and several rounds of a block.
  for (const std::int64_t length : {1, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 6500}) {
    run_case<Real>({length}, false, Mask::kNone);
    run_case<Real>({length, length}, false, Mask::kRandom);
  }
  for (const Mask mask : {Mask::kLeftPadded, Mask::kRightPadded, Mask::kNothingKept, Mask::kOneKept}) {
    run_case<Real>({300, 300, 300}, false, mask);
    run_case<Real>({2100, 2100}, false, mask);
  }
  run_case<Real>({3, 0, 5000, 1, 0, 258, 2}, true, Mask::kNone);
  run_case<Real>({0, 33, 0}, true, Mask::kNone);
  run_case<Real>({100, 31}, true, Mask::kRandom);
  run_case<Real>({100}, false, Mask::kRandom, true, false);
  run_case<Real>({100}, false, Mask::kRandom, false, true);
  run_case<Real>({0, 0}, false, Mask::kNone);
}

}  // namespace

int main(int argc, char** argv) {
  fiber::catch_stray_addresses();
  seed = argc > 1 ? static_cast<std::uint32_t>(std::atoi(argv[1])) : 1;
  run_dtype<float>();
  run_dtype<double>();
  std::printf("teca: %d cases, largest error %.2f of what is allowed\n", cases_run, worst);
  return 0;
}
