// A pool of threads for loops over independent tasks.
//
// run(tasks, threads, work) calls work(i) once for every i in [0, tasks), on the caller and at most threads - 1 helpers.
// Tasks are handed out by a counter, so a helper that the system does not schedule takes none; the caller never waits for
// one that has not begun. (A static split, as OpenMP's, waits for the slowest: 8 ms instead of 0.5 beside busy threads.)
// Which thread runs a task must not show in its result: then results do not depend on the number of threads.
//
// Helpers are started when first needed and sleep between runs. After fork the child starts its own. Several threads
// may call run at once. An exception of work ends the hand-out and is thrown by run; if several, the first.
#pragma once

#include <cstdint>
#include <type_traits>

namespace cer::cpu {

using Task = void (*)(void* context, std::int64_t index);

void run_tasks(std::int64_t tasks, int threads, Task task, void* context);

template <typename Work>
void run(std::int64_t tasks, int threads, Work&& work) {
  using Plain = std::remove_reference_t<Work>;
  run_tasks(
      tasks, threads, [](void* context, std::int64_t index) { (*static_cast<Plain*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace cer::cpu
