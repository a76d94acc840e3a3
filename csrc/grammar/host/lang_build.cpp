// Constructors of expressions other than unions and intersections. Each gives the simplest form it
// knows, so that equal languages mostly have one index and an automaton stays small.
#include <algorithm>

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

bool holds(const Items& items, Lang x) { return std::binary_search(items.begin(), items.end(), x); }

template <class Drop>
void erase_where(Items& items, Drop drop) {
  items.erase(std::remove_if(items.begin(), items.end(), drop), items.end());
}

int32_t checked(int64_t n) {
  if (n > INT32_MAX) throw BudgetError("repeat", "", "more than 2147483647 repetitions");
  return int32_t(n);
}

}  // namespace

Lang Langs::Impl::bytes(const ByteSet& set) {
  if (set == ByteSet{}) return kNothing;
  // Sets are few: each is its own expression, and the table finds it by its index.
  uint64_t h = 0;
  for (uint64_t w : set.words) h = mix(h ^ w);
  Expression e{.kind = Kind::kBytes};
  auto [first, last] = set_of.equal_range(h);
  for (; first != last; ++first)
    if (sets[first->second] == set) {
      e.a = first->second;
      return intern(e);
    }
  charge(sizeof(ByteSet) + 40);
  e.a = int32_t(sets.size());
  sets.push_back(set);
  set_of.emplace(h, e.a);
  return intern(e);
}

Lang Langs::Impl::byte(uint8_t b) {
  if (byte_langs[b] < 0) {
    ByteSet set;
    set.add(b);
    byte_langs[b] = bytes(set);
  }
  return byte_langs[b];
}

Lang Langs::Impl::word(std::string_view text) {
  Lang all = kEmptyWord;
  for (size_t i = text.size(); i-- > 0;) all = join(byte(uint8_t(text[i])), all);
  return all;
}

Lang Langs::Impl::concat(Lang a, Lang b) {
  if (a == kNothing || b == kNothing) return kNothing;
  if (a == kEmptyWord) return b;
  if (b == kEmptyWord) return a;
  if (!is(a, Kind::kConcat)) return join(a, b);
  Items parts;
  for (; is(a, Kind::kConcat); a = at(a).b) parts.push_back(at(a).a);
  b = join(a, b);
  while (!parts.empty()) {
    b = join(parts.back(), b);
    parts.pop_back();
  }
  return b;
}

// a b, where a is not a concatenation. x{2,3} x* is x{2,}, and so on.
Lang Langs::Impl::join(Lang a, Lang b) {
  if (a == kNothing || b == kNothing) return kNothing;
  if (a == kEmptyWord) return b;
  if (b == kEmptyWord) return a;
  Lang head = is(b, Kind::kConcat) ? at(b).a : b;
  if ((repeats(a) || repeats(head)) && body(a) == body(head)) {
    int64_t most_ = most(a) < 0 || most(head) < 0 ? -1 : int64_t(most(a)) + most(head);
    Lang both_ =
        repeat(body(a), checked(int64_t(least(a)) + least(head)), most_ < 0 ? -1 : checked(most_));
    if (head == b) return both_;
    return concat(both_, at(b).b);
  }
  // What any text may follow need not be told from it: x* text() = text(), x{2,5} text() = x{2}
  // text(), and the same behind text().
  auto vanishes = [&](Lang x) { return accepts(x) && text(x).ends_text(0); };
  auto shortens = [&](Lang x) {
    return is(x, Kind::kRepeat) && at(x).lo != at(x).hi && text(at(x).a).ends_text(0);
  };
  if (has_text && head == text_tails[0]) {
    if (vanishes(a)) return b;
    if (shortens(a)) return join(repeat(at(a).a, at(a).lo, at(a).lo), b);
  }
  if (has_text && a == text_tails[0]) {
    Lang after = head == b ? kEmptyWord : at(b).b;
    if (vanishes(head)) return concat(a, after);
    if (shortens(head))
      return concat(a, concat(repeat(at(head).a, at(head).lo, at(head).lo), after));
  }
  if (head == every_string && accepts(a)) return b;
  Expression e{.kind = Kind::kConcat, .a = a, .b = b};
  return intern(e);
}

Lang Langs::Impl::star(Lang a) {
  if (a == kNothing || a == kEmptyWord) return kEmptyWord;
  if (is(a, Kind::kStar)) return a;
  if (is(a, Kind::kRepeat) && at(a).lo <= 1) return star(at(a).a);
  if (is(a, Kind::kEither) && accepts(a)) {
    Items rest(items(a).begin(), items(a).end());
    if (holds(rest, kEmptyWord)) {
      erase_where(rest, [](Lang x) { return x == kEmptyWord; });
      return star(either(rest));
    }
  }
  Expression e{.kind = Kind::kStar, .a = a};
  return intern(e);
}

Lang Langs::Impl::repeat(Lang a, int32_t lo, int32_t hi) {
  if (hi >= 0 && lo > hi) return kNothing;
  if (hi == 0 || a == kEmptyWord) return kEmptyWord;
  if (a == kNothing) return lo == 0 ? kEmptyWord : kNothing;
  if (accepts(a)) lo = 0;
  if (lo == 0 && hi < 0) return star(a);
  if (lo == 1 && hi == 1) return a;
  if (is(a, Kind::kStar)) return a;
  if (lo == 0 && hi == 1) return either(kEmptyWord, a);
  if (is(a, Kind::kEither) && lo == 0) {  // (a?){0,5} is a{0,5}
    Items rest(items(a).begin(), items(a).end());
    if (holds(rest, kEmptyWord)) {
      erase_where(rest, [](Lang x) { return x == kEmptyWord; });
      return repeat(either(rest), lo, hi);
    }
  }
  if (is(a, Kind::kRepeat)) {  // (x{p,q}){lo,hi} is x{p lo, q hi} where the spans meet
    int64_t p = at(a).lo, q = at(a).hi;
    if (lo == hi || (q < 0 ? lo > 0 || p <= 1 : lo * q + 1 >= (int64_t(lo) + 1) * p)) {
      int64_t most_ = q < 0 || hi < 0 ? -1 : q * hi;
      return repeat(at(a).a, checked(p * lo), most_ < 0 ? -1 : checked(most_));
    }
  }
  Expression e{.kind = Kind::kRepeat, .a = a};
  e.lo = lo, e.hi = hi;
  return intern(e);
}

Lang Langs::Impl::complement(Lang a) {
  if (a == kNothing) return every_string;
  if (a == every_string) return kNothing;
  const Expression& e = at(a);
  if (e.kind == Kind::kNot) return e.a;
  if (e.kind == Kind::kAutomaton) return automaton_state(e.a, e.b, !e.hi);
  Expression n{.kind = Kind::kNot, .a = a};
  return intern(n);
}

}  // namespace tokops::grammar
