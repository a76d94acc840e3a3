// The words of a language: how many, which, a shortest one, and their lengths.
#include <algorithm>
#include <queue>

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

// A byte to stand for a class in a word that is shown: letters and digits first.
uint8_t shown(const Classes& classes, int c) {
  static constexpr char kLiked[] =
      "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ _-.,:;/@#!?'()*+=";
  for (const char* p = kLiked; *p; ++p)
    if (classes.of[uint8_t(*p)] == c) return uint8_t(*p);
  return classes.first[c];
}

}  // namespace

// A lower bound of the number of words that needs no steps.
int64_t Langs::Impl::count_at_least(Lang lang, int64_t cap, int depth) {
  if (!(facts(lang) & kAlive)) return 0;
  const Expression& e = at(lang);
  if (facts(lang) & kInfinite) return cap;
  if (depth == 0) return 1;
  int64_t most_ = 1;
  auto part = [&](Lang x) { most_ = std::max(most_, count_at_least(x, cap, depth - 1)); };
  switch (e.kind) {
    case Kind::kBytes: {
      most_ = 0;
      for (uint64_t w : sets[e.a].words) most_ += __builtin_popcountll(w);
      break;
    }
    case Kind::kWords:
      return std::min<int64_t>(cap, trees[e.a]->nodes[e.b].words);
    case Kind::kEither:
      for (Lang x : items(lang)) part(x);
      break;
    case Kind::kConcat:
      part(e.a), part(e.b);
      if (is(e.a, Kind::kBytes)) {  // any first byte goes with any rest
        int64_t first = count_at_least(e.a, cap, 1), rest = count_at_least(e.b, cap, depth - 1);
        most_ = std::max(most_, rest > cap / std::max<int64_t>(first, 1) ? cap : first * rest);
      }
      break;
    case Kind::kRepeat:  // powers of one word are as many words
      part(e.a);
      if (at(e.a).shortest > 0) most_ = std::max(most_, int64_t(e.hi) - e.lo + 1);
      break;
    default:
      break;
  }
  return std::min(cap, most_);
}

int64_t Langs::Impl::count(Lang start, int64_t cap) {
  if (cap <= 0 || !alive(start)) return 0;
  if (count_at_least(start, cap, 64) >= cap) return cap;
  struct Frame {
    Lang lang;
    int c;
    int64_t words;
  };
  std::unordered_map<Lang, int64_t> known;  // -1: on the path
  std::vector<Frame> path{{start, 0, accepts(start)}};
  known[start] = -1;
  for (;;) {
    Frame& top = path.back();
    const Classes& classes = *partitions[classes_of(top.lang)];
    if (top.c == classes.count) {
      int64_t words = known[top.lang] = std::min(cap, top.words);
      path.pop_back();
      if (path.empty()) return words;
      Frame& below = path.back();
      --below.c;  // the class is looked at again, now with the answer
      continue;
    }
    int c = top.c++;
    spend();
    Lang next = step(top.lang, classes.first[c]);
    if (!alive(next)) continue;
    if (facts(next) & kInfinite) return cap;
    auto entry = known.find(next);
    if (entry == known.end()) {
      known[next] = -1;
      path.push_back({next, 0, accepts(next)});
      continue;
    }
    if (entry->second < 0) return cap;  // a cycle
    int64_t bytes_ = std::count(classes.of, classes.of + 256, c);
    top.words =
        std::min(cap, top.words + (entry->second > cap / bytes_ ? cap : entry->second * bytes_));
    if (top.words >= cap && path.size() == 1) return cap;
  }
}

std::vector<std::string> Langs::Impl::list(Lang start, int64_t cap) {
  struct Frame {
    Lang lang;
    int b;
  };
  std::vector<std::string> words;
  if (cap <= 0 || !alive(start)) return words;
  std::vector<Frame> path{{start, 0}};
  std::string word;
  if (accepts(start)) words.push_back(word);
  while (!path.empty() && int64_t(words.size()) < cap) {
    Frame& top = path.back();
    if (top.b == 256) {
      path.pop_back();
      if (!word.empty()) word.pop_back();
      continue;
    }
    uint8_t b = uint8_t(top.b++);
    Lang next = step(top.lang, b);
    if (next == kNothing || !alive(next)) continue;
    spend();
    word.push_back(char(b));
    if (accepts(next)) words.push_back(word);
    path.push_back({next, 0});
  }
  return words;
}

