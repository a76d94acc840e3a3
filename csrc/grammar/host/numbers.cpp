// Sets of texts of JSON numbers. Bounds and multiples are automata that are worked out while they
// are walked: the state of a bound is a place in its digits and how the text compares so far, that
// of a multiple is a remainder.
#include <algorithm>
#include <array>
#include <stdexcept>

#include "regex.h"

namespace tokops::grammar {
namespace {

constexpr int64_t kMaxDigits = 100'000;
constexpr int64_t kMaxRemainders = 1'000'000;

// Bytes by what they mean: 0 nothing, 1 the point, 2 to 11 the digits.
constexpr std::array<uint8_t, 256> kNumberBytes = [] {
  std::array<uint8_t, 256> of{};
  of['.'] = 1;
  for (int d = 0; d < 10; ++d) of['0' + d] = uint8_t(2 + d);
  return of;
}();

enum class Side { kAtLeast, kMoreThan, kAtMost, kLessThan };

// Texts (0|[1-9][0-9]*)(\.[0-9]+)? whose value is on one side of a bound >= 0.
class Bound : public Automaton {
 public:
  Bound(const Decimal& bound, Side side) : side_(side) {
    int64_t point = int64_t(bound.digits.size()) + bound.exponent;
    std::string all = bound.digits;
    if (point > kMaxDigits || -point > kMaxDigits)
      throw BudgetError("number", "",
                        "a bound has more than " + std::to_string(kMaxDigits) + " digits");
    if (point <= 0) {
      whole_ = "0";
      fraction_ = all.empty() ? "" : std::string(size_t(-point), '0') + all;
    } else {
      all.resize(std::max(all.size(), size_t(point)), '0');
      whole_ = all.substr(0, size_t(point));
      fraction_ = all.substr(size_t(point));
    }
    whole_size_ = int32_t(whole_.size());
    fraction_size_ = int32_t(fraction_.size());
  }

  // States: 0 start; kWhole + 3 k + c after k digits that compare as c (0 less, 1 equal, 2 more)
  // with the first k of the bound; then the zero that no digit may follow, more digits than the
  // bound has, and after the point whether any digit came, the comparison, and the place in the
  // fraction.
  int32_t step(int32_t state, uint8_t b) const override {
    int32_t next = move(state, kNumberBytes[b]);
    return next >= 0 && alive(next) ? next : -1;
  }
  bool accepts(int32_t state) const override {
    if (state == 0) return false;
    int32_t compare;
    if (state >= after_point(0, 0)) {
      Place p = place(state);
      if (!p.digits) return false;
      compare = p.compare != kEqual ? p.compare : p.at < fraction_size_ ? kLess : kEqual;
    } else {
      compare = whole_compare(state);
      if (compare == kEqual && fraction_size_ > 0) compare = kLess;
    }
    return wanted(compare);
  }
  bool ascii() const override { return true; }
  const uint8_t* classes() const override { return kNumberBytes.data(); }

  // Whether anything may follow from a state on.
  bool alive(int32_t state) const {
    const bool up = side_ == Side::kAtLeast || side_ == Side::kMoreThan;
    if (accepts(state)) return true;
    if (state == 0 || (state >= 1 && state < zero())) {
      int32_t k = state == 0 ? 0 : (state - 1) / 3, c = state == 0 ? kEqual : (state - 1) % 3;
      if (state == 0 || up) return true;  // more digits make it larger
      if (k < whole_size_) return true;   // fewer digits than the bound's: less
      return fraction_alive(c, 0);
    }
    if (state == zero()) return fraction_alive(whole_compare(state), 0);
    if (state == longer()) return up;
    Place p = place(state);
    return fraction_alive(p.compare, p.at);
  }

