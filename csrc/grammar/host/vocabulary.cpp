#include "vocabulary.h"

#include <algorithm>
#include <numeric>

#include "compact.h"
#include "error.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr size_t kFew = 1024;         // tokens that are kept as a list
constexpr size_t kMostRest = 400000;  // nodes of what follows a lexeme

struct Groups {
  uint8_t of[256];
  constexpr Groups() : of{} {
    for (int b = 0; b < 256; ++b) {
      int g = 0;
      if (b < 0x20)
        g = 0;
      else if (b == ' ')
        g = 1;
      else if (b == '"')
        g = 2;
      else if (b == '\\')
        g = 3;
      else if (b >= '0' && b <= '9')
        g = b <= '1' ? 4 : 5;
      else if (b >= 'a' && b <= 'f')
        g = 6;
      else if (b >= 'g' && b <= 'z')
        g = 7;
      else if (b >= 'A' && b <= 'F')
        g = 8;
      else if (b >= 'G' && b <= 'Z')
        g = 9;
      else if (b == '_')
        g = 10;
      else if (b == '-')
        g = 11;
      else if (b == '.')
        g = 12;
      else if (b == '/')
        g = 13;
      else if (b == ':')
        g = 14;
      else if (b == '@')
        g = 15;
      else if (b == '+')
        g = 16;
      else if (b == ',')
        g = 17;
      else if (b == '<' || b == '>')
        g = 18;
      else if (b == '{' || b == '}')
        g = 19;
      else if (b == '[' || b == ']')
        g = 20;
      else if (b == '(' || b == ')')
        g = 21;
      else if (b == '\'')
        g = 22;
      else if (b == '=' || b == '&' || b == '?' || b == '%' || b == '#')
        g = 23;
      else if (b < 0x7f)
        g = 24;
      else if (b < 0xc2)
        g = 30;
      else if (b < 0xe0)
        g = 25;
      else if (b < 0xe2)
        g = 26;
      else if (b < 0xe3)
        g = 27;
      else if (b < 0xf0)
        g = 28;
      else if (b < 0xf5)
        g = 29;
      else
        g = 30;  // no character begins with it
      of[b] = uint8_t(g);
    }
  }
};
constexpr Groups kGroups;

}  // namespace

const uint8_t* const kGroupOf = kGroups.of;

size_t Record::bytes() const {
  return sizeof *this + inside.words.size() * 4 + few.size() * 4 + closing.size() * 8 +
         closing_mask.words.size() * 4 + rest.size() * sizeof(Rest) + rest_tokens.size() * 8 +
         needs.size() * 8 + within.size() * inside.words.size() * 2;
}

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<int32_t> eos, int32_t width,
                       size_t cache_bytes)
    : tokens_(std::move(tokens)), eos_(std::move(eos)), width_(width), cache_bytes_(cache_bytes) {
  for (const int32_t e : eos_)
    if (e >= 0 && e < size()) tokens_[size_t(e)].clear();
  std::vector<int32_t> sorted;
  for (int32_t t = 0; t < size(); ++t)
    if (!tokens_[size_t(t)].empty()) {
      sorted.push_back(t);
      longest_ = std::max(longest_, int32_t(tokens_[size_t(t)].size()));
    }
  std::sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
    const int c = tokens_[size_t(a)].compare(tokens_[size_t(b)]);
    return c ? c < 0 : a < b;
  });
  chars_.assign(tokens_.size(), 0);
  for (size_t t = 0; t < tokens_.size(); ++t)
    for (const char c : tokens_[t]) chars_[t] += (uint8_t(c) & 0xc0) != 0x80;
  // Sorted tokens give the nodes in depth-first order.
  std::vector<int32_t> path{0};
  byte_.push_back(0);
  end_.push_back(0);
  first_.push_back(0);
  parent_.push_back(-1);
  std::string_view last;
  for (const int32_t t : sorted) {
    const std::string_view s = tokens_[size_t(t)];
    size_t same = 0;
    while (same < last.size() && same < s.size() && last[same] == s[same]) ++same;
    while (path.size() > same + 1) {
      end_[size_t(path.back())] = int32_t(byte_.size());
      path.pop_back();
    }
    for (size_t i = same; i < s.size(); ++i) {
      parent_.push_back(path.back());
      path.push_back(int32_t(byte_.size()));
      byte_.push_back(uint8_t(s[i]));
      end_.push_back(0);
      first_.push_back(int32_t(order_.size()));
    }
    order_.push_back(t);
    last = s;
  }
  for (const int32_t p : path) end_[size_t(p)] = int32_t(byte_.size());
  first_.push_back(int32_t(order_.size()));
  children_.assign(257 * 256, 0);
  for (int32_t c = 1; c < int32_t(byte_.size()); c = end_[size_t(c)]) {
    children_[256 * 256 + byte_[size_t(c)]] = c;
    for (int32_t d = c + 1; d < end_[size_t(c)]; d = end_[size_t(d)])
      children_[size_t(byte_[size_t(c)]) * 256 + byte_[size_t(d)]] = d;
  }
  groups_.assign(byte_.size(), 0);
  // Groups of the characters that begin below a node; bytes that go on with one that has begun add
  // nothing.
  std::vector<int8_t> state(byte_.size(), 0);  // of UTF-8 after the node; -1: no text
  for (size_t i = 1; i < byte_.size(); ++i) {
    const int8_t before = state[size_t(parent_[i])];
    state[i] = before < 0 ? int8_t(-1) : int8_t(text_step(before, byte_[i]));
  }
  for (size_t i = byte_.size(); i-- > 1;) {
    const int8_t before = state[size_t(parent_[i])];
    const uint32_t own = state[i] < 0 ? 1u << 30 : before == 0 ? 1u << kGroupOf[byte_[i]] : 0;
    groups_[size_t(parent_[i])] |= groups_[i] | own;
  }
}

