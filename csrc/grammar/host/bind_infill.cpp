// The edge between infilling and Python. Parts of a text are bytes (words) and ints (gaps of at
// least so many bytes).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "infill.h"
#include "regex.h"

namespace py = pybind11;

namespace tokops::grammar {
namespace {

using infill::Cfg;
using infill::Checker;
using infill::Grammar;
using infill::Lexer;

using Terminal = std::pair<std::string, std::string>;  // "literal" or "regex", its text
using NotBefore = std::map<std::string, std::string>;

Lexer lexer_of(const std::string& name) {
  if (name == "union") return Lexer::kUnion;
  if (name == "longest") return Lexer::kLongest;
  throw py::value_error("lexer must be \"union\" or \"longest\", got \"" + name + "\"");
}

// `ignored`: terminals of which any number may stand before, between and behind the others.
std::shared_ptr<Grammar> from_productions(
    const std::vector<Terminal>& terminals, const std::vector<int32_t>& ignored, int32_t heads,
    const std::vector<std::pair<int32_t, std::vector<int32_t>>>& productions, int32_t start,
    const std::string& lexer, const NotBefore& not_before) {
  Cfg cfg;
  cfg.terminals = int32_t(terminals.size());
  cfg.symbols = cfg.terminals + heads;
  cfg.start = start;
  for (const auto& [of, body] : productions) cfg.productions.push_back({of, body});
  const auto head = [&](int32_t s) { return s >= cfg.terminals && s < cfg.symbols; };
  bool good = heads >= 1 && head(start);
  for (const auto& p : cfg.productions) {
    good = good && head(p.head);
    for (int32_t s : p.body) good = good && s >= 0 && s < cfg.symbols;
  }
  for (int32_t s : ignored) good = good && s >= 0 && s < cfg.terminals;
  if (!good) throw py::value_error("productions: a symbol is out of range");
  Langs langs;
  std::vector<Lang> of;
  for (size_t i = 0; i < terminals.size(); ++i) {
    const auto& [kind, text] = terminals[i];
    RegexOptions options;
    options.search = false;
    of.push_back(kind == "literal" ? langs.word(text)
                                   : regex(langs, text, options, "terminal", std::to_string(i)));
  }
  int32_t between = -1;
  if (!ignored.empty()) {
    between = cfg.terminals;
    std::vector<Lang> skipped;
    for (int32_t t : ignored) skipped.push_back(of[t]);
    const Lang star = langs.star(langs.either(std::move(skipped)));
    // What no rule uses is no terminal of its own any more.
    std::vector<uint8_t> used(terminals.size(), 0);
    for (const auto& p : cfg.productions) {
      for (int32_t s : p.body) {
        if (s < cfg.terminals) used[s] = 1;
      }
    }
    for (int32_t t : ignored) of[t] = used[t] ? of[t] : kNothing;
    of.push_back(star);
    infill::allow_between(cfg);
  }
  return std::make_shared<Grammar>(langs, std::move(cfg), std::move(of), lexer_of(lexer),
                                   not_before, between);
}

template <Rules (*parse)(Langs&, std::string_view, const std::string&)>
std::shared_ptr<Grammar> from_source(const std::string& source, const std::string& start,
                                     const std::string& lexer, const NotBefore& not_before) {
  Langs langs;
  std::vector<Lang> of;
  const Rules rules = parse(langs, source, start);
  Cfg cfg = infill::cfg_of(rules, of);
  return std::make_shared<Grammar>(langs, std::move(cfg), std::move(of), lexer_of(lexer),
                                   not_before);
}

py::list productions_of(const Cfg& cfg) {
  py::list out;
  for (const auto& p : cfg.productions) out.append(py::make_tuple(p.head, p.body));
  return out;
}

// Every step of the normal form: (name, start, productions).
py::list steps_of(const Grammar& grammar) {
  py::list out;
  const auto note = [&](const char* name, const Cfg& cfg) {
    out.append(py::make_tuple(name, cfg.start, productions_of(cfg)));
  };
  note("source", grammar.source);
  std::vector<uint8_t> alive, nullable;
  for (const auto& t : grammar.terminals.all)
    alive.push_back(t.alive()), nullable.push_back(t.nullable());
  infill::normal_form(grammar.source, alive, nullable, note);
  return out;
}

std::vector<infill::Part> parts_of(const py::iterable& given) {
  std::vector<infill::Part> parts;
  for (const py::handle part : given) {
    if (py::isinstance<py::bytes>(part)) {
      parts.emplace_back(part.cast<std::string>());
    } else {
      parts.emplace_back(infill::Gap{part.cast<int32_t>()});
    }
  }
  return parts;
}

infill::Bounds bounds_of(int64_t steps, std::optional<double> seconds) {
  return {steps, seconds, [] {
            const py::gil_scoped_acquire held;
            return PyErr_CheckSignals() != 0;
          }};
}

// (answer, bound, spent, (cost, fills) or None). A signal's exception goes on to Python.
py::tuple verdict_of(const infill::Verdict& v) {
  if (PyErr_Occurred()) throw py::error_already_set();
  py::object best = py::none();
  if (v.best) {
    py::list fills;
    for (const auto& fill : v.best->fills) fills.append(py::bytes(fill));
    best = py::make_tuple(v.best->cost, fills);
  }
  static constexpr const char* kNames[] = {"no", "yes", "unknown"};
  return py::make_tuple(kNames[int(v.answer)], v.bound, v.spent, best);
}

}  // namespace

void bind_infill(py::module_& m) {
  py::class_<Grammar, std::shared_ptr<Grammar>>(m, "InfillGrammar")
      .def_static("from_productions", &from_productions)
      .def_static("from_lark", &from_source<&parse_lark>)
      .def_static("from_ebnf", &from_source<&parse_ebnf>)
      .def_property_readonly("terminals", [](const Grammar& g) { return g.source.terminals; })
      .def_property_readonly("productions",
                             [](const Grammar& g) { return g.normal.productions.size(); })
      .def_property_readonly("symbols", [](const Grammar& g) { return g.normal.symbols; })
      .def("normal_form_steps", &steps_of)
      .def("checker",
           [](std::shared_ptr<Grammar> g) { return std::make_unique<Checker>(std::move(g)); });

  py::class_<Checker>(m, "InfillChecker")
      .def("check",
           [](Checker& self, const py::iterable& given, int64_t steps,
              std::optional<double> seconds) {
             const auto parts = parts_of(given);
             infill::Verdict v;
             {
               const py::gil_scoped_release released;
               v = self.check(parts, bounds_of(steps, seconds));
             }
             return verdict_of(v);
           })
      .def("complete",
           [](Checker& self, const py::iterable& given, const std::vector<int64_t>& weights,
              int64_t steps, std::optional<double> seconds) {
             const auto parts = parts_of(given);
             infill::Verdict v;
             {
               const py::gil_scoped_release released;
               v = self.complete(parts, weights, bounds_of(steps, seconds));
             }
             return verdict_of(v);
           })
      .def("cancel", &Checker::cancel)
      .def_property_readonly("rows_computed", &Checker::rows_computed);
}

}  // namespace tokops::grammar
