// UTF-8: languages of code points, and what expressions do to text.
#include <algorithm>
#include <bit>

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

struct Move {
  int from, to;
  uint8_t first, last;
};
constexpr Move kMoves[] = {
    {0, 0, 0x00, 0x7f}, {0, 1, 0xc2, 0xdf}, {0, 4, 0xe0, 0xe0}, {0, 2, 0xe1, 0xec},
    {0, 5, 0xed, 0xed}, {0, 2, 0xee, 0xef}, {0, 6, 0xf0, 0xf0}, {0, 3, 0xf1, 0xf3},
    {0, 7, 0xf4, 0xf4}, {1, 0, 0x80, 0xbf}, {2, 1, 0x80, 0xbf}, {3, 2, 0x80, 0xbf},
    {4, 1, 0xa0, 0xbf}, {5, 1, 0x80, 0x9f}, {6, 2, 0x90, 0xbf}, {7, 2, 0x80, 0x8f}};

bool any_in(const ByteSet& set, int first, int last) {
  for (int w = first >> 6; w <= last >> 6; ++w) {
    uint64_t bits = set.words[w];
    if (w == first >> 6) bits &= ~uint64_t(0) << (first & 63);
    if (w == last >> 6) bits &= ~uint64_t(0) >> (63 - (last & 63));
    if (bits) return true;
  }
  return false;
}

}  // namespace

int text_step(int state, uint8_t b) {
  for (const Move& m : kMoves)
    if (m.from == state && m.first <= b && b <= m.last) return m.to;
  return -1;
}

TextMap text_map(const ByteSet& set) {
  static const std::array<ByteSet, kTextStates> valid = [] {
    std::array<ByteSet, kTextStates> sets{};
    for (const Move& m : kMoves) sets[m.from].add(m.first, m.last);
    return sets;
  }();
  TextMap map = kTextNone;
  if (set.words[0] | set.words[1]) map = kTextAscii;
  if (!(set.words[2] | set.words[3])) return map;
  for (const Move& m : kMoves)
    if (m.first >= 0x80 && any_in(set, m.first, m.last))
      map.ends |= uint64_t(1) << (8 * m.from + m.to);
  for (int s = 0; s < kTextStates; ++s)
    for (int w = 0; w < 4; ++w)
      if (set.words[w] & ~valid[s].words[w]) map.fails |= uint8_t(1 << s);
  return map;
}

TextMap operator*(const TextMap& a, const TextMap& b) {
  if (a == kTextAscii && b == kTextAscii) return a;
  TextMap all = {0, a.fails};
  for (int s = 0; s < kTextStates; ++s) {
    unsigned middle = unsigned(a.ends >> (8 * s) & 0xff);
    if (middle & b.fails) all.fails |= uint8_t(1 << s);
    uint64_t row = 0;
    for (; middle; middle &= middle - 1) row |= b.ends >> (8 * std::countr_zero(middle)) & 0xff;
    all.ends |= row << (8 * s);
  }
  return all;
}

// text() is any number of any_char(), and the expressions its derivatives come to are kept, so that
// unions and intersections with them are seen through.
void Langs::Impl::build_text() {
  if (has_text) return;
  ByteSet set;
  auto range = [&](int first, int last) {
    ByteSet one;
    one.add(uint8_t(first), uint8_t(last));
    return bytes(one);
  };
  Lang more = range(0x80, 0xbf), two = concat(more, more);
  Lang after[kTextStates] = {kEmptyWord,
                             more,
                             two,
                             concat(more, two),
                             concat(range(0xa0, 0xbf), more),
                             concat(range(0x80, 0x9f), more),
                             concat(range(0x90, 0xbf), two),
                             concat(range(0x80, 0x8f), two)};
  ByteSet lead[kTextStates];
  for (const Move& m : kMoves)
    if (m.from == 0) lead[m.to].add(m.first, m.last);
  Items all;
  for (int s = 0; s < kTextStates; ++s) all.push_back(concat(bytes(lead[s]), after[s]));
  one_char = either(all);
  Lang text_ = star(one_char);
  for (int s = 0; s < kTextStates; ++s) text_tails[s] = concat(after[s], text_);
  has_text = true;
}

