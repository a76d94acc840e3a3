// Rows on their way into the cache. For .isa.cpp files.
#pragma once
#include <cstdint>

namespace tokops {
namespace {

// Rows that will be needed soon, in the order in which they will be. The products call them into
// the cache a few lines at a time, spread over their work: the core can have few lines in flight,
// and a burst of prefetches would wait for them.
struct Ahead {
  struct Run {
    const uint8_t* const* row;  // the next one, of those up to `end`
    const uint8_t* const* end;
    int bytes;
  };
  Run run[3];
  bool second;  // into the second cache, a tile ahead; else into the first, less far: a miss in it
                // holds a line that is in flight
  int at = 0;   // the run at work
  const uint8_t *line = nullptr, *line_end = nullptr;  // what is left of rows side by side

  [[gnu::always_inline]] void lines(int n) {
    if (line >= line_end && !next_rows()) return;
    if (second)
      for (int i = 0; i < n * 64; i += 64) __builtin_prefetch(line + i, 0, 2);
    else
      for (int i = 0; i < n * 64; i += 64) __builtin_prefetch(line + i, 0, 3);
    line += n * 64;
  }
  void call(int rows) {
    if (at == 3) return;
    for (int left = rows * ((run[at].bytes + 63) / 64); left > 0;) {
      if (line >= line_end && !next_rows()) return;
      const int there = int(line_end - line + 63) / 64, n = left < there ? left : there;
      const uint8_t* const stop = line + n * 64;
      if (second)
        for (; line < stop; line += 64) __builtin_prefetch(line, 0, 2);
      else
        for (; line < stop; line += 64) __builtin_prefetch(line, 0, 3);
      left -= n;
    }
  }

 private:
  bool next_rows() {
    for (; at < 3; ++at)
      if (Run& x = run[at]; x.row < x.end) {
        line = *x.row++;
        line_end = line + x.bytes;
        for (; x.row < x.end && *x.row == line_end; ++x.row) line_end += x.bytes;
        return true;
      }
    return false;
  }
};

}  // namespace
}  // namespace tokops
