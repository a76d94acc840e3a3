// From the tree of a regular expression to its language.
//
// Most of a pattern is a language by itself. Around assertions it is built from the right: given
// the language `rest` of what may come after a part, up to the end of the text, the language of
// what may come from the part on. A look-ahead is then an intersection, and so are $ and the right
// side of \b. What looks back (^, \b, look-behind) needs the kind of the character before, so there
// is a `rest` for each kind.
#include "regex.h"

#include <algorithm>

#include "regex_tree.h"

namespace tokops::grammar {
namespace {

using Node = Pattern::Node;
using Rest =
    std::vector<Lang>;  // [0]: at the start of the text; [1 + k]: behind a character of kind k

constexpr size_t kMaxKinds = 12;
constexpr int32_t kMaxUnrolled = 64;
constexpr int64_t kMaxParts = 20'000;

struct Compiler {
  Langs& langs;
  const Pattern& pattern;
  const RegexOptions& options;
  const std::string &keyword, &pointer;
  std::vector<CodePoints> kinds{{{0, 0x10ffff}}};
  std::vector<Lang> known = {};  // language of a node, -1
  int64_t visits = 0;

  const Node& at(int32_t i) const { return pattern.nodes[i]; }

  // ---- Without assertions

  Lang language(int32_t i) {
    if (known[i] >= 0) return known[i];
    const Node& node = at(i);
    Lang lang = kNothing;
    switch (node.kind) {
      case Pattern::kText:
        lang = langs.word(node.text);
        break;
      case Pattern::kSet:
        lang = langs.code_points(node.set);
        break;
      case Pattern::kSequence:
        lang = kEmptyWord;
        for (size_t k = node.parts.size(); k-- > 0;)
          lang = langs.concat(language(node.parts[k]), lang);
        break;
      case Pattern::kChoice: {
        if (node.parts.size() >= 8 && std::ranges::all_of(node.parts, [&](int32_t p) {
              return at(p).kind == Pattern::kText;
            })) {
          std::vector<std::string> words;
          for (int32_t p : node.parts) words.push_back(at(p).text);
          lang = langs.words(std::move(words));
          break;
        }
        std::vector<Lang> parts;
        for (int32_t p : node.parts) parts.push_back(language(p));
        lang = langs.either(std::move(parts));
        break;
      }
      case Pattern::kRepeat:
        lang = langs.repeat(language(node.parts[0]), node.lo, node.hi);
        break;
      default:
        break;
    }
    return known[i] = lang;
  }

  // ---- With assertions

  static bool uniform(const Rest& rest, size_t from) {
    return std::all_of(rest.begin() + from, rest.end(), [&](Lang x) { return x == rest[from]; });
  }
  Rest all(Lang lang) const { return Rest(kinds.size() + 1, lang); }

  Rest match(int32_t i, const Rest& rest) {
    const Node& node = at(i);
    if (++visits > kMaxParts)
      throw BudgetError(keyword, pointer, "a pattern repeats its assertions too often");
    if (!node.asserts) return match_plain(i, rest);
    switch (node.kind) {
      case Pattern::kSequence: {
        Rest now = rest;
        for (size_t k = node.parts.size(); k-- > 0;) now = match(node.parts[k], now);
        return now;
      }
      case Pattern::kChoice: {
        std::vector<Rest> parts;
        for (int32_t p : node.parts) parts.push_back(match(p, rest));
        return union_of(parts);
      }
      case Pattern::kRepeat:
        return match_repeat(node, rest);
      case Pattern::kAhead: {
        Rest now = match(node.parts[0], all(langs.text()));
        for (size_t k = 0; k < now.size(); ++k)
          now[k] = langs.both({rest[k], node.negative ? langs.complement(now[k]) : now[k]});
        return now;
      }
      case Pattern::kBehind: {
        Rest now = rest;
        if (node.begin == node.negative) now[0] = kNothing;
        for (size_t k = 0; k < kinds.size(); ++k)
          if (!kinds[k].empty() && contains(node.set, kinds[k][0].first) == node.negative)
            now[k + 1] = kNothing;
        return now;
      }
      case Pattern::kBegin: {
        Rest now = all(kNothing);
        now[0] = rest[0];
        return now;
      }
      case Pattern::kEnd:
      case Pattern::kLastEnd: {
        Rest now = rest;
        Lang end = node.kind == Pattern::kEnd ? kEmptyWord : langs.optional(langs.word("\n"));
        for (Lang& x : now) x = langs.both({x, end});
        return now;
      }
      case Pattern::kBoundary: {
        Lang word = langs.concat(langs.code_points(words()), langs.text());
        Rest now = rest;
        for (size_t k = 0; k < now.size(); ++k) {
          bool after_word = k > 0 && contains(words(), kinds[k - 1][0].first);
          bool before_word = after_word == node.negative;
          now[k] = langs.both({now[k], before_word ? word : langs.complement(word)});
        }
        return now;
      }
      default:
        return rest;
    }
  }

