// From the definitions of a grammar to rules.
#include <algorithm>
#include <map>

#include "syntax.h"

namespace tokops::grammar::front {
namespace {

using Alternatives = std::vector<std::vector<Symbol>>;

constexpr size_t kMostRules = size_t(1) << 20;
constexpr int64_t kHeaviestTerminal = int64_t(1) << 18;  // literals in one terminal

class Lowerer {
 public:
  Lowerer(Langs& langs, const Syntax& syntax, const Source& source)
      : langs_(langs), syntax_(syntax), source_(source), folder_(langs, rules_) {}

  Rules run(int32_t start, int32_t skipped);

 private:
  std::vector<int32_t> names_in(int32_t part) const;
  void check_names() const;
  void define_terminal(int32_t name, bool recursive);
  void define_rules(const std::vector<int32_t>& names, bool recursive);

  Symbol symbol(int32_t part);
  void sequence(int32_t part, std::vector<Symbol>& to);
  void alternatives(int32_t part, Alternatives& to);
  Lang regular(int32_t part);
  Lang words(std::vector<std::string> words);
  Symbol name(const Part& part);
  Symbol rule(Alternatives alternatives);
  Symbol whole_terminal(Lang lang);
  Lang weighed(Lang lang, int64_t weight, const Part& part);

  Lang repeated_lang(Lang, const Part&);
  Symbol repeated(Symbol, const Part&);
  Symbol power(Symbol, int32_t times);
  Symbol up_to(Symbol, int32_t times);
  Symbol any_number(Symbol);

