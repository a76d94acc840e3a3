// Free text until a trigger, then what belongs to the trigger.
#include <algorithm>
#include <map>
#include <unordered_set>

#include "regex.h"
#include "rules.h"
#include "source.h"

namespace tokops::grammar {
namespace {

using Alternatives = std::vector<std::vector<Symbol>>;

constexpr size_t kMostStates = size_t(1) << 15;  // of the automaton of the triggers

// Follows which triggers end where in a text (Aho and Corasick, "Efficient string matching", 1975).
// States are the beginnings of triggers; the root stands 8 times, once for each place inside a code
// point, so that the automaton also holds that the text is UTF-8.
class TriggerAutomaton {
 public:
  explicit TriggerAutomaton(const std::vector<std::string>& triggers);

  // Texts in which no trigger ends, at the end of a code point.
  Lang free_text(Langs& langs) const { return make(langs, false); }
  // Texts in which a trigger ends at the end, and none before.
  Lang up_to_trigger(Langs& langs) const { return make(langs, true); }

  // Whether one of the triggers ends in this one before its end.
  bool ends_inside(const std::string& trigger) const {
    int32_t state = 0;
    for (size_t i = 0; i + 1 < trigger.size(); ++i) {
      state = child(state, uint8_t(trigger[i]));
      if (hit_[size_t(state)]) return true;
    }
    return false;
  }

 private:
  Lang make(Langs&, bool hits) const;
  int32_t child(int32_t state, uint8_t byte) const { return next_[size_t(state) * 256 + byte]; }

  std::vector<int32_t> next_;   // the tree of the triggers, then of all moves; -1: none
  std::vector<uint8_t> place_;  // inside a code point, by state
  std::vector<bool> hit_;       // a trigger ends here
};

TriggerAutomaton::TriggerAutomaton(const std::vector<std::string>& triggers)
    : next_(kTextStates * 256, -1), place_(kTextStates), hit_(kTextStates) {
  for (int p = 0; p < kTextStates; ++p) place_[size_t(p)] = uint8_t(p);
  for (const std::string& trigger : triggers) {
    int32_t state = 0;
    for (const char c : trigger) {
      const size_t move = size_t(state) * 256 + uint8_t(c);
      if (next_[move] < 0) {
        if (place_.size() >= kMostStates) {
          throw BudgetError(
              "triggers", "",
              "the triggers have more than " + std::to_string(kMostStates) + " bytes");
        }
        next_[move] = int32_t(place_.size());
        place_.push_back(uint8_t(text_step(place_[size_t(state)], uint8_t(c))));
        hit_.push_back(false);
        next_.resize(next_.size() + 256, -1);
      }
      state = next_[move];
    }
    hit_[size_t(state)] = true;
  }
  // By depth: the longest other state that a state's text ends with is known before the state's
  // moves are filled in from it.
  std::vector<int32_t> back(place_.size(), 0), queue;
  const auto fill = [&](int32_t state, int32_t from) {
    for (int b = 0; b < 256; ++b) {
      int32_t& to = next_[size_t(state) * 256 + size_t(b)];
      const int32_t other = from < 0 ? -1 : child(from, uint8_t(b));
      const int place = text_step(place_[size_t(state)], uint8_t(b));
      if (to >= 0) {
        back[size_t(to)] = other >= 0 ? other : 0;
        queue.push_back(to);
      } else {
        to = place < 0 ? -1 : other >= 0 ? other : place;
      }
    }
  };
  for (int32_t p = 0; p < kTextStates; ++p) fill(p, -1);
  for (size_t i = 0; i < queue.size(); ++i) {
    const int32_t state = queue[i], from = back[size_t(state)];
    if (hit_[size_t(from)]) hit_[size_t(state)] = true;
    // Inside a code point the root of that place takes over.
    fill(state, from == 0 ? int32_t(place_[size_t(state)]) : from);
  }
}

Lang TriggerAutomaton::make(Langs& langs, bool hits) const {
  auto dfa = std::make_shared<Dfa>();
  dfa->targets = next_;
  dfa->accepting.resize(place_.size());
  for (size_t s = 0; s < place_.size(); ++s) {
    dfa->accepting[s] = hits ? hit_[s] : !hit_[s] && place_[s] == 0;
    if (!hit_[s]) continue;
    std::fill_n(dfa->targets.begin() + ptrdiff_t(s * 256), 256, -1);
  }
  if (!hits) {
    for (int32_t& to : dfa->targets) {
      if (to >= 0 && hit_[size_t(to)]) to = -1;
    }
  }
  return langs.dfa(std::move(dfa), 0);
}

// The rules of one grammar of tags.
class TagRules {
 public:
  TagRules(Langs& langs, const std::vector<Tag>& tags, const TagOptions& options)
      : langs_(langs), tags_(tags), options_(options) {}
  Rules run();

