// The formats of JSON Schema as languages. Where a format is not regular in full, the language is
// named here: `regex` has groups up to a depth, host names with A-labels are checked by their
// letters only.
#include <algorithm>

#include "regex_tree.h"

namespace tokops::grammar {
namespace {

using std::string;

Lang whole(Langs& langs, const string& pattern) {
  return regex(langs, pattern, {.search = false}, "format");
}

string any_of(std::initializer_list<string> parts) {
  string all = "(?:";
  for (const string& part : parts) all += (all.size() > 3 ? "|" : "") + part;
  return all + ")";
}

// ---- Dates and times: RFC 3339

const string kFour = "(?:0[48]|[2468][048]|[13579][26])";  // two digits, a multiple of 4 but 00
const string kDate =
    any_of({R"(\d{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01]))",
            R"(\d{4}-(?:0[469]|11)-(?:0[1-9]|[12]\d|30))", R"(\d{4}-02-(?:0[1-9]|1\d|2[0-8]))",
            "(?:\\d\\d" + kFour + "|(?:00|" + kFour + ")00)-02-29"});
const string kClock = R"((?:[01]\d|2[0-3]):[0-5]\d)";
const string kTime = kClock + R"(:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-])" + kClock + ")";

// Times in a leap second: HH:MM:60(.d+)?(Z|+HH:MM|-HH:MM) that is 23:59:60 in UTC. The state knows
// the minute of the day, and behind the sign the offset that it must be.
class LeapSecond : public Automaton {
 public:
  int32_t step(int32_t state, uint8_t b) const override {
    const int32_t place = state / kMinutes, minute = state % kMinutes;
    const int32_t d = b >= '0' && b <= '9' ? b - '0' : -1;
    switch (place) {
      case 0:
        return d >= 0 && d <= 2 ? at(1, d * 600) : -1;
      case 1:
        return d >= 0 && (minute < 1200 || d <= 3) ? at(2, minute + d * 60) : -1;
      case 2:
        return b == ':' ? at(3, minute) : -1;
      case 3:
        return d >= 0 && d <= 5 ? at(4, minute + d * 10) : -1;
      case 4:
        return d >= 0 ? at(5, minute + d) : -1;
      case 5:
        return b == ':' ? at(6, minute) : -1;
      case 6:
        return b == '6' ? at(7, minute) : -1;
      case 7:
        return b == '0' ? at(8, minute) : -1;
      case 8:
      case 10:
        if (b == '.' && place == 8) return at(9, minute);
        if ((b == 'Z' || b == 'z') && minute == kMinutes - 1) return at(16, 0);
        if (b == '+') return at(11, (minute + 1) % kMinutes);
        if (b == '-') return at(11, kMinutes - 1 - minute);
        return d >= 0 && place == 10 ? state : -1;
      case 9:
        return d >= 0 ? at(10, minute) : -1;
      case 11:
        return d == minute / 600 ? at(12, minute) : -1;
      case 12:
        return d == minute / 60 % 10 ? at(13, minute) : -1;
      case 13:
        return b == ':' ? at(14, minute) : -1;
      case 14:
        return d == minute % 60 / 10 ? at(15, minute) : -1;
      case 15:
        return d == minute % 10 ? at(16, 0) : -1;
      default:
        return -1;
    }
  }
  bool accepts(int32_t state) const override { return state == at(16, 0); }
  bool ascii() const override { return true; }