// The word by shortest paths over states, where every byte (or every byte that begins a character)
// counts one. `loops` is set where some state on the way steps to itself by a character.
std::string Langs::Impl::search_shortest(Lang start, bool by_characters, bool* loops) {
  struct Seen {
    Lang lang;
    int32_t from;
    uint8_t byte;
    int32_t cost;
    bool done;
  };
  std::vector<Seen> seen{{start, -1, 0, 0, false}};
  std::unordered_map<Lang, int32_t> index{{start, 0}};
  using Open = std::pair<int64_t, int32_t>;
  std::priority_queue<Open, std::vector<Open>, std::greater<>> open;
  auto guess = [&](Lang lang, int32_t cost) {  // bytes: never too much, so the first found is best
    return cost + (by_characters ? 0 : int64_t(at(lang).shortest));
  };
  open.emplace(guess(start, 0), 0);
  while (!open.empty()) {
    int32_t i = open.top().second;
    open.pop();
    if (seen[i].done) continue;
    seen[i].done = true;
    Lang lang = seen[i].lang;
    if (accepts(lang)) {
      std::string word;
      for (int32_t k = i; k >= 0; k = seen[k].from) {
        if (seen[k].from >= 0) word.push_back(char(seen[k].byte));
        if (!loops) continue;
        const Classes& classes = *partitions[classes_of(seen[k].lang)];
        for (int c = 0; c < classes.count && !*loops; ++c)
          *loops = classes.first[c] < 0x80 && step(seen[k].lang, classes.first[c]) == seen[k].lang;
      }
      std::reverse(word.begin(), word.end());
      return word;
    }
    const Classes& classes = *partitions[classes_of(lang)];
    for (int c = 0; c < classes.count; ++c) {
      spend();
      Lang next = step(lang, classes.first[c]);
      if (facts(next) & kDead) continue;
      // A class may hold bytes of both sorts only where text is not what the language is of.
      uint8_t b = shown(classes, c);
      int32_t cost = seen[i].cost + !(by_characters && b >= 0x80 && b < 0xc0);
      auto [entry, fresh] = index.emplace(next, int32_t(seen.size()));
      if (fresh) {
        seen.push_back({next, i, b, cost, false});
      } else if (Seen& old = seen[entry->second]; !old.done && cost < old.cost) {
        old.from = i, old.byte = b, old.cost = cost;
      } else {
        continue;
      }
      open.emplace(guess(next, cost), entry->second);
    }
  }
  throw GrammarError("shortest", "", "the language holds no word");
}

std::string Langs::Impl::shortest(Lang lang) {
  if (!alive(lang)) throw GrammarError("shortest", "", "the language holds no word");
  if (accepts(lang)) return "";
  const Expression& e = at(lang);
  switch (e.kind) {
    case Kind::kConcat: {
      std::string all;
      for (; is(lang, Kind::kConcat); lang = at(lang).b) all += shortest(at(lang).a);
      return all + shortest(lang);
    }
    case Kind::kEither: {
      std::string best;
      bool any = false;
      for (Lang x : items(lang)) {
        if (!alive(x) || (any && at(x).shortest >= int32_t(best.size()))) continue;
        std::string one = shortest(x);
        if (!any || one.size() < best.size()) best = std::move(one);
        any = true;
      }
      return best;
    }
    case Kind::kRepeat: {
      std::string one = shortest(e.a), all;
      if (one.size() * size_t(e.lo) > (size_t(1) << 28))
        throw BudgetError("fuel", "", "the shortest word is too long");
      for (int32_t i = 0; i < e.lo; ++i) all += one;
      return all;
    }
    default:
      return search_shortest(lang, false, nullptr);
  }
}