bool Vocabulary::is_eos(int32_t t) const {
  return std::find(eos_.begin(), eos_.end(), t) != eos_.end();
}

std::shared_ptr<Lexemes> Vocabulary::lexemes() {
  const std::lock_guard guard(lock_);
  if (!lexemes_ || lexemes_->full()) lexemes_ = std::make_shared<Lexemes>(*this);
  return lexemes_;
}

std::shared_ptr<Record> Lexemes::record(Lang lang, LexemeKind kind, bool counted, int32_t node,
                                        const ByteSet* follow) {
  const Key key{lang * 4 + int32_t(kind) * 2 + int32_t(counted), node,
                follow ? *follow : ByteSet{{~0u, ~0u, ~0u, ~0u}}};
  {
    const std::lock_guard guard(lock_);
    if (const auto at = records_.find(key); at != records_.end()) return at->second;
  }
  auto r = build(lang, kind, counted, node, follow);
  const std::lock_guard guard(lock_);
  if (cached_ > vocabulary_.cache_bytes()) {
    records_.clear();
    cached_ = 0;
  }
  const auto [at, fresh] = records_.try_emplace(key, r);
  if (fresh) cached_ += r->bytes();
  return at->second;
}

std::shared_ptr<Record> Lexemes::build(Lang lang, LexemeKind kind, bool counted, int32_t root,
                                       const ByteSet* follow) {
  const Vocabulary& v = vocabulary_;
  const uint8_t* const byte_ = v.bytes();
  const int32_t *const end_ = v.ends(), *const first_ = v.first_tokens(), *const order_ = v.order();
  const uint32_t* const groups_ = v.groups();
  auto out = std::make_shared<Record>();
  Langs& langs = langs_;
  uint32_t follow_groups = ~0u;
  if (follow) {
    follow_groups = 0;
    for (int b = 0; b < 256; ++b)
      if (follow->has(uint8_t(b))) follow_groups |= 1u << kGroupOf[b];
  }
  struct Level {
    Lang lang;
    uint32_t escape;
    int32_t chars;  // code points, an escape being one
    int32_t raw;    // bytes that begin one, of the whole token so far
    int32_t end;
  };
  int32_t prefix_chars = 0;
  for (int32_t p = root; p > 0; p = v.parent(p)) prefix_chars += (byte_[size_t(p)] & 0xc0) != 0x80;
  std::vector<Level> stack{{lang, 0, 0, prefix_chars, end_[size_t(root)]}};
  std::vector<int32_t> inside;
  struct Exit {
    int32_t node, chars;
    bool subtree_only;  // raw: the node's own tokens are inside
  };
  std::vector<Exit> exits;
  std::unordered_map<Lang, uint32_t> looping;
  // Groups of bytes that leave a state as it is; those of whole code points only.
  const auto loops_of = [&](Lang q) {
    const auto [at, fresh] = looping.try_emplace(q, 0);
    if (!fresh) return at->second;
    uint32_t loops = (1u << 25) - 1, bad = 0;
    constexpr uint32_t multibyte = 31u << 25;
    for (int b = 0; b < 0x7f && loops; ++b)
      if ((loops >> kGroupOf[b] & 1) && langs.step(q, uint8_t(b)) != q)
        loops &= ~(1u << kGroupOf[b]);
    // Characters of several bytes: all that begin with these lead back.
    const auto returns = [&](auto&& self, Lang at, int state) -> bool {
      if (state == 0) return at == q;
      const uint8_t* const classes = langs.classes(at);
      uint64_t seen[4] = {};
      for (int b = 0x80; b < 0xc0; ++b) {
        const int next = text_step(state, uint8_t(b));
        if (next < 0) continue;
        const uint8_t c = classes[b];
        if ((seen[c >> 6] >> (c & 63) & 1) && state < 4) continue;
        seen[c >> 6] |= uint64_t(1) << (c & 63);
        const Lang n = langs.step(at, uint8_t(b));
        if (n == kNothing || !self(self, n, next)) return false;
      }
      return true;
    };
    for (int b = 0xc2; b < 0xf5; ++b) {
      if (bad >> kGroupOf[b] & 1) continue;
      const Lang n = langs.step(q, uint8_t(b));
      if (n == kNothing || !returns(returns, n, text_step(0, uint8_t(b)))) bad |= 1u << kGroupOf[b];
    }
    loops |= multibyte & ~bad;
    if (kind == LexemeKind::kText)
      loops &= ~0b1101u;  // control characters, quotes and backslashes are no plain text
    return at->second = loops;
  };
  const auto shortest = [&](Lang q) { return q == langs.text() ? 0 : fewest_chars(langs, q); };
  // raw: of a whole subtree, where its tokens' characters are counted from; else -1.
  const auto take = [&](int32_t from, int32_t to, Lang q, uint32_t escape, int32_t chars,
                        int32_t raw) {
    for (int32_t i = from; i < to; ++i) {
      const int32_t t = order_[size_t(i)];
      inside.push_back(t);
      if (counted) {
        const int32_t c = raw < 0 ? chars : chars + v.chars(t) - raw;
        out->needs.emplace_back(c + (escape ? fewest_after_escape(langs, q, escape) : shortest(q)),
                                t);
      }
    }
  };
  int64_t rest_nodes = 0;
  for (int32_t i = root + 1; i < end_[size_t(root)];) {
    while (i >= stack.back().end) stack.pop_back();
    const Level& up = stack.back();
    const uint8_t b = byte_[size_t(i)];
    Lang q = up.lang;
    uint32_t escape = up.escape;
    int32_t chars = up.chars;
    const int32_t raw = up.raw + ((b & 0xc0) != 0x80);
    if (kind == LexemeKind::kText) {
      if (b == '"' && escape == 0) {
        if (langs.accepts(q)) exits.push_back({i, chars, false});
        i = end_[size_t(i)];
        continue;
      }
      if (escape == 0 && b >= 0x20 && b != '\\') {
        q = langs.step(q, b);
        chars += (b & 0xc0) != 0x80;
      } else {
        char text[4];
        int n;
        if (!decode_byte(escape, b, text, n)) q = kNothing;
        for (int k = 0; k < n && q != kNothing; ++k) q = langs.step(q, uint8_t(text[k]));
        chars += n > 0;
        if (q != kNothing && !escape_viable(langs, q, escape)) q = kNothing;
      }
    } else {
      q = langs.step(q, b);
      chars += (b & 0xc0) != 0x80;
    }
    if (q == kNothing || !langs.alive(q)) {
      i = end_[size_t(i)];
      continue;
    }
    if (escape == 0 && q == up.lang && groups_[size_t(i)] != 0 &&
        (groups_[size_t(i)] & ~loops_of(q)) == 0 &&
        (kind == LexemeKind::kText || !langs.accepts(q) || out->given_up ||
         !(groups_[size_t(i)] & follow_groups))) {
      take(first_[size_t(i)], first_[size_t(end_[size_t(i)])], q, 0, chars, raw);
      i = end_[size_t(i)];
      continue;
    }
    take(first_[size_t(i)], first_[size_t(i) + 1], q, escape, chars, -1);
    if (kind == LexemeKind::kRaw && langs.accepts(q) && end_[size_t(i)] > i + 1 &&
        (groups_[size_t(i)] & follow_groups)) {
      int64_t more = 0;
      for (int32_t c = i + 1; c < end_[size_t(i)]; c = end_[size_t(c)])
        if (!follow || follow->has(byte_[size_t(c)])) more += end_[size_t(c)] - c;
      rest_nodes += more;
      if (rest_nodes > int64_t(kMostRest))
        out->given_up = true;
      else if (more)
        exits.push_back({i, chars, true});
    }
    if (end_[size_t(i)] > i + 1) stack.push_back({q, escape, chars, raw, end_[size_t(i)]});
    ++i;
  }
  if (out->given_up) exits.clear();
  // What follows the ends, as one tree.
  struct Merged {
    uint8_t byte;
    std::vector<int32_t> kids;
    std::vector<Record::Ending> tokens;
  };
  std::vector<Merged> tree(1);
  const auto child = [&](int32_t at, uint8_t b) {
    for (const int32_t k : tree[size_t(at)].kids)
      if (tree[size_t(k)].byte == b) return k;
    const int32_t k = int32_t(tree.size());
    tree.push_back({b, {}, {}});
    tree[size_t(at)].kids.push_back(k);
    return k;
  };
  for (const Exit& e : exits) {
    if (!e.subtree_only)
      for (int32_t k = first_[size_t(e.node)]; k < first_[size_t(e.node) + 1]; ++k)
        out->closing.push_back({order_[size_t(k)], e.chars});
    std::vector<std::pair<int32_t, int32_t>> path{
        {0, end_[size_t(e.node)]}};  // (merged node, end of the node's children)
    for (int32_t i = e.node + 1; i < end_[size_t(e.node)]; ++i) {
      while (i >= path.back().second) path.pop_back();
      if (e.subtree_only && follow && path.size() == 1 && !follow->has(byte_[size_t(i)])) {
        i = end_[size_t(i)] - 1;
        continue;
      }
      const int32_t m = child(path.back().first, byte_[size_t(i)]);
      for (int32_t k = first_[size_t(i)]; k < first_[size_t(i) + 1]; ++k)
        tree[size_t(m)].tokens.push_back({order_[size_t(k)], e.chars});
      if (end_[size_t(i)] > i + 1) path.emplace_back(m, end_[size_t(i)]);
    }
    out->longest = std::max(out->longest, e.chars);
  }
  const auto lay_out = [&](auto&& self, int32_t m) -> void {
    const size_t at = out->rest.size();
    out->rest.push_back({tree[size_t(m)].byte, 0, int32_t(out->rest_tokens.size())});
    out->rest_tokens.insert(out->rest_tokens.end(), tree[size_t(m)].tokens.begin(),
                            tree[size_t(m)].tokens.end());
    for (const int32_t k : tree[size_t(m)].kids) self(self, k);
    out->rest[at].end = int32_t(out->rest.size());
  };
  lay_out(lay_out, 0);
  out->rest.push_back({0, 0, int32_t(out->rest_tokens.size())});
  const auto as_mask = [&](Mask& m) { m.words.assign(size_t(v.words()), 0); };
  if (inside.size() > kFew) {
    as_mask(out->inside);
    for (const int32_t t : inside) out->inside.set(t);
  } else {
    out->few = std::move(inside);
  }
  if (out->closing.size() > kFew / 4) {
    if (out->inside.words.empty())
      as_mask(out->closing_mask);
    else
      out->closing_mask = out->inside;
    for (const Record::Ending& e : out->closing) out->closing_mask.set(e.token);
  }
  if (counted) {
    // By counting: needs are small numbers.
    int32_t highest = 0;
    for (const auto& [needed, token] : out->needs) highest = std::max(highest, needed);
    std::vector<int32_t> place(size_t(highest) + 2, 0);
    for (const auto& [needed, token] : out->needs) ++place[size_t(highest - needed) + 1];
    for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    std::vector<std::pair<int32_t, int32_t>> sorted(out->needs.size());
    for (const auto& n : out->needs) sorted[size_t(place[size_t(highest - n.first)]++)] = n;
    out->needs = std::move(sorted);
  }
  return out;
}

}  // namespace tokops::grammar