// The strings of one byte and `more` after it that stand for the code points in `ranges`, which lie
// from `base` on. `offset`: the byte for base itself.
Lang Langs::Impl::encoded(CodePoints ranges, uint32_t base, int more, int offset) {
  const int bits = 6 * more;
  const uint32_t unit = uint32_t(1) << bits;
  std::vector<std::pair<Lang, ByteSet>> groups;  // by what comes after the byte
  auto add = [&](Lang rest, uint32_t from, uint32_t to) {
    auto group = std::ranges::find(groups, rest, &std::pair<Lang, ByteSet>::first);
    if (group == groups.end()) group = groups.insert(groups.end(), {rest, ByteSet{}});
    group->second.add(uint8_t(offset + from), uint8_t(offset + to));
  };
  ByteSet any_more;
  any_more.add(0x80, 0xbf);
  for (size_t i = 0; i < ranges.size();) {
    auto [first, last] = ranges[i];
    uint32_t column = (first - base) >> bits, start = base + (column << bits),
             end = start + unit - 1;
    if (first == start && last >= end) {  // whole columns: anything may follow
      uint32_t to = ((last + 1 - base) >> bits) - 1;
      Lang rest = kEmptyWord;
      for (int k = 0; k < more; ++k) rest = concat(bytes(any_more), rest);
      add(rest, column, to);
      ranges[i].first = base + ((to + 1) << bits);
      if (ranges[i].first > last) ++i;
      continue;
    }
    CodePoints part;
    while (i < ranges.size() && ranges[i].first <= end) {
      part.emplace_back(ranges[i].first, std::min(ranges[i].second, end));
      if (ranges[i].second > end) {
        ranges[i].first = end + 1;
        break;
      }
      ++i;
    }
    add(encoded(std::move(part), start, more - 1, 0x80), column, column);
  }
  Items all;
  for (auto& [rest, set] : groups) all.push_back(concat(bytes(set), rest));
  return either(all);
}

Lang Langs::Impl::code_points(const CodePoints& given) {
  CodePoints sorted = given, ranges;
  std::sort(sorted.begin(), sorted.end());
  auto add = [&](uint32_t first, uint32_t last) {
    if (first > last) return;
    if (!ranges.empty() && first <= ranges.back().second + 1) {
      ranges.back().second = std::max(ranges.back().second, last);
    } else {
      ranges.emplace_back(first, last);
    }
  };
  for (auto [first, last] : sorted) {  // without surrogates
    last = std::min<uint32_t>(last, 0x10ffff);
    if (first <= 0xd7ff) add(first, std::min<uint32_t>(last, 0xd7ff));
    if (last >= 0xe000) add(std::max<uint32_t>(first, 0xe000), last);
  }
  if (ranges.empty()) return kNothing;
  if (ranges.size() == 1 && ranges[0].second <= 0x7f) {
    ByteSet set;
    set.add(uint8_t(ranges[0].first), uint8_t(ranges[0].second));
    return bytes(set);
  }
  if (ranges.size() == 2 && ranges[0].first == 0 && ranges[0].second == 0xd7ff &&
      ranges[1] == std::pair<uint32_t, uint32_t>(0xe000, 0x10ffff)) {
    build_text();
    return one_char;
  }
  std::string key(reinterpret_cast<const char*>(ranges.data()), ranges.size() * sizeof ranges[0]);
  if (auto known = of_points.find(key); known != of_points.end()) return known->second;

  ByteSet ascii;
  Items all;
  CodePoints by_length[3];  // of 2, 3, 4 bytes
  constexpr uint32_t kFirst[] = {0x80, 0x800, 0x10000, 0x110000};
  for (auto [first, last] : ranges) {
    if (first < 0x80) ascii.add(uint8_t(first), uint8_t(std::min<uint32_t>(last, 0x7f)));
    for (int n = 0; n < 3; ++n) {
      uint32_t from = std::max(first, kFirst[n]), to = std::min(last, kFirst[n + 1] - 1);
      if (from <= to) by_length[n].emplace_back(from, to);
    }
  }
  all.push_back(bytes(ascii));
  constexpr int kLead[] = {0xc0, 0xe0, 0xf0};
  for (int n = 0; n < 3; ++n)
    if (!by_length[n].empty()) all.push_back(encoded(std::move(by_length[n]), 0, n + 1, kLead[n]));
  Lang lang = either(all);
  charge(key.size() + 96);
  of_points.emplace(std::move(key), lang);
  return lang;
}

}  // namespace tokops::grammar