 private:
  static constexpr int32_t kMinutes = 1440;
  static int32_t at(int32_t place, int32_t minute) { return place * kMinutes + minute; }
};

Lang time(Langs& langs) {
  return langs.either({whole(langs, kTime), langs.automaton(std::make_shared<LeapSecond>(), 0)});
}

// Appendix A: weeks stand alone, and what is between two units must be there.
const string kDuration = R"(P(?:\d+W|(?:\d+D|\d+M(?:\d+D)?|\d+Y(?:\d+M(?:\d+D)?)?)(?:T@)?|T@))";
const string kDurationTime = R"((?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))";

string duration() {
  string all = kDuration;
  for (size_t i; (i = all.find('@')) != string::npos;) all.replace(i, 1, kDurationTime);
  return all;
}

// ---- Addresses

const string kByte = R"((?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
const string kIpv4 = "(?:" + kByte + R"(\.){3})" + kByte;

string ipv6() {
  const string group = "[0-9A-Fa-f]{1,4}", last = any_of({group + ":" + group, kIpv4});
  string all = "(?:" + group + ":){6}" + last;
  // RFC 3986: n groups before "::" at most, and the rest behind it.
  for (int behind = 5; behind >= 0; --behind) {
    int before = 5 - behind;  // at most `before` groups, where there are any
    string front =
        before == 0 ? ""
                    : "(?:(?:" + group + ":){0," + std::to_string(before - 1) + "}" + group + ")?";
    all += "|" + front + "::(?:" + group + ":){" + std::to_string(behind) + "}" + last;
  }
  all += "|(?:(?:" + group + ":){0,5}" + group + ")?::" + group;
  all += "|(?:(?:" + group + ":){0,6}" + group + ")?::";
  return "(?:" + all + ")";
}

const string kHostLabel = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
const string kHostName = kHostLabel + "(?:\\." + kHostLabel + ")*";

// RFC 1123. A-labels ("xn--..") are left out: whether what they decode to is a name is not regular.
Lang hostname(Langs& langs) {
  return langs.both({whole(langs, kHostName), langs.repeat(langs.any_char(), 1, 253),
                     langs.complement(regex(langs, "(?:^|\\.)[Xx][Nn]--", {}, "format"))});
}

// ---- Mail: RFC 5321 and 6531

Lang email(Langs& langs, bool international) {
  const string more = international ? R"(\u0080-\u{10ffff})" : "";
  const string atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~" + more + "-]+";
  const string quoted = R"("(?:[ !#-\[\]-~)" + more + R"(]|\\[ -~])*")";
  const string literal = R"(\[(?:)" + kIpv4 + "|[Ii][Pp][Vv]6:" + ipv6() + R"()\])";
  const string label =
      international
          ? R"([A-Za-z0-9\u0080-\u{10ffff}](?:[A-Za-z0-9\u0080-\u{10ffff}-]{0,61}[A-Za-z0-9\u0080-\u{10ffff}])?)"
          : kHostLabel;
  const string local = any_of({atom + R"((?:\.)" + atom + ")*", quoted});
  return whole(langs, local + "@" + any_of({label + "(?:\\." + label + ")*", literal}));
}

// ---- URIs: RFC 3986, IRIs: RFC 3987

struct Uri {
  string scheme, hier, relative, query, fragment;
  explicit Uri(bool international) {
    const string ucs =
        international
            ? R"(\u00A0-\uD7FF\uF900-\uFDCF\uFDF0-\uFFEF\u{10000}-\u{1FFFD}\u{20000}-\u{2FFFD}\u{30000}-\u{3FFFD})"
              R"(\u{40000}-\u{4FFFD}\u{50000}-\u{5FFFD}\u{60000}-\u{6FFFD}\u{70000}-\u{7FFFD}\u{80000}-\u{8FFFD})"
              R"(\u{90000}-\u{9FFFD}\u{A0000}-\u{AFFFD}\u{B0000}-\u{BFFFD}\u{C0000}-\u{CFFFD}\u{D0000}-\u{DFFFD})"
              R"(\u{E1000}-\u{EFFFD})"
            : "";
    const string private_ =
        international ? R"(\uE000-\uF8FF\u{F0000}-\u{FFFFD}\u{100000}-\u{10FFFD})" : "";
    const string unreserved = "A-Za-z0-9._~" + ucs,
                 sub = "!$&'()*+,;=", percent = "%[0-9A-Fa-f]{2}";
    auto of = [&](const string& more) {
      return "(?:[" + unreserved + sub + more + "-]|" + percent + ")";
    };
    const string pchar = of(":@");
    const string future = "[Vv][0-9A-Fa-f]+\\.[A-Za-z0-9._~" + sub + ":-]+";
    const string host = any_of({"\\[(?:" + ipv6() + "|" + future + ")\\]", of("") + "*"});
    const string authority = "(?:" + of(":") + "*@)?" + host + "(?::[0-9]*)?";
    const string segments = "(?:/" + pchar + "*)*",
                 absolute = "/(?:" + pchar + "+" + segments + ")?";
    scheme = "[A-Za-z][A-Za-z0-9+.-]*:";
    hier = any_of({"//" + authority + segments, absolute, pchar + "+" + segments, ""});
    relative = any_of({"//" + authority + segments, absolute, of("@") + "+" + segments, ""});
    query = "(?:\\?(?:[/?" + private_ + "]|" + pchar + ")*)?";
    fragment = "(?:#(?:[/?]|" + pchar + ")*)?";
  }
  string absolute() const { return scheme + hier + query + fragment; }
  string reference() const {
    return "(?:" + scheme + hier + "|" + relative + ")" + query + fragment;
  }
};

// RFC 6570, all levels.
string uri_template() {
  const string literal =
      R"((?:[!#$&-;=?-\[\]_a-z~\u00A0-\uD7FF\uE000-\uF8FF\uF900-\uFDCF\uFDF0-\uFFEF\u{10000}-\u{10FFFD}]|%[0-9A-Fa-f]{2}))";
  const string varchar = "(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})";
  const string spec = varchar + "(?:\\.?" + varchar + ")*(?:\\*|:[1-9][0-9]{0,3})?";
  return "(?:" + literal + R"(|\{[+#./;?&=,!@|]?)" + spec + "(?:," + spec + R"()*\})*)";
}

// ---- Others

const string kPointer = "(?:/(?:[^~/]|~[01])*)*";

// Regular expressions of ECMA-262 with flag u, with up to eight groups in one another. The order of
// the ends of ranges and of bounds is not looked at, nor are names of groups and properties.
Lang ecma_regex(Langs& langs) {
  const string hex4 = "u[0-9A-Fa-f]{4}";
  const string escape =
      R"(\\(?:[\^$\\.*+?()\[\]{}|/dDwWsSfnrtv0]|c[A-Za-z]|x[0-9A-Fa-f]{2}|)" + hex4 +
      R"(|u\{0*(?:10|[0-9A-Fa-f])?[0-9A-Fa-f]{1,4}\}|[pP]\{[A-Za-z_]+(?:=[A-Za-z0-9_]+)?\}))";
  const string in_class = R"((?:[^\\\]]|\\[b-]|)" + escape + ")";
  const string simple =
      R"((?:[^\^$\\.*+?()\[\]{}|]|\.|)" + escape + R"(|\[\^?)" + in_class + R"(*\]))";
  Lang atom = whole(langs, simple), counted = whole(langs, R"((?:[*+?]|\{\d+(?:,\d*)?\})\??)");
  Lang edge = whole(langs, R"([\^$]|\\[bB])"), bar = langs.word("|"),
       open = whole(langs, R"(\((?:\?:|\?<[A-Za-z_$][A-Za-z0-9_$]*>)?)"),
       look = whole(langs, R"(\(\?<?[=!])"), close = langs.word(")");
  Lang inside = kEmptyWord;
  for (int depth = 0; depth <= 8; ++depth) {
    std::vector<Lang> items{langs.concat(atom, langs.optional(counted)), edge, bar};
    if (depth > 0) {
      items.push_back(langs.concat({open, inside, close, langs.optional(counted)}));
      items.push_back(langs.concat({look, inside, close}));
    }
    inside = langs.star(langs.either(items));
  }
  return inside;
}

// Host names with letters of all scripts. Of IDNA (RFC 5892) what a look at single labels and
// neighbouring characters can tell is checked.
Lang idn_hostname(Langs& langs) {
  const string dot = R"([.\u3002\uFF0E\uFF61])", no_dot = R"([^.\u3002\uFF0E\uFF61])";
  const string first = R"(\p{L}\p{N}\u00B7\u0375\u05F3\u05F4\u30FB\u200C\u200D\u06FD\u06FE\u0F0B)",
               letter = "[" + first + "\\p{M}]";
  const string label = "[" + first + "](?:[" + first + "\\p{M}-]{0,61}" + letter + ")?";
  Lang all = whole(langs, label + "(?:" + dot + label + ")*");
  std::vector<Lang> parts{all, langs.repeat(langs.any_char(), 1, 253)};
  auto without = [&](const string& found) {
    parts.push_back(langs.complement(regex(langs, found, {}, "format")));
  };
  without(R"([\u0640\u07FA\u302E\u302F\u3031-\u3035\u303B])");
  without("(?:^|" + dot + ")" + no_dot + "{2}--");  // A-labels among them
  // In ASCII a label has at most 63 characters: "xn--", one for each, and at least one more.
  without("(?:^|" + dot + ")(?=" + no_dot + "*[^\\x00-\\x7f])" + no_dot + "{59}");
  without(R"(^\u00B7|[^l]\u00B7|\u00B7$|\u00B7[^l])");
  without(R"(\u0375$|\u0375\P{Script=Greek})");
  without(R"(^[\u05F3\u05F4]|\P{Script=Hebrew}[\u05F3\u05F4])");
  without("[\\u0660-\\u0669]" + no_dot + "*[\\u06F0-\\u06F9]|[\\u06F0-\\u06F9]" + no_dot +
          "*[\\u0660-\\u0669]");
  without(
      R"(^\u200D|[^\u094D\u09CD\u0A4D\u0ACD\u0B4D\u0BCD\u0C4D\u0CCD\u0D4D\u0DCA\u0E3A\u0F84\u1039\u103A)"
      R"(\u1714\u1734\u17D2\u1A60\u1B44\u1BAA\uA806\uA8C4\uA953\uA9C0\uABED]\u200D)");
  // A zero-width non-joiner stands behind a virama, or between letters that join.
  without(
      R"([^\p{Mn}\p{Mc}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Mongolian}\p{Script=Nko}]\u200C|^\u200C)");
  // RFC 5893: right-to-left letters begin their label and have no left-to-right ones beside them,
  // nor both sorts of digits, and where there is such a label none begins with a digit.
  const string right =
      R"(\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko})";
  without("(?:^|" + dot + ")(?![" + right + "])" + no_dot + "+(?![\\u0660-\\u0669\\p{M}])[" +
          right + "]");
  without("(?![\\p{N}\\p{M}])[" + right + "]" + no_dot + "*(?![" + right +
          "\\p{N}\\p{M}\\u200C\\u200D-])" + letter);
  without("(?![\\p{N}\\p{M}])[" + right + "]" + no_dot + "*(?:[0-9\\u06F0-\\u06F9]" + no_dot +
          "*[\\u0660-\\u0669]|[\\u0660-\\u0669]" + no_dot + "*[0-9\\u06F0-\\u06F9])");
  without("^(?=.*(?![\\p{N}\\p{M}])[" + right + "])(?:.*" + dot + ")?[0-9]");
  // A Katakana middle dot wants a letter of Hiragana, Katakana or Han in its label.
  without("(?:^|" + dot + ")(?!" + no_dot +
          "*(?!\\u30FB)[\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Han}])" + no_dot +
          "*\\u30FB");
  return langs.both(parts);
}

struct Entry {
  const char* name;
  Lang (*build)(Langs&);
};

const Entry kFormats[] = {
    {"date", [](Langs& l) { return whole(l, kDate); }},
    {"time", time},
    {"date-time", [](Langs& l) { return l.concat({whole(l, kDate), whole(l, "[Tt]"), time(l)}); }},
    {"duration", [](Langs& l) { return whole(l, duration()); }},
    {"email", [](Langs& l) { return email(l, false); }},
    {"idn-email", [](Langs& l) { return email(l, true); }},
    {"hostname", hostname},
    {"idn-hostname", idn_hostname},
    {"ipv4", [](Langs& l) { return whole(l, kIpv4); }},
    {"ipv6", [](Langs& l) { return whole(l, ipv6()); }},
    {"uuid",
     [](Langs& l) { return whole(l, "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"); }},
    {"uri", [](Langs& l) { return whole(l, Uri(false).absolute()); }},
    {"uri-reference", [](Langs& l) { return whole(l, Uri(false).reference()); }},
    {"iri", [](Langs& l) { return whole(l, Uri(true).absolute()); }},
    {"iri-reference", [](Langs& l) { return whole(l, Uri(true).reference()); }},
    {"uri-template", [](Langs& l) { return whole(l, uri_template()); }},
    {"json-pointer", [](Langs& l) { return whole(l, kPointer); }},
    {"relative-json-pointer",
     [](Langs& l) { return whole(l, "(?:0|[1-9][0-9]*)(?:#|" + kPointer + ")"); }},
    {"regex", ecma_regex},
};

}  // namespace

std::optional<Lang> format(Langs& langs, std::string_view name) {
  for (const Entry& entry : kFormats) {
    if (name != entry.name) continue;
    string key = "format:" + string(name);
    if (auto known = langs.named(key)) return known;
    langs.text();
    return langs.keep(key, entry.build(langs));
  }
  return std::nullopt;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kFormats) names.push_back(entry.name);
  return names;
}

}  // namespace tokops::grammar
