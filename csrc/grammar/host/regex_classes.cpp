// Sets of code points for regular expressions.
#include <algorithm>
#include <stdexcept>

#include "regex_tree.h"

namespace tokops::grammar {
namespace {

#include "unicode_tables.inc"

constexpr uint32_t kLast = 0x10ffff;

CodePoints of_categories(uint32_t bits) {
  CodePoints points;
  constexpr size_t n = std::size(kCategoryRuns);
  for (size_t i = 0; i < n; ++i) {
    if (!(bits >> (kCategoryRuns[i] & 31) & 1)) continue;
    points.emplace_back(kCategoryRuns[i] >> 5, i + 1 < n ? (kCategoryRuns[i + 1] >> 5) - 1 : kLast);
  }
  return united(std::move(points));
}

CodePoints of_script(uint32_t script) {
  CodePoints points;
  constexpr size_t n = std::size(kScriptRuns);
  for (size_t i = 0; i < n; ++i) {
    if ((kScriptRuns[i] & 255) != script) continue;
    points.emplace_back(kScriptRuns[i] >> 8, i + 1 < n ? (kScriptRuns[i + 1] >> 8) - 1 : kLast);
  }
  return points;
}

template <size_t n>
CodePoints near_categories(uint32_t bits, const uint32_t (&differs)[n]) {
  CodePoints base = of_categories(bits), change;
  for (size_t i = 0; i + 1 < n; i += 2) change.emplace_back(differs[i], differs[i + 1]);
  CodePoints kept = common(base, inverted(change)), added = common(change, inverted(base));
  kept.insert(kept.end(), added.begin(), added.end());
  return united(std::move(kept));
}

struct LongName {
  const char *name, *categories;  // the latter as a prefix: all categories that begin so
};
constexpr LongName kLongNames[] = {{"Letter", "L"},
                                   {"Uppercase_Letter", "Lu"},
                                   {"Lowercase_Letter", "Ll"},
                                   {"Titlecase_Letter", "Lt"},
                                   {"Modifier_Letter", "Lm"},
                                   {"Other_Letter", "Lo"},
                                   {"Mark", "M"},
                                   {"Combining_Mark", "M"},
                                   {"Nonspacing_Mark", "Mn"},
                                   {"Spacing_Mark", "Mc"},
                                   {"Enclosing_Mark", "Me"},
                                   {"Number", "N"},
                                   {"Decimal_Number", "Nd"},
                                   {"digit", "Nd"},
                                   {"Letter_Number", "Nl"},
                                   {"Other_Number", "No"},
                                   {"Punctuation", "P"},
                                   {"punct", "P"},
                                   {"Connector_Punctuation", "Pc"},
                                   {"Dash_Punctuation", "Pd"},
                                   {"Open_Punctuation", "Ps"},
                                   {"Close_Punctuation", "Pe"},
                                   {"Initial_Punctuation", "Pi"},
                                   {"Final_Punctuation", "Pf"},
                                   {"Other_Punctuation", "Po"},
                                   {"Symbol", "S"},
                                   {"Math_Symbol", "Sm"},
                                   {"Currency_Symbol", "Sc"},
                                   {"Modifier_Symbol", "Sk"},
                                   {"Other_Symbol", "So"},
                                   {"Separator", "Z"},
                                   {"Space_Separator", "Zs"},
                                   {"Line_Separator", "Zl"},
                                   {"Paragraph_Separator", "Zp"},
                                   {"Other", "C"},
                                   {"Control", "Cc"},
                                   {"cntrl", "Cc"},
                                   {"Format", "Cf"},
                                   {"Surrogate", "Cs"},
                                   {"Private_Use", "Co"},
                                   {"Unassigned", "Cn"}};

uint32_t category_bits(std::string_view name) {
  if (name == "LC" || name == "Cased_Letter") return 7;  // Lu, Ll, Lt
  for (const LongName& l : kLongNames)
    if (name == l.name) name = l.categories;
  uint32_t bits = 0;
  if (name.empty() || name.size() > 2) return 0;
  for (size_t i = 0; i < std::size(kCategoryNames); ++i)
    if (std::string_view(kCategoryNames[i]).starts_with(name)) bits |= 1u << i;
  return bits;
}

constexpr std::pair<const char*, const char*> kScriptCodes[] = {
    {"Zyyy", "Common"},   {"Zinh", "Inherited"}, {"Latn", "Latin"},    {"Grek", "Greek"},
    {"Cyrl", "Cyrillic"}, {"Hebr", "Hebrew"},    {"Arab", "Arabic"},   {"Deva", "Devanagari"},
    {"Beng", "Bengali"},  {"Thai", "Thai"},      {"Hang", "Hangul"},   {"Hani", "Han"},
    {"Hira", "Hiragana"}, {"Kana", "Katakana"},  {"Geor", "Georgian"}, {"Armn", "Armenian"}};

CodePoints script(std::string_view name) {
  for (auto [code, full] : kScriptCodes)
    if (name == code) name = full;
  for (size_t i = 0; i < std::size(kScriptNames); ++i)
    if (name == kScriptNames[i]) return of_script(uint32_t(i) + 1);
  throw std::invalid_argument("script");
}

uint32_t fold(uint32_t c) {
  constexpr size_t n = std::size(kFolds) / 4;
  size_t low = 0, high = n;
  while (low < high) {
    size_t mid = (low + high) / 2;
    if (kFolds[4 * mid + 1] < c) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  if (low == n) return c;
  const uint32_t* run = kFolds + 4 * low;
  return c < run[0] || (c - run[0]) % run[2] ? c : run[3] + (c - run[0]);
}

}  // namespace

CodePoints united(CodePoints points) {
  std::sort(points.begin(), points.end());
  CodePoints all;
  for (auto [first, last] : points) {
    if (!all.empty() && first <= all.back().second + 1) {
      all.back().second = std::max(all.back().second, last);
    } else {
      all.emplace_back(first, last);
    }
  }
  return all;
}

CodePoints inverted(const CodePoints& points) {
  CodePoints all;
  uint32_t from = 0;
  for (auto [first, last] : points) {
    if (first > from) all.emplace_back(from, first - 1);
    from = last + 1;
  }
  if (from <= kLast) all.emplace_back(from, kLast);
  return all;
}

CodePoints common(const CodePoints& a, const CodePoints& b) {
  CodePoints all;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    uint32_t first = std::max(a[i].first, b[j].first), last = std::min(a[i].second, b[j].second);
    if (first <= last) all.emplace_back(first, last);
    a[i].second < b[j].second ? ++i : ++j;
  }
  return all;
}

bool contains(const CodePoints& points, uint32_t c) {
  auto range = std::ranges::lower_bound(points, c, {}, &std::pair<uint32_t, uint32_t>::second);
  return range != points.end() && range->first <= c;
}

CodePoints with_cases(const CodePoints& points) {
  if (points.size() == 1 && points[0].first == points[0].second && points[0].first < 'A')
    return points;
  // What members fold to, then all that fold to one of these.
  CodePoints folded, all = points;
  for (size_t i = 0; i < std::size(kFolds); i += 4) {
    const uint32_t* run = kFolds + i;
    for (uint32_t c = run[0]; c <= run[1]; c += run[2])
      if (contains(points, c)) folded.emplace_back(fold(c), fold(c));
  }
  all.insert(all.end(), folded.begin(), folded.end());
  all = united(std::move(all));
  CodePoints more;
  for (size_t i = 0; i < std::size(kFolds); i += 4) {
    const uint32_t* run = kFolds + i;
    for (uint32_t c = run[0]; c <= run[1]; c += run[2])
      if (contains(all, fold(c))) more.emplace_back(c, c);
  }
  all.insert(all.end(), more.begin(), more.end());
  return united(std::move(all));
}

CodePoints digits(bool unicode) {
  if (unicode) return of_categories(category_bits("Nd"));
  return {{'0', '9'}};
}

CodePoints word_characters(bool unicode) {
  if (!unicode) return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  CodePoints points = of_categories(category_bits("L") | category_bits("N"));
  points.emplace_back('_', '_');
  return united(std::move(points));
}

CodePoints spaces(bool python) {
  CodePoints points{{'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},
                    {0x1680, 0x1680}, {0x2000, 0x200a}, {0x2028, 0x2029},
                    {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};
  if (python) {
    points.insert(points.end(), {{0x1c, 0x1f}, {0x85, 0x85}});
  } else {
    points.emplace_back(0xfeff, 0xfeff);
  }
  return united(std::move(points));
}

CodePoints line_ends() { return {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}; }

CodePoints property(std::string_view name, std::string_view value) {
  if (!value.empty()) {
    if (name == "Script" || name == "sc") return script(value);
    uint32_t bits = name == "General_Category" || name == "gc" ? category_bits(value) : 0;
    if (!bits) throw std::invalid_argument("property");
    return of_categories(bits);
  }
  if (uint32_t bits = category_bits(name)) return of_categories(bits);
  if (name == "Any") return {{0, kLast}};
  if (name == "ASCII") return {{0, 0x7f}};
  if (name == "Assigned") return inverted(of_categories(category_bits("Cn")));
  if (name == "ASCII_Hex_Digit" || name == "AHex") return {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
  if (name == "Alphabetic" || name == "Alpha")
    return near_categories(kAlphabeticCategories, kAlphabeticDiffers);
  if (name == "Lowercase" || name == "Lower")
    return near_categories(kLowercaseCategories, kLowercaseDiffers);
  if (name == "Uppercase" || name == "Upper")
    return near_categories(kUppercaseCategories, kUppercaseDiffers);
  if (name == "White_Space" || name == "space")
    return near_categories(kWhiteSpaceCategories, kWhiteSpaceDiffers);
  if (name == "ID_Start" || name == "IDS")
    return near_categories(kIDStartCategories, kIDStartDiffers);
  if (name == "ID_Continue" || name == "IDC")
    return near_categories(kIDContinueCategories, kIDContinueDiffers);
  return script(name);  // as other dialects have it
}

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xc0 | c >> 6);
    out += char(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += char(0xe0 | c >> 12);
    out += char(0x80 | (c >> 6 & 63));
    out += char(0x80 | (c & 63));
  } else {
    out += char(0xf0 | c >> 18);
    out += char(0x80 | (c >> 12 & 63));
    out += char(0x80 | (c >> 6 & 63));
    out += char(0x80 | (c & 63));
  }
}

int32_t next_code_point(std::string_view text, size_t& i) {
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  uint8_t lead = uint8_t(text[i]);
  int n = lead < 0x80                   ? 1
          : lead >= 0xc2 && lead < 0xe0 ? 2
          : lead >= 0xe0 && lead < 0xf0 ? 3
          : lead >= 0xf0 && lead < 0xf5 ? 4
                                        : 0;
  if (n == 0 || i + n > text.size()) return -1;
  uint32_t c = n == 1 ? lead : lead & (0x7f >> n);
  for (int k = 1; k < n; ++k) {
    uint8_t b = uint8_t(text[i + k]);
    if ((b & 0xc0) != 0x80) return -1;
    c = c << 6 | (b & 63);
  }
  if (c < kLeast[n] || c > kLast || (c >= 0xd800 && c <= 0xdfff)) return -1;
  i += n;
  return int32_t(c);
}

}  // namespace tokops::grammar
