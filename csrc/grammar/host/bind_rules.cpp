// The front ends for context-free grammars as Python sees them: for tests and for `tokops grammar`.
#include <pybind11/stl.h>

#include "bind.h"
#include "rules.h"

namespace tokops::grammar {
namespace {

namespace py = pybind11;

// Rules with the languages that they refer to.
struct RuleSet {
  std::unique_ptr<Langs> langs = std::make_unique<Langs>();
  Rules rules;
};

using Description =
    std::vector<std::pair<std::string, std::vector<std::vector<std::pair<std::string, int32_t>>>>>;

Description describe(const RuleSet& set) {
  static const char* const kinds[] = {"lang", "rule", "schema"};
  Description described;
  for (const Rule& rule : set.rules.rules) {
    described.emplace_back(rule.name, decltype(described)::value_type::second_type());
    for (const auto& symbols : rule.alternatives) {
      described.back().second.emplace_back();
      for (const Symbol& s : symbols)
        described.back().second.back().emplace_back(kinds[s.kind], s.id);
    }
  }
  return described;
}

// Where words of the language that begin at `from` end.
std::vector<size_t> ends(RuleSet& set, Lang lang, const std::string& text, size_t from) {
  std::vector<size_t> found;
  for (size_t i = from;; ++i) {
    if (set.langs->accepts(lang)) found.push_back(i);
    if (i >= text.size() || lang == kNothing) return found;
    lang = set.langs->step(lang, uint8_t(text[i]));
  }
}

template <class Parse>
RuleSet made(Parse parse) {
  RuleSet set;
  py::gil_scoped_release release;
  set.rules = parse(*set.langs);
  return set;
}

}  // namespace

void bind_rules(py::module_& m) {
  py::class_<RuleSet>(m, "RuleSet", "The rules of a grammar, and the languages they refer to.")
      .def_property_readonly("rules", &describe,
                             "[(name, [[(kind, id)]])]; kind: lang, rule or schema.")
      .def_property_readonly("start", [](const RuleSet& s) { return s.rules.start; })
      .def_property_readonly("schemas", [](const RuleSet& s) { return s.rules.schemas; })
      .def_property_readonly("warnings", [](const RuleSet& s) { return s.rules.warnings; })
      .def("ends", &ends, py::arg("lang"), py::arg("text"), py::arg("start") = 0,
           "Where words of a language that begin at `start` end.")
      .def(
          "simplify", [](RuleSet& s) { simplify(*s.langs, s.rules); },
          py::call_guard<py::gil_scoped_release>());
  m.def(
      "parse_ebnf",
      [](const std::string& source, const std::string& start) {
        return made([&](Langs& langs) { return parse_ebnf(langs, source, start); });
      },
      py::arg("source"), py::arg("start") = "");
  m.def(
      "parse_lark",
      [](const std::string& source, const std::string& start) {
        return made([&](Langs& langs) { return parse_lark(langs, source, start); });
      },
      py::arg("source"), py::arg("start") = "start");
  m.def(
      "regex_rules",
      [](const std::string& pattern) {
        return made([&](Langs& langs) { return regex_rules(langs, pattern); });
      },
      py::arg("pattern"));
  m.def(
      "tag_rules",
      [](const std::vector<std::tuple<std::string, std::string, std::string, bool>>& tags,
         std::vector<std::string> triggers, bool at_least_one, bool stop_after_first) {
        std::vector<Tag> read;
        for (const auto& [begin, schema, end, is_regex] : tags)
          read.push_back({begin, schema, end, is_regex});
        return made([&](Langs& langs) {
          return tag_rules(langs, read, {std::move(triggers), at_least_one, stop_after_first});
        });
      },
      py::arg("tags"), py::arg("triggers") = std::vector<std::string>(),
      py::arg("at_least_one") = false, py::arg("stop_after_first") = false,
      "tags: (begin, schema or pattern, end, is_regex).");
}

}  // namespace tokops::grammar