// What the expression alone tells. all_longer may be false for want of knowledge.
bool Langs::Impl::plain_lengths(Lang lang, Lengths& result) {
  const Expression& e = at(lang);
  switch (e.kind) {
    case Kind::kEmptyWord:
      result = {0, false};
      return true;
    case Kind::kBytes: {
      ByteSet set = sets[e.a];
      bool inner = set.words[2] != 0;  // 80..BF continue a character
      result = {inner ? 0 : 1, false};
      return true;
    }
    case Kind::kConcat: {
      Lengths all{0, false}, part;
      for (; is(lang, Kind::kConcat); lang = at(lang).b) {
        if (!plain_lengths(at(lang).a, part)) return false;
        all = {std::min(1 << 30, all.shortest + part.shortest), all.all_longer || part.all_longer};
      }
      if (!plain_lengths(lang, part)) return false;
      result = {std::min(1 << 30, all.shortest + part.shortest), all.all_longer || part.all_longer};
      return true;
    }
    case Kind::kEither: {
      std::vector<Lengths> parts;
      for (Lang x : items(lang))
        if (!plain_lengths(x, parts.emplace_back())) return false;
      std::ranges::sort(parts, {}, &Lengths::shortest);
      result = parts[0];
      int32_t reach = parts[0].shortest;  // every length up to here occurs
      for (const Lengths& p : parts) {
        if (p.shortest > reach + 1) break;
        reach = std::max(reach, p.shortest);
        result.all_longer |= p.all_longer;
      }
      return true;
    }
    case Kind::kStar:
    case Kind::kRepeat: {
      Lengths one;
      if (!plain_lengths(e.a, one)) return false;
      int32_t lo = least(lang);
      result = {int32_t(std::min<int64_t>(1 << 30, int64_t(one.shortest) * lo)),
                most(lang) < 0 && (one.shortest == 1 || (one.shortest == 0 && one.all_longer))};
      if (lo > 0 && one.all_longer) result.all_longer = true;
      if (lo == 0 && one.all_longer && one.shortest <= 1) result.all_longer = true;
      return true;
    }
    default:
      return false;
  }
}

Lengths Langs::Impl::lengths(Lang lang) {
  if (!alive(lang)) return {-1, false};
  Lengths result;
  if (plain_lengths(lang, result)) return result;
  const Expression& e = at(lang);
  if (e.kind == Kind::kConcat || e.kind == Kind::kEither) {
    std::vector<Lengths> parts;
    std::vector<Lang> pieces;
    if (e.kind == Kind::kEither) {
      for (Lang x : items(lang))
        if (alive(x)) pieces.push_back(x);
      for (Lang x : pieces) parts.push_back(lengths(x));
      std::ranges::sort(parts, {}, &Lengths::shortest);
      result = parts[0];
      for (const Lengths& p : parts)
        if (p.shortest <= result.shortest + 1) result.all_longer |= p.all_longer;
      return result;
    }
    result = {0, false};
    for (;; lang = at(lang).b) {
      Lengths part = lengths(is(lang, Kind::kConcat) ? at(lang).a : lang);
      result = {std::min(1 << 30, result.shortest + part.shortest),
                result.all_longer || part.all_longer};
      if (!is(lang, Kind::kConcat)) return result;
    }
  }
  // Text but for a few words: there are more texts of each length from 1 on than are taken out.
  if (e.kind == Kind::kBoth && e.a == 2 && has_text) {
    Lang x = items(lang)[0], y = items(lang)[1];
    if (y == text_tails[0]) std::swap(x, y);
    if (x == text_tails[0] && is(y, Kind::kNot) && (facts(at(y).a) & kFinite) &&
        count(at(y).a, 1'000'000) < 1'000'000)
      return {accepts(lang) ? 0 : 1, true};
  }
  bool loops = false;
  std::string word = search_shortest(lang, true, &loops);
  int32_t characters = 0;
  for (unsigned char c : word) characters += c < 0x80 || c >= 0xc0;
  return {characters, loops};
}

}  // namespace tokops::grammar
