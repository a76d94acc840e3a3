// Which rows of a work item are called into the cache, and when. For .isa.cpp files.
#pragma once
#include "attention/decode_task.h"
#include "common/isa.h"

namespace tokops {
namespace {

class Lookahead {
 public:
  // Rows of keys and of values, in bytes; without values v_bytes counts for the choice alone.
  Lookahead(int k_bytes, int v_bytes, bool values)
      : k_bytes_(k_bytes),
        v_bytes_(v_bytes),
        values_(values),
        second_(kWide && !cpu::tuned_for_amd()),
        keys_(k_bytes + v_bytes <= 256 ? kTile : 64),
        far_(second_ || (!kWide && keys_ * (k_bytes + v_bytes) <= 16384)),
        lead_(far_ ? keys_ : lead_rows(k_bytes)) {}

  // Of a tile, both of whose sides the first cache should hold.
  int keys() const { return keys_; }

  // The first rows of the first tile.
  void call_first(const Rows& x) const {
    if (x.n) Ahead{{{x.k, x.k + lead_, k_bytes_}, {}, {}}, second_}.call(lead_);
  }
  // What is needed after the first rows of a tile, of `next` too, the tile after it, which may be
  // empty. `called`: the tile before it has called what it had to call.
  Ahead rows_after(const Rows& tile, const Rows& next, bool called) const {
    const auto values = [&](const Rows& x, bool any) {
      return Ahead::Run{x.v, x.v + (any && values_ ? keys_ : 0), v_bytes_};
    };
    const Ahead::Run next_keys{next.k, next.k + (next.n ? lead_ : 0), k_bytes_};
    if (far_) return {{values(tile, !called), next_keys, values(next, next.n > 0)}, second_};
    return {{{tile.k + lead_, tile.k + keys_, k_bytes_}, values(tile, true), next_keys}, second_};
  }

 private:
  // With registers this wide a tile is soon through: a whole one ahead pays, in the second cache,
  // but on AMD's CPUs, where a call into that holds up the core (a third more time).
  static constexpr bool kWide = Vec::width == 16;

  // Rows of keys that are called before they are needed: some 8 or 16 KB of them, and a tile where
  // the registers of AVX2 give the memory time (on a Zen 3 a tenth of a thread's, with float32).
  int lead_rows(int bytes) const {
    if (Vec::width == 8) return keys_;
    const int rows = (kWide ? 16384 : 8192) / bytes;
    return rows < 16 ? 16 : rows > keys_ ? keys_ : rows;
  }

  int k_bytes_, v_bytes_;
  bool values_;
  bool second_;  // what is needed soon is called into the second cache
  int keys_;
  bool far_;  // a whole tile is called before its turn, or
  int lead_;  // as many rows of its keys
};

}  // namespace
}  // namespace tokops
