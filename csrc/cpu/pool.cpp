// The pool of pool.h: a list of open jobs under one lock; within a job, an atomic counter.
#include "cpu/pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace cer::cpu {
namespace {

constexpr int kMostHelpers = 1023;

// Every task runs in the same floating-point mode, whatever its thread has set: round to nearest, no traps, subnormal
// operands as they are, subnormal results flushed to zero (elementary.h says why that is harmless).
class FloatingPointMode {
 public:
#if defined(__x86_64__)
  FloatingPointMode() : before_(_mm_getcsr()) { _mm_setcsr(0x9f80); }
  ~FloatingPointMode() { _mm_setcsr(before_); }

 private:
  unsigned before_;

 public:
#else
  FloatingPointMode() {}
  ~FloatingPointMode() {}
#endif
  FloatingPointMode(const FloatingPointMode&) = delete;
  FloatingPointMode& operator=(const FloatingPointMode&) = delete;
};

struct Job {
  const std::int64_t tasks;
  const Task task;
  void* const context;
  std::atomic<std::int64_t> next{0};
  // Under the pool's lock:
  int wanted = 0;              // helpers that may still join
  int inside = 0;              // helpers that joined and have not left
  std::exception_ptr failure;  // the first

  Job(std::int64_t tasks_, Task task_, void* context_) : tasks(tasks_), task(task_), context(context_) {}

  // Takes tasks until none is left.
  std::exception_ptr work() {
    const FloatingPointMode mode;
    try {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      return std::current_exception();
    }
    return nullptr;
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    std::list<Job*>::iterator place;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start(helpers);
      helpers = std::min(helpers, started_);
      job.wanted = helpers;
      place = jobs_.insert(jobs_.end(), &job);
    }
    for (int i = 0; i < helpers; ++i) posted_.notify_one();
    const std::exception_ptr own = job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(place);  // from here on nobody joins
    left_.wait(lock, [&] { return job.inside == 0; });
    if (!job.failure) job.failure = own;
  }

 private:
  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      posted_.wait(lock, [&] { return (job = open_job()) != nullptr; });
      --job->wanted;
      ++job->inside;
      lock.unlock();
      const std::exception_ptr failure = job->work();
      lock.lock();
      if (failure && !job->failure) job->failure = failure;
      if (--job->inside == 0) left_.notify_all();  // the job is gone once its caller sees this
    }
  }

  Job* open_job() const {
    for (Job* job : jobs_) {
      if (job->wanted > 0 && job->next.load(std::memory_order_relaxed) < job->tasks) return job;
    }
    return nullptr;
  }

  // Under the lock. Helpers are detached and never end: at exit they sleep, and the process takes them along.
  void start(int helpers) {
    if (started_ >= helpers) return;
    sigset_t all, before;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; started_ < helpers; ++started_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
      // The system allows no more threads: the ones there are, the caller at least, do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  std::mutex mutex_;
  std::condition_variable posted_, left_;
  std::list<Job*> jobs_;
  int started_ = 0;
};

std::atomic<Pool*> current{nullptr};

// In a forked child the helpers are gone and the lock may be held by one of them: leave that pool alone, start afresh.
void forget_pool() { current.store(nullptr, std::memory_order_relaxed); }

// Never destroyed: helpers may still look at it while the process exits.
Pool& pool() {
  Pool* found = current.load(std::memory_order_acquire);
  if (found) return *found;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  Pool* fresh = new Pool;
  if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

void run_tasks(std::int64_t tasks, int threads, Task task, void* context) {
  if (tasks <= 0) return;
  Job job(tasks, task, context);
  const std::int64_t helpers = std::min<std::int64_t>({threads - 1, tasks - 1, kMostHelpers});
  if (helpers > 0) {
    pool().run(job, static_cast<int>(helpers));
  } else {
    job.failure = job.work();
  }
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace cer::cpu