 private:
  [[noreturn]] static void fail(size_t tag, const std::string& part, const std::string& reason) {
    throw GrammarError(part, "/" + std::to_string(tag) + "/" + part, reason);
  }

  static void check_text(const std::string& text, const std::string& keyword,
                         const std::string& pointer);
  void read_triggers();
  void give_tags();
  Symbol content(size_t tag);
  Symbol rule(const std::string& name, Alternatives alternatives);
  Symbol begins(const std::vector<size_t>& tags, size_t from, size_t to, size_t read);
  Lang word(std::string_view text) { return langs_.word(text); }

  Langs& langs_;
  const std::vector<Tag>& tags_;
  const TagOptions& options_;
  Rules rules_;
  std::vector<std::string> triggers_;
  std::vector<std::vector<size_t>> tags_of_;  // by trigger
  std::map<std::pair<std::string, bool>, Symbol> contents_;
};

void TagRules::check_text(const std::string& text, const std::string& keyword,
                          const std::string& pointer) {
  try {
    const front::Source source(text);
  } catch (const BudgetError& error) {
    throw BudgetError(keyword, pointer, error.reason);
  } catch (const GrammarError&) {
    throw GrammarError(keyword, pointer, "it is not UTF-8");
  }
}

void TagRules::read_triggers() {
  if (tags_.empty()) throw GrammarError("tags", "", "there is no tag");
  for (size_t i = 0; i < tags_.size(); ++i) {
    const std::string pointer = "/" + std::to_string(i);
    if (tags_[i].begin.empty()) fail(i, "begin", "it is empty, which any text begins with");
    check_text(tags_[i].begin, "begin", pointer + "/begin");
    check_text(tags_[i].end, "end", pointer + "/end");
    check_text(tags_[i].schema, "schema", pointer + "/schema");
    if (options_.triggers.empty()) triggers_.push_back(tags_[i].begin);
  }
  for (size_t i = 0; i < options_.triggers.size(); ++i) {
    const std::string pointer = "/triggers/" + std::to_string(i);
    check_text(options_.triggers[i], "triggers", pointer);
    if (options_.triggers[i].empty())
      throw GrammarError("triggers", pointer, "it is empty, which any text begins with");
    triggers_.push_back(options_.triggers[i]);
  }
  std::sort(triggers_.begin(), triggers_.end());
  triggers_.erase(std::unique(triggers_.begin(), triggers_.end()), triggers_.end());
  // Behind the first trigger the text is no longer free: one that begins with another never counts.
  std::vector<std::string> kept;
  for (const std::string& trigger : triggers_) {
    if (!kept.empty() && trigger.compare(0, kept.back().size(), kept.back()) == 0) continue;
    kept.push_back(trigger);
  }
  triggers_ = std::move(kept);
}

void TagRules::give_tags() {
  tags_of_.resize(triggers_.size());
  for (size_t i = 0; i < tags_.size(); ++i) {
    const std::string& begin = tags_[i].begin;
    auto it = std::upper_bound(triggers_.begin(), triggers_.end(), begin);
    const bool found =
        it != triggers_.begin() && begin.compare(0, std::prev(it)->size(), *std::prev(it)) == 0;
    if (!found) fail(i, "begin", "no trigger stands at its beginning");
    tags_of_[size_t(std::prev(it) - triggers_.begin())].push_back(i);
  }
  for (size_t t = 0; t < triggers_.size(); ++t) {
    if (tags_of_[t].empty()) {
      throw GrammarError("triggers", "", "no tag begins with the trigger " + triggers_[t]);
    }
    std::sort(tags_of_[t].begin(), tags_of_[t].end(),
              [&](size_t a, size_t b) { return tags_[a].begin < tags_[b].begin; });
  }
}

Symbol TagRules::rule(const std::string& name, Alternatives alternatives) {
  rules_.rules.push_back({name, std::move(alternatives)});
  return {Symbol::kRule, int32_t(rules_.rules.size()) - 1};
}

Symbol TagRules::content(size_t tag) {
  const Tag& t = tags_[tag];
  const auto [it, added] = contents_.try_emplace({t.schema, t.is_regex});
  if (!added) return it->second;
  const std::string pointer = "/" + std::to_string(tag) + "/schema";
  if (t.is_regex) {
    RegexOptions options;
    options.search = false;
    return it->second = {Symbol::kLang, regex(langs_, t.schema, options, "pattern", pointer)};
  }
  if (t.schema.empty()) throw GrammarError("schema", pointer, "it is empty; {} allows any value");
  rules_.schemas.push_back(t.schema);
  rules_.places.push_back(pointer);
  return it->second = {Symbol::kSchema, int32_t(rules_.schemas.size()) - 1};
}

// What follows the first `read` bytes of the begins of tags[from..to), which agree on these: a tree
// of rules, so that at each byte few alternatives are open.
Symbol TagRules::begins(const std::vector<size_t>& tags, size_t from, size_t to, size_t read) {
  Alternatives ways;
  while (from < to) {
    const std::string& begin = tags_[tags[from]].begin;
    if (begin.size() == read) {
      std::vector<Symbol> symbols = {content(tags[from])};
      if (!tags_[tags[from]].end.empty())
        symbols.push_back({Symbol::kLang, word(tags_[tags[from]].end)});
      ways.push_back(std::move(symbols));
      ++from;
      continue;
    }
    size_t last = from + 1;
    while (last < to && tags_[tags[last]].begin[read] == begin[read]) ++last;
    const std::string& other = tags_[tags[last - 1]].begin;
    size_t shared = read;
    while (shared < begin.size() && shared < other.size() && begin[shared] == other[shared])
      ++shared;
    const Symbol rest = begins(tags, from, last, shared);
    ways.push_back(
        {{Symbol::kLang, word(std::string_view(begin).substr(read, shared - read))}, rest});
    from = last;
  }
  return rule(tags.size() == 1 ? tags_[tags[0]].begin : "tags", std::move(ways));
}

Rules TagRules::run() {
  read_triggers();
  give_tags();
  const TriggerAutomaton automaton(triggers_);
  const Symbol text = {Symbol::kLang, automaton.free_text(langs_)};
  // Up to a trigger the text is free text and the trigger, unless a trigger may end inside another
  // one: then it has to be said that none does.
  std::unordered_set<std::string_view> ends;
  for (const std::string& trigger : triggers_) {
    for (size_t n = 1; n < trigger.size(); ++n) ends.insert(std::string_view(trigger).substr(n));
  }
  Alternatives calls;
  std::vector<size_t> plain;
  for (size_t t = 0; t < triggers_.size(); ++t) {
    const std::string& trigger = triggers_[t];
    bool overlapped = automaton.ends_inside(trigger);
    if (overlapped) {
      rules_.warnings.push_back("another trigger ends inside of " + trigger +
                                ", so its tags can't be met");
    }
    for (size_t n = 1; n < trigger.size() && !overlapped; ++n) {
      overlapped = ends.count(std::string_view(trigger).substr(0, n)) > 0;
    }
    if (!overlapped) {
      plain.insert(plain.end(), tags_of_[t].begin(), tags_of_[t].end());
      continue;
    }
    Lang head = automaton.up_to_trigger(langs_);
    if (triggers_.size() > 1) {
      head = langs_.both({head, langs_.concat(langs_.any_bytes(), word(trigger))});
    }
    calls.push_back(
        {{Symbol::kLang, head}, begins(tags_of_[t], 0, tags_of_[t].size(), trigger.size())});
  }
  if (calls.empty() && !options_.stop_after_first) {  // one free text at a time
    const Symbol tag = begins(plain, 0, plain.size(), 0);
    const Symbol self = {Symbol::kRule, int32_t(rules_.rules.size())};
    Alternatives ways = {{text}, {self, tag, text}};
    if (options_.at_least_one) ways[0] = {text, tag, text};
    rules_.start = rule("root", std::move(ways)).id;
    return std::move(rules_);
  }
  if (!plain.empty()) calls.push_back({text, begins(plain, 0, plain.size(), 0)});
  const Symbol call = rule("call", std::move(calls));
  Alternatives ways = {{call}};
  if (options_.stop_after_first) {
    if (!options_.at_least_one) ways.push_back({text});
    rules_.start = rule("root", std::move(ways)).id;
  } else {
    const Symbol self = {Symbol::kRule, int32_t(rules_.rules.size())};
    ways.push_back({self, call});
    if (!options_.at_least_one) ways[0].clear();
    const Symbol many = rule("calls", std::move(ways));
    rules_.start = rule("root", {{many, text}}).id;
  }
  return std::move(rules_);
}

}  // namespace

// A tag's begin starts with one of the triggers; the first trigger that is complete in the text
// ends free text, and then the rest of a begin with that trigger has to follow, a text of the
// schema, and the end. Free text is UTF-8, and text that is only the start of a trigger stays free.
// Errors point to "/index of the tag/part".
Rules tag_rules(Langs& langs, const std::vector<Tag>& tags, const TagOptions& options) {
  return TagRules(langs, tags, options).run();
}

}  // namespace tokops::grammar