  Rest union_of(const std::vector<Rest>& parts) {
    Rest now = all(kNothing);
    for (size_t k = 0; k < now.size(); ++k) {
      std::vector<Lang> list;
      bool again = k > 0;
      for (const Rest& part : parts) {
        list.push_back(part[k]);
        again = again && part[k] == part[k - 1];
      }
      now[k] = again ? now[k - 1] : langs.either(std::move(list));
    }
    return now;
  }

  // What is made of characters of a set, one of which is the last, and then goes on by its kind.
  Lang last_of(const CodePoints& set, const Rest& rest) {
    std::vector<Lang> list;
    for (size_t k = 0; k < kinds.size(); ++k)
      list.push_back(langs.concat(langs.code_points(common(set, kinds[k])), rest[k + 1]));
    return langs.either(std::move(list));
  }

  Rest match_plain(int32_t i, const Rest& rest) {
    const Node& node = at(i);
    if (uniform(rest, 0)) return all(langs.concat(language(i), rest[0]));
    if (node.kind == Pattern::kText) {
      if (node.text.empty()) return rest;
      size_t start = node.text.size();
      while ((uint8_t(node.text[--start]) & 0xc0) == 0x80) continue;
      int32_t last = next_code_point(node.text, start);
      size_t kind = 0;
      while (!contains(kinds[kind], uint32_t(last))) ++kind;
      return all(langs.concat(language(i), rest[kind + 1]));
    }
    const bool one_rest = uniform(rest, 1);
    if (one_rest && !langs.accepts(language(i))) return all(langs.concat(language(i), rest[1]));
    switch (node.kind) {
      case Pattern::kSet:
        return all(last_of(node.set, rest));
      case Pattern::kSequence: {
        Rest now = rest;
        for (size_t k = node.parts.size(); k-- > 0;) now = match(node.parts[k], now);
        return now;
      }
      case Pattern::kChoice: {
        std::vector<Rest> parts;
        for (int32_t p : node.parts) parts.push_back(match(p, rest));
        return union_of(parts);
      }
      default:
        break;
    }
    // A repetition: "" leaves the context as it is, anything longer ends in some kind of character.
    Lang longer;
    const Node& body = at(node.parts[0]);
    if (body.kind == Pattern::kSet && node.hi != 0) {
      Lang before = langs.repeat(language(node.parts[0]), std::max(node.lo - 1, 0),
                                 node.hi < 0 ? -1 : node.hi - 1);
      longer = langs.concat(before, one_rest ? langs.concat(language(node.parts[0]), rest[1])
                                             : last_of(body.set, rest));
    } else if (one_rest) {
      Lang some = langs.both({language(i), langs.concat(langs.any_char(), langs.text())});
      longer = langs.concat(some, rest[1]);
    } else {
      std::vector<Lang> list;
      for (size_t k = 0; k < kinds.size(); ++k) {
        Lang ending = langs.concat(langs.text(), langs.code_points(kinds[k]));
        list.push_back(langs.concat(langs.both({language(i), ending}), rest[k + 1]));
      }
      longer = langs.either(std::move(list));
    }
    if (!langs.accepts(language(i))) return all(longer);
    Rest now = rest;
    for (size_t k = 0; k < now.size(); ++k)
      now[k] = k > 0 && rest[k] == rest[k - 1] ? now[k - 1] : langs.either({longer, rest[k]});
    return now;
  }

