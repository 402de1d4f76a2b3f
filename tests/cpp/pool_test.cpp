// The thread pool: every task once, exceptions reach the caller, several callers at once, a forked child works on.
#include "cpu/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "expect.h"

namespace {

using cer::cpu::run;

bool every_task_runs_once(std::int64_t tasks, int threads) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  run(tasks, threads, [&](std::int64_t i) { runs[static_cast<std::size_t>(i)].fetch_add(1); });
  for (std::int64_t i = 0; i < tasks; ++i) {
    const int count = runs[static_cast<std::size_t>(i)].load();
    if (count != 1) {
      expect::fail("runs of task, " + std::to_string(threads) + " threads", i, count, 1);
      return false;
    }
  }
  return true;
}

void helpers_take_part() {
  std::atomic<int> inside{0};
  std::atomic<bool> together{false};
  run(2, 2, [&](std::int64_t) {  // each of the two waits for the other, so two threads must be at work
    inside.fetch_add(1);
    for (int i = 0; i < 5000 && !together.load(); ++i) {
      if (inside.load() == 2) together.store(true);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  expect::is_true(together.load(), "two tasks on two threads run at the same time");
}

void exception_reaches_the_caller() {
  for (const int threads : {1, 2, 4}) {
    for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{57}, std::int64_t{999}}) {
      std::string message;
      try {
        run(1000, threads, [&](std::int64_t i) {
          if (i == bad) throw std::runtime_error("task " + std::to_string(i));
        });
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      expect::is_true(message == "task " + std::to_string(bad), "exception of task " + std::to_string(bad) + ", got '" + message + "'");
    }
  }
  every_task_runs_once(1000, 4);  // and the pool goes on
}

void several_callers_at_once() {
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&good] {
      for (int k = 0; k < 200; ++k) good.fetch_add(every_task_runs_once(37, 3));
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect::is_true(good.load() == 800, "four callers, 200 runs each");
}

void run_within_a_task() {
  std::atomic<int> sum{0};
  run(8, 4, [&](std::int64_t) { run(8, 4, [&](std::int64_t) { sum.fetch_add(1); }); });
  expect::is_true(sum.load() == 64, "a run within a run");
}

void forked_child_works(bool while_busy) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (while_busy && !stop.load()) every_task_runs_once(100, 3);
  });
  for (int k = 0; k < 20; ++k) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a child that hangs dies
      _exit(every_task_runs_once(1000, 3) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect::is_true(WIFEXITED(status) && WEXITSTATUS(status) == 0,
                    std::string("a forked child") + (while_busy ? " of a busy parent" : "") + " runs its tasks");
  }
  stop.store(true);
  busy.join();
}

}  // namespace

// --no-fork: where the program runs under user-mode emulation. qemu's own threads do not survive a fork of a program with
// several threads, so that a child there can start none, whatever the pool does.
int main(int count, char** arguments) {
  const bool forks = !(count > 1 && std::string(arguments[1]) == "--no-fork");
  for (const int threads : {-1, 0, 1, 2, 5, 64}) {
    for (const std::int64_t tasks : {0, 1, 2, 3, 1000}) every_task_runs_once(tasks, threads);
  }
  helpers_take_part();
  exception_reaches_the_caller();
  several_callers_at_once();
  run_within_a_task();
  if (forks) {
    forked_child_works(false);
    forked_child_works(true);
  } else {
    std::printf("not tested here: fork\n");
  }
  return expect::finish("pool");
}