 private:
  static constexpr int32_t kLess = 0, kEqual = 1, kMore = 2;
  struct Place {
    bool digits;
    int32_t compare, at;
  };
  int32_t zero() const { return 1 + 3 * (whole_size_ + 1); }
  int32_t longer() const { return zero() + 1; }
  // After the point: before the first digit (compare only), then 2 settled states, then equal at a
  // place.
  int32_t after_point(int32_t compare, int32_t at) const {
    return longer() + 1 +
           (at == 0 ? compare
                    : 3 + (compare == kLess   ? 0
                           : compare == kMore ? 1
                                              : 1 + at));
  }
  Place place(int32_t state) const {
    int32_t i = state - longer() - 1;
    if (i < 3) return {false, i, 0};
    if (i == 3) return {true, kLess, 1};
    if (i == 4) return {true, kMore, 1};
    return {true, kEqual, i - 4};
  }
  int32_t whole_compare(int32_t state) const {
    if (state == zero()) return whole_ == "0" ? kEqual : kLess;
    if (state == longer()) return kMore;
    int32_t k = (state - 1) / 3, c = (state - 1) % 3;
    return k < whole_size_ ? kLess : c;
  }
  bool wanted(int32_t compare) const {
    switch (side_) {
      case Side::kAtLeast:
        return compare >= kEqual;
      case Side::kMoreThan:
        return compare == kMore;
      case Side::kAtMost:
        return compare <= kEqual;
      case Side::kLessThan:
        return compare == kLess;
    }
    return false;
  }
  // With the whole parts (and `at` digits of the fractions) compared: can digits still settle it?
  bool fraction_alive(int32_t compare, int32_t at) const {
    if (compare != kEqual) return wanted(compare);
    return side_ != Side::kLessThan || at < fraction_size_;
  }

  int32_t move(int32_t state, uint8_t b) const {
    if (b == 0) return -1;
    const int32_t d = b - 2;
    if (state == 0) {
      if (b == 1) return -1;
      if (d == 0) return zero();
      return 1 + 3 + compared(kEqual, d, whole_[0]);
    }
    if (state >= after_point(0, 0)) {
      if (b == 1) return -1;
      Place p = place(state);
      if (p.compare != kEqual) return after_point(p.compare, 1);
      if (p.at >= fraction_size_) {
        if (d > 0) return after_point(kMore, 1);
        return after_point(kEqual, std::max(p.at, 1));
      }
      return after_point(compared(kEqual, d, fraction_[p.at]), p.at + 1);
    }
    if (b == 1) return after_point(whole_compare(state), 0);
    if (state == zero()) return -1;
    if (state == longer()) return state;
    int32_t k = (state - 1) / 3, c = (state - 1) % 3;
    if (k == whole_size_ || whole_ == "0") return longer();
    return 1 + 3 * (k + 1) + compared(c, d, whole_[k]);
  }
  static int32_t compared(int32_t before, int32_t d, char digit) {
    if (before != kEqual) return before;
    int32_t other = digit - '0';
    return d < other ? kLess : d > other ? kMore : kEqual;
  }

  Side side_;
  std::string whole_, fraction_;
  int32_t whole_size_, fraction_size_;
};

// Texts (0|[1-9][0-9]*)(\.[0-9]+)? of the multiples of divisor / 10^places; 1 <= divisor.
class Multiple : public Automaton {
 public:
  Multiple(int64_t divisor, int32_t places) : divisor_(divisor), places_(places) {
    power_.assign(size_t(places) + 1, 1 % divisor);
    for (int32_t i = 1; i <= places; ++i) power_[i] = power_[i - 1] * 10 % divisor;
  }
  // States: 0 start, 1 a zero that no digit may follow, then (phase, remainder). Phase 0: whole
  // digits; 1 + k: after the point and k <= places digits; 2 + places: only zeros may come, one
  // has.
  int32_t step(int32_t state, uint8_t byte) const override {
    uint8_t b = kNumberBytes[byte];
    if (b == 0) return -1;
    const int64_t d = b - 2;
    if (state == 0) return b == 1 ? -1 : d == 0 ? 1 : of(0, d % divisor_);
    int64_t phase = state == 1 ? 0 : (state - 2) / divisor_,
            rest = state == 1 ? 0 : (state - 2) % divisor_;
    if (phase == 0) {
      if (b == 1) return alive(0, rest) ? of(1, rest) : -1;
      return state == 1 ? -1 : of(0, (rest * 10 + d) % divisor_);
    }
    if (b == 1) return -1;
    int64_t digits = std::min<int64_t>(phase - 1, places_);
    if (digits == places_) return d == 0 ? of(places_ + 2, rest) : -1;
    rest = (rest * 10 + d) % divisor_;
    return alive(digits + 1, rest) ? of(phase + 1, rest) : -1;
  }
  bool accepts(int32_t state) const override {
    if (state <= 1) return state == 1;
    int64_t phase = (state - 2) / divisor_, rest = (state - 2) % divisor_;
    if (phase == 1) return false;  // the point is the last
    int64_t digits = phase == 0 ? 0 : std::min<int64_t>(phase - 1, places_);
    return rest * power_[places_ - digits] % divisor_ == 0;
  }
  bool ascii() const override { return true; }
  const uint8_t* classes() const override { return kNumberBytes.data(); }