  Rest match_repeat(const Node& node, const Rest& rest) {
    int32_t body = node.parts[0];
    Rest now = rest;
    if (node.hi < 0) {
      if (!at(body).consumes)
        throw GrammarError(
            keyword, pointer,
            "an assertion in a repeated group that may match nothing is not supported");
      now = match_loop(body, rest);
    } else if (node.hi > kMaxUnrolled) {
      throw GrammarError(keyword, pointer,
                         "an assertion in a group that is repeated more than " +
                             std::to_string(kMaxUnrolled) + " times is not supported");
    } else {
      for (int32_t k = node.lo; k < node.hi; ++k) now = union_of({rest, match(body, now)});
    }
    if (node.lo > kMaxUnrolled)
      throw GrammarError(keyword, pointer,
                         "an assertion in a group that is repeated very often is not supported");
    for (int32_t k = 0; k < node.lo; ++k) now = match(body, now);
    return now;
  }

  // X = rest | body X, for each kind of character that the body may end in.
  Rest match_loop(int32_t body, const Rest& rest) {
    const bool one = !at(body).contextual && uniform(rest, 1);
    Rest loops = all(kNothing);
    for (size_t k = 1; k < loops.size(); ++k)
      loops[k] = one && k > 1 ? loops[1] : langs.open_loop(langs.accepts(rest[k]), true);
    Rest inner = match(body, loops), now = rest;
    for (size_t k = 0; k < now.size(); ++k) {
      bool again = k > 0 && rest[k] == rest[k - 1] && inner[k] == inner[k - 1];
      now[k] = again ? now[k - 1] : langs.either({rest[k], inner[k]});
    }
    for (size_t k = 1; k < (one ? 2 : loops.size()); ++k) langs.close_loop(loops[k], now[k]);
    return now;
  }

  // ---- Kinds of characters, as far as assertions tell them apart

  CodePoints words() const {
    CodePoints points = word_characters(options.python);
    return options.ignore_case ? with_cases(points) : points;
  }

  void find_kinds() {
    auto split = [&](const CodePoints& set) {
      std::vector<CodePoints> finer;
      for (const CodePoints& kind : kinds)
        for (CodePoints part : {common(kind, set), common(kind, inverted(set))})
          if (!part.empty()) finer.push_back(std::move(part));
      kinds.swap(finer);
      if (kinds.size() > kMaxKinds)
        throw GrammarError(keyword, pointer, "so many different look-behinds are not supported");
    };
    for (const Node& node : pattern.nodes) {
      if (node.kind == Pattern::kBoundary) split(words());
      if (node.kind == Pattern::kBehind) split(node.set);
    }
  }

  Lang compile() {
    known.assign(pattern.nodes.size(), -1);
    int32_t root = pattern.root;
    if (!at(root).asserts) {
      Lang lang = language(root);
      return options.search ? langs.concat({langs.text(), lang, langs.text()}) : lang;
    }
    if (at(root).contextual) find_kinds();
    Rest found = match(root, all(options.search ? langs.text() : kEmptyWord));
    if (!options.search) return found[0];
    if (uniform(found, 0)) return langs.concat(langs.text(), found[0]);
    std::vector<Lang> list{found[0]};
    if (uniform(found, 1)) {
      list.push_back(langs.concat({langs.any_char(), langs.text(), found[1]}));
    } else {
      for (size_t k = 0; k < kinds.size(); ++k)
        list.push_back(langs.concat({langs.text(), langs.code_points(kinds[k]), found[k + 1]}));
    }
    return langs.either(std::move(list));
  }
};

}  // namespace

Lang regex(Langs& langs, std::string_view source, const RegexOptions& options,
           const std::string& keyword, const std::string& pointer) {
  std::string name = "regex:";
  for (bool option : {options.search, options.ignore_case, options.dot_all, options.python})
    name += option ? '1' : '0';
  name += source;
  if (auto known = langs.named(name)) return *known;
  langs.text();  // known first, so that what is built sees through it
  Pattern pattern = parse_pattern(source, options, keyword, pointer);
  Compiler compiler{.langs = langs,
                    .pattern = pattern,
                    .options = options,
                    .keyword = keyword,
                    .pointer = pointer};
  return langs.keep(name, compiler.compile());
}

}  // namespace tokops::grammar
