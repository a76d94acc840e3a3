// Unions and intersections. Both are kept as sorted lists without repetition, which swallow what is
// inside of something else as far as that can be seen.
#include <algorithm>

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

void sort_unique(Items& items) {
  if (items.size() < 2) return;
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
}

bool holds(const Items& items, Lang x) { return std::binary_search(items.begin(), items.end(), x); }

template <class Drop>
void erase_where(Items& items, Drop drop) {
  items.erase(std::remove_if(items.begin(), items.end(), drop), items.end());
}

}  // namespace

// not a | not b = not (a & b); not a & not b = not (a | b).
void Langs::Impl::gather_complements(Items& list, bool union_) {
  Items inner;
  for (Lang x : list)
    if (is(x, Kind::kNot)) inner.push_back(at(x).a);
  if (inner.size() < 2) return;
  erase_where(list, [&](Lang x) { return is(x, Kind::kNot); });
  list.push_back(complement(union_ ? both(inner) : either(inner)));
}

// A language and its complement are both in the list, be it as parts of a union or intersection.
bool Langs::Impl::opposites(const Items& list, bool union_) {
  Kind own = union_ ? Kind::kEither : Kind::kBoth, other = union_ ? Kind::kBoth : Kind::kEither;
  for (Lang x : list) {
    Lang a;
    if (is(x, Kind::kNot)) {
      a = at(x).a;
    } else if (is(x, Kind::kAutomaton) && at(x).hi) {
      a = automaton_state(at(x).a, at(x).b, false);
    } else {
      continue;
    }
    if (holds(list, a)) return true;
    if (is(a, own) && std::ranges::all_of(items(a), [&](Lang i) { return holds(list, i); }))
      return true;
    if (is(a, other) && std::ranges::any_of(items(a), [&](Lang i) { return holds(list, i); }))
      return true;
  }
  return false;
}

// x | (x & y) = x; x & (x | y) = x.
void Langs::Impl::drop_weaker(Items& list, bool union_) {
  Kind other = union_ ? Kind::kBoth : Kind::kEither;
  if (std::ranges::none_of(list, [&](Lang x) { return is(x, other); })) return;
  Items kept;
  for (Lang x : list)
    if (!is(x, other) || std::ranges::none_of(items(x), [&](Lang i) { return holds(list, i); }))
      kept.push_back(x);
  list.swap(kept);
}

// In a union: what is text is in text(), and what completes text is in what completes any. In an
// intersection it is the other way round.
void Langs::Impl::drop_text(Items& list, bool union_) {
  if (!has_text) return;
  for (int s = 0; s < kTextStates; ++s) {
    Lang tail = text_tails[s];
    if (std::find(list.begin(), list.end(), tail) == list.end()) continue;
    auto inside = [&](Lang x) { return x != tail && text(x).ends_text(s); };
    if (union_) {
      erase_where(list, inside);
    } else if (std::ranges::any_of(list, inside)) {
      erase_where(list, [&](Lang x) { return x == tail; });
    }
  }
}

// x{1,3} | x{2,7} = x{1,7}. Returns whether anything changed.
bool Langs::Impl::merge_repeats(Items& list) {
  bool changed = false;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!repeats(list[i])) continue;
    Lang x = at(list[i]).a;
    int64_t lo = least(list[i]), hi = most(list[i]);
    bool again = true, grown = false;
    while (again) {
      again = false;
      for (size_t j = 0; j < list.size(); ++j) {
        if (j == i || list[j] < 0) continue;
        int64_t p, q;
        if (list[j] == kEmptyWord) {
          p = q = 0;
        } else if (list[j] == x || (repeats(list[j]) && at(list[j]).a == x)) {
          p = list[j] == x ? 1 : least(list[j]), q = list[j] == x ? 1 : most(list[j]);
        } else {
          continue;
        }
        if ((hi >= 0 && p > hi + 1) || (q >= 0 && lo > q + 1)) continue;
        lo = std::min(lo, p);
        hi = hi < 0 || q < 0 ? -1 : std::max(hi, q);
        list[j] = -1;
        again = grown = true;
      }
    }
    if (!grown) continue;
    changed = true;
    list[i] = repeat(x, int32_t(lo), int32_t(hi));
    size_t before = i - size_t(std::count(list.begin(), list.begin() + i, -1));
    erase_where(list, [](Lang l) { return l < 0; });
    i = before;
  }
  return changed;
}

