// What one question of infilling may spend. Running out is no answer: it is thrown, and told apart
// from "no".
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>

namespace tokops::grammar::infill {

// Thrown where a bound was passed. `bound`: "steps", "seconds", "memory" or "cancelled".
struct OutOfEffort {
  const char* bound;
};

class Effort {
 public:
  using Clock = std::chrono::steady_clock;

  // steps: basic operations, about a nanosecond to ten each. `cancelled` is read, and `poll`
  // called, every few thousand steps; a `poll` that answers true cancels.
  Effort(int64_t steps, std::optional<double> seconds, const std::atomic<bool>* cancelled,
         std::function<bool()> poll = {})
      : left_(steps), cancelled_(cancelled), poll_(std::move(poll)) {
    if (seconds) {
      deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(*seconds));
    }
  }

  void spend(int64_t steps) {
    spent_ += steps;
    left_ -= steps;
    if (left_ < 0) throw OutOfEffort{"steps"};
    until_look_ -= steps;
    if (until_look_ < 0) look();
  }
  int64_t spent() const { return spent_; }

 private:
  void look() {
    until_look_ = kBetweenLooks;
    if (cancelled_ && cancelled_->load(std::memory_order_relaxed)) throw OutOfEffort{"cancelled"};
    if (!deadline_ && !poll_) return;
    const auto now = Clock::now();
    if (deadline_ && now >= *deadline_) throw OutOfEffort{"seconds"};
    if (poll_ && now - polled_ > std::chrono::milliseconds(50)) {
      polled_ = now;
      if (poll_()) throw OutOfEffort{"cancelled"};
    }
  }

  static constexpr int64_t kBetweenLooks = 1 << 14;
  int64_t left_, spent_ = 0, until_look_ = 0;
  std::optional<Clock::time_point> deadline_;
  Clock::time_point polled_ = Clock::now();
  const std::atomic<bool>* cancelled_;
  std::function<bool()> poll_;
};

}  // namespace tokops::grammar::infill
