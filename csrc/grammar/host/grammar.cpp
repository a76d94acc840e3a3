// Grammars: rules as states with edges.
#include "compact.h"
#include "matcher.h"

namespace tokops::grammar {

void Grammar::options_of(const Schema& s) {
  const SchemaOptions& o = s.options();
  most_space_ = o.whitespace == "none" ? 0 : o.whitespace == "space" ? 1 : o.max_whitespace;
  all_space_ = o.whitespace == "any";
  schema_order_ = o.schema_order;
  watched_ = watched_ || s.watched();
  ByteSet spaces;
  for (const uint8_t b : {' ', '\t', '\n'})
    if (space(b)) spaces.add(b);
  space_language_ = langs().star(langs().bytes(spaces));
  warnings_.insert(warnings_.end(), s.warnings().begin(), s.warnings().end());
}

Grammar::Grammar(std::shared_ptr<Vocabulary> v, std::shared_ptr<Lexemes> l,
                 std::shared_ptr<Schema> s)
    : vocabulary_(std::move(v)), lexemes_(std::move(l)) {
  schemas_.push_back(std::move(s));
  options_of(*schemas_[0]);
}

Grammar::Grammar(std::shared_ptr<Vocabulary> v, std::shared_ptr<Lexemes> l, const Rules& rules,
                 std::vector<std::shared_ptr<Schema>> schemas)
    : vocabulary_(std::move(v)),
      lexemes_(std::move(l)),
      schemas_(std::move(schemas)),
      warnings_(rules.warnings) {
  for (const auto& s : schemas_) options_of(*s);
  for (size_t r = 0; r < rules.rules.size(); ++r) {
    starts_.push_back(int32_t(states_.size()));
    states_.emplace_back();
  }
  for (size_t r = 0; r < rules.rules.size(); ++r)
    for (const auto& alternative : rules.rules[r].alternatives) {
      int32_t at = starts_[r];
      for (Symbol symbol : alternative) {
        if (symbol.kind == Symbol::kLang) symbol.id = compact(langs(), symbol.id, 2000);
        // Shared prefixes of alternatives are one path.
        int32_t next = -1;
        for (const Edge& e : states_[size_t(at)].edges)
          if (e.symbol.kind == symbol.kind && e.symbol.id == symbol.id && e.next != at)
            next = e.next;
        if (next < 0) {
          next = int32_t(states_.size());
          states_.emplace_back();
          states_[size_t(at)].edges.push_back({symbol, next});
        }
        at = next;
      }
      states_[size_t(at)].ends = true;
    }
  start_ = rules.start;
}

}  // namespace tokops::grammar