// a t | b t = (a | b) t, and t | a t = a? t. Returns whether anything changed.
bool Langs::Impl::factor_tails(Items& list) {
  struct Part {
    Lang tail, whole;
    bool operator<(const Part& o) const { return tail != o.tail ? tail < o.tail : whole < o.whole; }
  };
  std::vector<Part> parts;
  for (Lang x : list)
    if (is(x, Kind::kConcat)) parts.push_back({at(x).b, x});
  if (parts.empty()) return false;
  std::sort(parts.begin(), parts.end());
  Items gone, made;
  for (size_t i = 0, j; i < parts.size(); i = j) {
    for (j = i + 1; j < parts.size() && parts[j].tail == parts[i].tail;) ++j;
    Lang tail = parts[i].tail;
    bool alone = holds(list, tail);
    if (j - i < 2 && !alone) continue;
    Items heads;
    for (size_t k = i; k < j; ++k) {
      heads.push_back(at(parts[k].whole).a);
      gone.push_back(parts[k].whole);
    }
    if (alone) {
      heads.push_back(kEmptyWord);
      gone.push_back(tail);
    }
    made.push_back(concat(either(heads), tail));
  }
  if (made.empty()) return false;
  sort_unique(gone);
  erase_where(list, [&](Lang x) { return holds(gone, x); });
  list.insert(list.end(), made.begin(), made.end());
  return true;
}

Lang Langs::Impl::either(Items& list) {
  for (;;) {
    if (list.size() == 1) return list[0];
    if (std::ranges::any_of(list, [&](Lang x) { return is(x, Kind::kEither) || x == kNothing; })) {
      Items flat;
      for (Lang x : list) {
        if (is(x, Kind::kEither)) {
          flat.insert(flat.end(), items(x).begin(), items(x).end());
        } else if (x != kNothing) {
          flat.push_back(x);
        }
      }
      list.swap(flat);
    }
    sort_unique(list);
    if (list.empty()) return kNothing;
    if (list.size() == 1) return list[0];
    if (holds(list, every_string)) return every_string;

    // One byte out of several sets is one set. "" is left out where another holds it.
    ByteSet set;
    int sets_ = 0, concats = 0, repeats_ = 0, complements = 0, flipped = 0;
    bool empty = false;
    for (Lang x : list) {
      switch (at(x).kind) {
        case Kind::kBytes:
          ++sets_;
          for (int w = 0; w < 4; ++w) set.words[w] |= sets[at(x).a].words[w];
          break;
        case Kind::kConcat:
          ++concats;
          break;
        case Kind::kStar:
        case Kind::kRepeat:
          ++repeats_;
          break;
        case Kind::kNot:
          ++complements;
          break;
        case Kind::kAutomaton:
          flipped += at(x).hi;
          break;
        default:
          break;
      }
      empty |= x != kEmptyWord && accepts(x);
    }
    if (sets_ > 1) {
      erase_where(list, [&](Lang x) { return is(x, Kind::kBytes); });
      list.push_back(bytes(set));
      sort_unique(list);
    }
    if (empty && list[0] <= kEmptyWord) erase_where(list, [](Lang x) { return x == kEmptyWord; });
    if (complements > 1) {
      gather_complements(list, true);
      continue;
    }
    if (complements + flipped && opposites(list, true)) return every_string;
    drop_text(list, true);
    drop_weaker(list, true);
    if (list.size() == 1) return list[0];
    if (repeats_ && merge_repeats(list)) continue;
    if (concats && factor_tails(list)) continue;
    Expression e{.kind = Kind::kEither};
    return intern(e, list.data(), int32_t(list.size()));
  }
}

