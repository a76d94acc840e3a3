// Threads that share out a loop.
#pragma once
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tokops::grammar {

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      const std::lock_guard guard(lock_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
  }
  int threads() const { return int(workers_.size()) + 1; }

  // f(i) for all i below n, each once; the first exception is thrown here.
  void run(int64_t n, const std::function<void(int64_t)>& f) {
    const std::lock_guard one_at_a_time(turn_);
    {
      const std::lock_guard guard(lock_);
      f_ = &f;
      n_ = n;
      next_ = 0;
      busy_ = int(workers_.size());
      error_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    share();
    std::unique_lock wait(lock_);
    done_.wait(wait, [this] { return busy_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void share() {
    for (int64_t i; (i = next_.fetch_add(1)) < n_;) {
      try {
        (*f_)(i);
      } catch (...) {
        const std::lock_guard guard(lock_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }
  void work() {
    uint64_t seen = 0;
    while (true) {
      {
        std::unique_lock wait(lock_);
        wake_.wait(wait, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
      }
      share();
      const std::lock_guard guard(lock_);
      if (--busy_ == 0) done_.notify_one();
    }
  }
  std::vector<std::thread> workers_;
  std::mutex lock_, turn_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* f_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t n_ = 0;
  uint64_t round_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace tokops::grammar