  Langs& langs_;
  const Syntax& syntax_;
  const Source& source_;
  Rules rules_;
  Folder folder_;
  Lang skipped_ = kEmptyWord;
  std::vector<Symbol> meaning_;  // of names; kLang -1: not known yet
  std::string prefix_;           // names of the rules made for parts of a definition
  int32_t made_ = 0;
  std::map<std::pair<std::pair<int32_t, int32_t>, int32_t>, Symbol> powers_, up_tos_;
};

std::vector<int32_t> Lowerer::names_in(int32_t part) const {
  std::vector<int32_t> found, open = {part};
  while (!open.empty()) {
    const Part& p = syntax_.parts[size_t(open.back())];
    open.pop_back();
    if (p.kind == Part::kName) found.push_back(p.id);
    open.insert(open.end(), p.parts.begin(), p.parts.end());
  }
  return found;
}

// Every name that is used has to be defined, whether or not the start reaches it.
void Lowerer::check_names() const {
  for (const Definition& d : syntax_.definitions) {
    if (d.body < 0 || !d.parameters.empty()) continue;
    std::vector<int32_t> open = {d.body};
    while (!open.empty()) {
      const Part& p = syntax_.parts[size_t(open.back())];
      open.pop_back();
      open.insert(open.end(), p.parts.begin(), p.parts.end());
      if (p.kind != Part::kName) continue;
      const Definition& used = syntax_.definitions[size_t(p.id)];
      const std::string& shown = syntax_.names[size_t(p.id)];
      if (used.body < 0) source_.fail(p.at, "name", shown + " is not defined");
      if (!used.parameters.empty()) source_.fail(p.at, "template", shown + " needs arguments");
      if (d.terminal && !used.terminal) {
        source_.fail(p.at, "terminal", "a terminal can't use the rule " + shown);
      }
    }
  }
}

Lang Lowerer::weighed(Lang lang, int64_t weight, const Part& part) {
  if (weight > kHeaviestTerminal) {
    throw BudgetError(
        "size", source_.where(part.at),
        "a terminal is made of more than " + std::to_string(kHeaviestTerminal) + " literals");
  }
  folder_.set_weight(lang, weight);
  return lang;
}

Lang Lowerer::words(std::vector<std::string> words) {
  const bool one = words.size() == 1;
  const Lang lang = one ? langs_.word(words[0]) : langs_.words(std::move(words));
  folder_.set_weight(lang, one ? 1 : 4);
  return lang;
}

// The language of a part in which nothing is skipped.
Lang Lowerer::regular(int32_t index) {
  const Part& part = syntax_.parts[size_t(index)];
  int64_t weight = 0;
  const auto inner = [&](size_t i) {
    const Lang lang = regular(part.parts[i]);
    weight += folder_.weight(lang);
    return lang;
  };
  switch (part.kind) {
    case Part::kLang:
      return weighed(part.id, part.least, part);
    case Part::kWord:
      return words({syntax_.words[size_t(part.id)]});
    case Part::kName: {
      const Symbol s = meaning_[size_t(part.id)];
      if (s.kind == Symbol::kLang && s.id >= 0) return s.id;
      source_.fail(part.at, "regular",
                   syntax_.names[size_t(part.id)] + " is not regular, which is needed here");
    }
    case Part::kSchema:
      source_.fail(part.at, "regular", "a schema can't be a part of a terminal");
    case Part::kCall:
      source_.fail(part.at, "template", "unexpected use of a template");
    case Part::kConcat: {
      std::vector<Lang> langs;
      for (size_t i = 0; i < part.parts.size(); ++i) langs.push_back(inner(i));
      Lang lang = kEmptyWord;
      for (size_t i = langs.size(); i-- > 0;) lang = langs_.concat(langs[i], lang);
      return weighed(lang, weight, part);
    }
    case Part::kEither: {
      std::vector<Lang> langs;
      std::vector<std::string> literals;
      for (size_t i = 0; i < part.parts.size(); ++i) {
        const Part& p = syntax_.parts[size_t(part.parts[i])];
        if (p.kind == Part::kWord) {
          literals.push_back(syntax_.words[size_t(p.id)]);
        } else {
          langs.push_back(inner(i));
        }
      }
      if (!literals.empty()) {
        langs.push_back(words(std::move(literals)));
        weight += folder_.weight(langs.back());
      }
      return weighed(langs_.either(std::move(langs)), weight, part);
    }
    case Part::kBoth: {
      std::vector<Lang> langs;
      for (size_t i = 0; i < part.parts.size(); ++i) langs.push_back(inner(i));
      return weighed(langs_.both(std::move(langs)), weight, part);
    }
    case Part::kNot: {
      const Lang lang = inner(0);
      return weighed(langs_.minus(langs_.text(), lang), weight + 1, part);
    }
    case Part::kMinus: {
      const Lang from = inner(0), without = inner(1);
      return weighed(langs_.minus(from, without), weight, part);
    }
    case Part::kLazy: {
      const Lang lang = inner(0);
      const Lang more = langs_.minus(langs_.any_bytes(), kEmptyWord);
      return weighed(langs_.minus(lang, langs_.concat(lang, more)), 2 * weight + 1, part);
    }
    case Part::kRepeat: {
      const Lang lang = inner(0);
      return weighed(repeated_lang(lang, part), weight + 1, part);
    }
  }
  return kNothing;
}

Symbol Lowerer::whole_terminal(Lang lang) {
  if (skipped_ == kEmptyWord) return {Symbol::kLang, lang};
  const Lang joined = langs_.concat(lang, skipped_);
  folder_.set_weight(joined, int64_t(folder_.weight(lang)) + 1);
  return {Symbol::kLang, joined};
}

Symbol Lowerer::rule(Alternatives alternatives) {
  if (rules_.rules.size() >= kMostRules) {
    throw BudgetError("rules", "",
                      "the grammar needs more than " + std::to_string(kMostRules) + " rules");
  }
  folder_.tidy(alternatives);
  if (alternatives.size() == 1 && alternatives[0].empty()) return {Symbol::kLang, kEmptyWord};
  if (alternatives.size() == 1 && alternatives[0].size() == 1) return alternatives[0][0];
  if (alternatives.empty()) return {Symbol::kLang, kNothing};
  rules_.rules.push_back({prefix_ + "." + std::to_string(++made_), std::move(alternatives)});
  return {Symbol::kRule, int32_t(rules_.rules.size()) - 1};
}

Symbol Lowerer::name(const Part& part) {
  const Symbol s = meaning_[size_t(part.id)];
  const bool terminal = syntax_.definitions[size_t(part.id)].terminal;
  return terminal ? whole_terminal(s.id) : s;
}

Symbol Lowerer::symbol(int32_t index) {
  const Part& part = syntax_.parts[size_t(index)];
  switch (part.kind) {
    case Part::kName:
      return name(part);
    case Part::kSchema: {
      const Symbol schema = {Symbol::kSchema, part.id};
      if (skipped_ == kEmptyWord) return schema;
      return rule({{schema, {Symbol::kLang, skipped_}}});
    }
    case Part::kConcat: {
      std::vector<Symbol> symbols;
      sequence(index, symbols);
      return rule({std::move(symbols)});
    }
    case Part::kEither: {
      Alternatives ways;
      alternatives(index, ways);
      return rule(std::move(ways));
    }
    case Part::kRepeat:
      return repeated(symbol(part.parts[0]), part);
    default:
      return whole_terminal(regular(index));
  }
}

void Lowerer::sequence(int32_t index, std::vector<Symbol>& to) {
  const Part& part = syntax_.parts[size_t(index)];
  if (part.kind == Part::kConcat) {
    for (const int32_t p : part.parts) sequence(p, to);
  } else if (part.kind == Part::kSchema) {
    to.push_back({Symbol::kSchema, part.id});
    if (skipped_ != kEmptyWord) to.push_back({Symbol::kLang, skipped_});
  } else {
    to.push_back(symbol(index));
  }
}

void Lowerer::alternatives(int32_t index, Alternatives& to) {
  const Part& part = syntax_.parts[size_t(index)];
  if (part.kind != Part::kEither) {
    to.emplace_back();
    std::vector<Symbol> symbols;
    sequence(index, symbols);
    to.back() = std::move(symbols);
    return;
  }
  std::vector<std::string> literals;
  for (const int32_t p : part.parts) {
    if (syntax_.parts[size_t(p)].kind == Part::kWord) {
      literals.push_back(syntax_.words[size_t(syntax_.parts[size_t(p)].id)]);
    } else {
      alternatives(p, to);
    }
  }
  if (!literals.empty()) to.push_back({whole_terminal(words(std::move(literals)))});
}

Lang Lowerer::repeated_lang(Lang lang, const Part& part) {
  if (part.least == 0 && part.most < 0) return langs_.star(lang);
  try {
    return langs_.repeat(lang, part.least, part.most);
  } catch (const BudgetError& error) {
    throw BudgetError(error.keyword, source_.where(part.at), error.reason);
  }
}

// Repetition of a rule: as many rules as the bounds have digits in base two, and no text is derived
// in two ways that were one before.
Symbol Lowerer::repeated(Symbol s, const Part& part) {
  if (s.kind == Symbol::kLang) {
    const int64_t weight = int64_t(folder_.weight(s.id)) + 1;
    const Lang lang = repeated_lang(s.id, part);
    folder_.set_weight(lang, weight);
    return {Symbol::kLang, lang};
  }
  const Symbol rest = part.most < 0 ? any_number(s) : up_to(s, part.most - part.least);
  return rule({{power(s, part.least), rest}});
}

Symbol Lowerer::power(Symbol s, int32_t times) {
  if (times == 0) return {Symbol::kLang, kEmptyWord};
  if (times == 1) return s;
  const auto key = std::pair(std::pair(int32_t(s.kind), s.id), times);
  if (const auto it = powers_.find(key); it != powers_.end()) return it->second;
  const Symbol half = power(s, times / 2);
  std::vector<Symbol> symbols = {half, half};
  if (times % 2) symbols.push_back(s);
  return powers_[key] = rule({std::move(symbols)});
}

Symbol Lowerer::up_to(Symbol s, int32_t times) {
  if (times == 0) return {Symbol::kLang, kEmptyWord};
  const auto key = std::pair(std::pair(int32_t(s.kind), s.id), times);
  if (const auto it = up_tos_.find(key); it != up_tos_.end()) return it->second;
  const int32_t few =
      times / 2;  // either 0..few of them, or few + 1 and then 0..times - few - 1 more
  Symbol made = rule({{up_to(s, few)}, {power(s, few + 1), up_to(s, times - few - 1)}});
  return up_tos_[key] = made;
}

Symbol Lowerer::any_number(Symbol s) {
  const Symbol self = {Symbol::kRule, int32_t(rules_.rules.size())};
  if (rules_.rules.size() >= kMostRules) {
    throw BudgetError("rules", "",
                      "the grammar needs more than " + std::to_string(kMostRules) + " rules");
  }
  rules_.rules.push_back({prefix_ + "." + std::to_string(++made_), {{}, {self, s}}});
  return self;
}

void Lowerer::define_terminal(int32_t name, bool recursive) {
  const Definition& d = syntax_.definitions[size_t(name)];
  if (recursive) {
    source_.fail(d.at, "terminal",
                 syntax_.names[size_t(name)] + " refers to itself, which a terminal can't");
  }
  meaning_[size_t(name)] = {Symbol::kLang, regular(d.body)};
}

void Lowerer::define_rules(const std::vector<int32_t>& names, bool recursive) {
  const int32_t first = int32_t(rules_.rules.size());
  const auto begin = [&](int32_t name) {
    prefix_ = syntax_.names[size_t(name)];
    made_ = 0;
    Alternatives ways;
    alternatives(syntax_.definitions[size_t(name)].body, ways);
    return ways;
  };
  if (!recursive) {
    const int32_t name = names[0];
    const Symbol s = rule(begin(name));
    if (s.kind == Symbol::kRule && s.id == int32_t(rules_.rules.size()) - 1 && s.id >= first) {
      rules_.rules.back().name = syntax_.names[size_t(name)];
    }
    meaning_[size_t(name)] = s;
    return;
  }
  for (const int32_t name : names) {
    meaning_[size_t(name)] = {Symbol::kRule, int32_t(rules_.rules.size())};
    rules_.rules.push_back({syntax_.names[size_t(name)], {}});
  }
  for (const int32_t name : names) {
    Alternatives ways = begin(name);
    rules_.rules[size_t(meaning_[size_t(name)].id)].alternatives = std::move(ways);
  }
  folder_.fold(first);
  for (const int32_t name : names) {
    const Lang lang = folder_.folded(meaning_[size_t(name)].id);
    if (lang >= 0) meaning_[size_t(name)] = {Symbol::kLang, lang};
  }
}

Rules Lowerer::run(int32_t start, int32_t skipped) {
  check_names();
  meaning_.assign(syntax_.names.size(), {Symbol::kLang, -1});
  const size_t n = syntax_.names.size();
  std::vector<std::vector<int32_t>> uses(n);
  std::vector<bool> reached(n), itself(n);
  std::vector<int32_t> open = {start};
  if (skipped >= 0) {
    const auto names = names_in(skipped);
    open.insert(open.end(), names.begin(), names.end());
  }
  while (!open.empty()) {
    const int32_t name = open.back();
    open.pop_back();
    if (reached[size_t(name)]) continue;
    reached[size_t(name)] = true;
    uses[size_t(name)] = names_in(syntax_.definitions[size_t(name)].body);
    for (const int32_t used : uses[size_t(name)])
      itself[size_t(name)] = itself[size_t(name)] || used == name;
    open.insert(open.end(), uses[size_t(name)].begin(), uses[size_t(name)].end());
  }
  const auto order = components(uses);
  const auto recursive = [&](const std::vector<int32_t>& component) {
    return component.size() > 1 || itself[size_t(component[0])];
  };
  const auto wanted = [&](const std::vector<int32_t>& component, bool terminal) {
    return reached[size_t(component[0])] &&
           syntax_.definitions[size_t(component[0])].terminal == terminal;
  };
  for (const auto& component : order) {
    if (wanted(component, true)) define_terminal(component[0], recursive(component));
  }
  if (skipped >= 0) {
    const Lang one = regular(skipped);
    skipped_ = langs_.star(one);
    folder_.set_weight(skipped_, folder_.weight(one));
  }
  for (const auto& component : order) {
    if (wanted(component, false)) define_rules(component, recursive(component));
  }
  const Symbol s = syntax_.definitions[size_t(start)].terminal
                       ? whole_terminal(meaning_[size_t(start)].id)
                       : meaning_[size_t(start)];
  if (s.kind == Symbol::kRule && skipped_ == kEmptyWord) {
    rules_.start = s.id;
  } else {
    Alternatives ways = {{{Symbol::kLang, skipped_}, s}};
    folder_.tidy(ways);
    rules_.start = int32_t(rules_.rules.size());
    rules_.rules.push_back({syntax_.names[size_t(start)], std::move(ways)});
  }
  rules_.schemas = syntax_.schemas;
  return std::move(rules_);
}

}  // namespace

Rules lower(Langs& langs, const Syntax& syntax, int32_t start, int32_t skipped,
            const Source& source) {
  return Lowerer(langs, syntax, source).run(start, skipped);
}

}  // namespace tokops::grammar::front