// Where all begin with one byte: (S x) & (T y) = (S & T) (x & y). Returns whether that is so.
bool Langs::Impl::share_heads(Items& list, Lang& result) {
  auto simple = [&](Lang x) {
    return is(x, Kind::kBytes) || (is(x, Kind::kConcat) && is(at(x).a, Kind::kBytes));
  };
  if (!std::ranges::all_of(list, simple)) return false;
  Items heads;
  while (list.size() > 1 && std::ranges::all_of(list, simple)) {
    ByteSet set;
    set.add(0, 255);
    for (Lang& x : list) {
      Lang head = is(x, Kind::kConcat) ? at(x).a : x;
      for (int w = 0; w < 4; ++w) set.words[w] &= sets[at(head).a].words[w];
      x = is(x, Kind::kConcat) ? at(x).b : kEmptyWord;
    }
    heads.push_back(bytes(set));
    if (heads.back() == kNothing) {
      result = kNothing;
      return true;
    }
    sort_unique(list);
  }
  result = list.size() == 1 ? list[0] : both(list);
  while (!heads.empty()) {
    result = join(heads.back(), result);
    heads.pop_back();
  }
  return true;
}

// The bytes that are words of all others too.
Lang Langs::Impl::of_one_byte(const ByteSet& set, Items& others) {
  int32_t partition = 0;
  for (Lang x : others) partition = meet(partition, classes_of(x));
  const Classes& classes = *partitions[partition];
  ByteSet kept;
  for (int c = 0; c < classes.count; ++c) {
    uint8_t b = classes.first[c];
    if (!std::ranges::all_of(others, [&](Lang x) { return accepts(step(x, b)); })) continue;
    for (int i = 0; i < 256; ++i)
      if (classes.of[i] == c && set.has(uint8_t(i))) kept.add(uint8_t(i));
  }
  return bytes(kept);
}

Lang Langs::Impl::both(Items& list) {
  for (;;) {
    if (list.size() == 1) return list[0];
    if (std::ranges::any_of(list,
                            [&](Lang x) { return is(x, Kind::kBoth) || x == every_string; })) {
      Items flat;
      for (Lang x : list) {
        if (is(x, Kind::kBoth)) {
          flat.insert(flat.end(), items(x).begin(), items(x).end());
        } else if (x != every_string) {
          flat.push_back(x);
        }
      }
      list.swap(flat);
    }
    sort_unique(list);
    if (list.empty()) return every_string;
    if (list[0] == kNothing) return kNothing;
    if (list.size() == 1) return list[0];
    if (list[0] == kEmptyWord)
      return std::ranges::all_of(list, [&](Lang x) { return accepts(x); }) ? kEmptyWord : kNothing;

    ByteSet set;
    set.add(0, 255);
    int sets_ = 0, complements = 0, flipped = 0;
    bool looping = false;
    for (Lang x : list) {
      if (is(x, Kind::kBytes)) {
        ++sets_;
        for (int w = 0; w < 4; ++w) set.words[w] &= sets[at(x).a].words[w];
      }
      complements += is(x, Kind::kNot);
      flipped += is(x, Kind::kAutomaton) && at(x).hi;
      looping |= at(x).looping;
    }
    if (complements > 1) {
      gather_complements(list, false);
      continue;
    }
    if (complements + flipped && opposites(list, false)) return kNothing;
    if (sets_) {
      erase_where(list, [&](Lang x) { return is(x, Kind::kBytes); });
      return set == ByteSet{} ? kNothing : list.empty() ? bytes(set) : of_one_byte(set, list);
    }
    drop_text(list, false);
    if (complements && has_text) {  // text, but not text
      Lang out = at(*std::ranges::find_if(list, [&](Lang x) { return is(x, Kind::kNot); })).a;
      auto tail = std::ranges::find(text_tails, out);
      if (tail != text_tails.end() && std::ranges::any_of(list, [&](Lang x) {
            return text(x).ends_text(int(tail - text_tails.begin()));
          }))
        return kNothing;
    }
    drop_weaker(list, false);
    if (list.size() == 1) return list[0];
    Lang shared;
    if (share_heads(list, shared)) return shared;

    // With a loop inside, unions are kept outermost: else they would nest deeper with each step.
    if (looping) {
      auto wide =
          std::ranges::find_if(list, [&](Lang x) { return is(x, Kind::kEither) && at(x).looping; });
      if (wide != list.end()) {
        Lang parts = *wide;
        list.erase(wide);
        Items all;
        for (Lang part : items(parts)) {
          Items one = list;
          one.push_back(part);
          all.push_back(both(one));
        }
        return either(all);
      }
    }
    Expression e{.kind = Kind::kBoth};
    return intern(e, list.data(), int32_t(list.size()));
  }
}

}  // namespace tokops::grammar
