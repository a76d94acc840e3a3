// What the front ends read a grammar into, and how it becomes rules.
#pragma once
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "rules.h"
#include "source.h"

namespace tokops::grammar::front {

// A part of a definition.
struct Part {
  enum Kind : uint8_t {
    kLang,    // id: a Lang, least: its weight
    kWord,    // id: index of a literal
    kName,    // id: a name
    kCall,    // id: the name of a template, parts: its arguments
    kSchema,  // id: index of a schema
    kConcat,  // parts, one after another; none: ""
    kEither,  // parts
    kBoth,    // parts: intersection (regular)
    kNot,     // parts[0]: the texts that are not in it (regular)
    kMinus,   // parts[0] without parts[1] (regular)
    kLazy,    // parts[0]: its words of which no proper beginning is one too (regular)
    kRepeat,  // parts[0], least to most times (-1: no bound)
  } kind;
  uint32_t at = 0;  // offset in the source
  int32_t id = 0, least = 0, most = 0;
  std::vector<int32_t> parts;
};

struct Definition {
  int32_t body = -1;  // -1: not defined
  uint32_t at = 0;
  bool terminal = false;  // Lark: what may be skipped follows a whole terminal, not its parts
  std::vector<int32_t> parameters;  // names; a template where there are any
};

// The definitions of one grammar. Names are indices of `definitions`.
struct Syntax {
  std::vector<Part> parts;
  std::vector<std::string> names, words, schemas;
  std::vector<Definition> definitions;
  std::unordered_map<std::string, int32_t> index;

  int32_t name(std::string_view);
  int32_t add(Part part) {
    parts.push_back(std::move(part));
    return int32_t(parts.size()) - 1;
  }
  // weight: about how many literals it is made of.
  int32_t lang(Lang lang, size_t at, size_t weight = 1) {
    return add({Part::kLang, uint32_t(at), lang, int32_t(weight), 0, {}});
  }
  int32_t word(std::string word, size_t at);
  // One part: itself; else the parts joined as `kind`.
  int32_t join(Part::Kind kind, std::vector<int32_t> parts, size_t at);
  int32_t repeat(int32_t part, int32_t least, int32_t most, size_t at) {
    return add({Part::kRepeat, uint32_t(at), 0, least, most, {part}});
  }
};

// Replaces uses of templates by definitions of their own.
void expand_templates(Syntax&, const Source&);

// The rules of what can be reached from `start`. `skipped`: a part of which any number may come
// before the first terminal and after each one, or -1. What is regular becomes a language.
Rules lower(Langs&, const Syntax&, int32_t start, int32_t skipped, const Source&);

// Folds rules that are regular into languages, as long as these stay small.
class Folder {
 public:
  // A language that rules.weights doesn't list weighs kUnknown.
  Folder(Langs& langs, Rules& rules) : langs_(langs), rules_(rules) {}

  static constexpr int32_t kUnknown = 8, kHeaviest = 4096;

  // Works on the rules from `first` on, which may use those before it. Inside the rules, uses of
  // folded rules become languages, and neighbouring languages become one.
  void fold(int32_t first);
  // The language of a rule that was folded, or -1.
  Lang folded(int32_t rule) const { return size_t(rule) < folded_.size() ? folded_[rule] : -1; }

  int32_t weight(Lang lang) const {
    const auto it = rules_.weights.find(lang);
    return it == rules_.weights.end() ? kUnknown : it->second;
  }
  void set_weight(Lang lang, int64_t weight);
  // Joins what can be joined: neighbouring languages, and alternatives that are one language each.
  void tidy(std::vector<std::vector<Symbol>>& alternatives);

 private:
  void fold_component(const std::vector<int32_t>& component, bool recursive);
  bool fold_alone(int32_t rule, std::vector<std::vector<Symbol>> alternatives);
  bool fold_together(const std::vector<int32_t>& component);
  Lang any_number(const std::vector<Lang>& of);  // of words out of any of these
  void join_neighbours(std::vector<Symbol>& symbols);
  void put_folded(std::vector<std::vector<Symbol>>& alternatives) const;

  Langs& langs_;
  Rules& rules_;
  std::vector<Lang> folded_;
};

// Strongly connected components of a graph, callees before callers. uses[i]: what i refers to.
std::vector<std::vector<int32_t>> components(const std::vector<std::vector<int32_t>>& uses);

}  // namespace tokops::grammar::front