  static bool fits(int64_t divisor, int64_t places) {
    return divisor <= kMaxRemainders && places <= kMaxDigits &&
           divisor * (places + 3) + 2 < INT32_MAX;
  }

 private:
  int32_t of(int64_t phase, int64_t rest) const { return int32_t(2 + phase * divisor_ + rest); }
  // Some digits of the places that are left make it a multiple.
  bool alive(int64_t digits, int64_t rest) const {
    int64_t left = places_ - digits,
            lacking = (divisor_ - rest * power_[left] % divisor_) % divisor_;
    int64_t room = 1;  // 10^left, as far as it matters
    for (int64_t i = 0; i < left && room <= divisor_; ++i) room *= 10;
    return lacking < room;
  }

  int64_t divisor_, places_;
  std::vector<int64_t> power_;
};

Lang once(Langs& langs, const std::string& name, auto build) {
  if (auto known = langs.named(name)) return *known;
  return langs.keep(name, build());
}

Lang pattern(Langs& langs, const char* source) {
  return regex(langs, source, {.search = false}, "number");
}

Lang unsigned_plain(Langs& langs) { return pattern(langs, R"((?:0|[1-9]\d*)(?:\.\d+)?)"); }
Lang negative(Langs& langs, Lang unsigned_) { return langs.concat(langs.word("-"), unsigned_); }

Lang side(Langs& langs, const Decimal& magnitude, Side which) {
  Decimal bound = magnitude;
  bound.negative = false;
  if (bound.digits.empty()) {
    if (which == Side::kAtLeast) return unsigned_plain(langs);
    if (which == Side::kLessThan) return kNothing;
    if (which == Side::kAtMost) return pattern(langs, R"(0(?:\.0+)?)");
    return pattern(langs, R"([1-9]\d*(?:\.\d+)?|0\.0*[1-9]\d*)");
  }
  return langs.automaton(std::make_shared<Bound>(bound, which), 0);
}

// Numbers from a bound on: upwards, or as their mirror image downwards.
Lang beyond(Langs& langs, const Decimal& bound, bool exclusive, bool up) {
  std::string name =
      std::string("number:") + (up ? ">" : "<") + (exclusive ? " " : "= ") + bound.text();
  return once(langs, name, [&] {
    bool zero = bound.digits.empty(),
         inside = zero || bound.negative == up;  // zero is inside, or the bound
    auto sign = [&](Lang x, bool positive) { return positive ? x : negative(langs, x); };
    if (!inside) return sign(side(langs, bound, exclusive ? Side::kMoreThan : Side::kAtLeast), up);
    if (zero && exclusive) return sign(side(langs, bound, Side::kMoreThan), up);
    Lang towards = side(langs, bound, exclusive ? Side::kLessThan : Side::kAtMost);
    return langs.either({sign(unsigned_plain(langs), up), sign(towards, !up)});
  });
}

}  // namespace

Lang plain_numbers(Langs& langs) { return pattern(langs, R"(-?(?:0|[1-9]\d*)(?:\.\d+)?)"); }
Lang plain_integers(Langs& langs) { return pattern(langs, R"(-?(?:0|[1-9]\d*)(?:\.0+)?)"); }

Lang at_least(Langs& langs, const Decimal& bound, bool exclusive) {
  return beyond(langs, bound, exclusive, true);
}
Lang at_most(Langs& langs, const Decimal& bound, bool exclusive) {
  return beyond(langs, bound, exclusive, false);
}

Lang multiple_of(Langs& langs, const Decimal& step, const std::string& pointer) {
  if (step.digits.empty() || step.negative)
    throw GrammarError("multipleOf", pointer, "multipleOf must be more than 0");
  return once(langs, "number:*" + step.text(), [&] {
    auto too_many = [&] {
      return BudgetError("multipleOf", pointer,
                         "multiples of " + step.text() + " need more than " +
                             std::to_string(kMaxRemainders) + " remainders");
    };
    if (step.digits.size() > 9 || step.exponent > kMaxDigits) throw too_many();
    int64_t divisor = std::stoll(step.digits);
    int64_t places = std::max<int64_t>(0, -step.exponent);
    if (!Multiple::fits(divisor, places)) throw too_many();
    Lang sign = langs.optional(langs.word("-"));
    if (step.exponent <= 0) {
      if (divisor == 1 && places == 0) return plain_integers(langs);
      return langs.concat(sign,
                          langs.automaton(std::make_shared<Multiple>(divisor, int32_t(places)), 0));
    }
    // Multiples of a 10^e: those of a, and then e zeros; and 0.
    Lang whole = divisor == 1
                     ? pattern(langs, "[1-9][0-9]*")
                     : langs.both({pattern(langs, "[1-9][0-9]*"),
                                   langs.automaton(std::make_shared<Multiple>(divisor, 0), 0)});
    Lang zeros = langs.repeat(langs.word("0"), int32_t(step.exponent), int32_t(step.exponent));
    return langs.concat({sign, langs.either({langs.word("0"), langs.concat(whole, zeros)}),
                         pattern(langs, R"((?:\.0+)?)")});
  });
}

Lang equal_to(Langs& langs, const Decimal& value) {
  if (value.digits.empty()) return pattern(langs, R"(-?0(?:\.0+)?)");
  int64_t point = int64_t(value.digits.size()) + value.exponent;
  if (point > kMaxDigits || -point > kMaxDigits)
    throw BudgetError("number", "",
                      "a number has more than " + std::to_string(kMaxDigits) + " digits");
  std::string text = value.negative ? "-" : "";
  if (value.exponent >= 0) {
    text += value.digits + std::string(size_t(value.exponent), '0');
    return langs.concat(langs.word(text), pattern(langs, R"((?:\.0+)?)"));
  }
  if (point > 0) {
    text += value.digits.substr(0, size_t(point)) + "." + value.digits.substr(size_t(point));
  } else {
    text += "0." + std::string(size_t(-point), '0') + value.digits;
  }
  return langs.concat(langs.word(text), langs.star(langs.word("0")));
}

Lang exponent_numbers(Langs& langs, Sign sign) {
  constexpr const char *kAny = R"((?:0|[1-9]\d*)(?:\.\d+)?)", *kZero = R"(0(?:\.0+)?)",
                       *kNonZero = R"((?:[1-9]\d*(?:\.\d+)?|0\.0*[1-9]\d*))";
  std::string number;
  switch (sign) {
    case Sign::kAny:
      number = std::string("-?") + kAny;
      break;
    case Sign::kNonNegative:
      number = std::string("(?:") + kAny + "|-" + kZero + ")";
      break;
    case Sign::kNonPositive:
      number = std::string("(?:-") + kAny + "|" + kZero + ")";
      break;
    case Sign::kPositive:
      number = kNonZero;
      break;
    case Sign::kNegative:
      number = std::string("-") + kNonZero;
      break;
  }
  return pattern(langs, (number + R"([eE][+-]?\d{1,3})").c_str());
}

}  // namespace tokops::grammar
