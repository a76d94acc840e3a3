// Languages for Python, for tests and tools: a language is a number that its Languages gave.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "regex.h"

namespace py = pybind11;

namespace tokops::grammar {

void bind_languages(py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Langs>(m, "Languages")
      .def(py::init<size_t>(), py::arg("max_bytes") = size_t(64) << 20)
      .def("word", [](Langs& l, const py::bytes& text) { return l.word(std::string_view(text)); })
      .def("words",
           [](Langs& l, const std::vector<py::bytes>& list) {
             std::vector<std::string> words(list.begin(), list.end());
             return l.words(std::move(words));
           })
      .def("bytes",
           [](Langs& l, const py::bytes& members) {
             ByteSet set;
             for (char c : std::string(members)) set.add(uint8_t(c));
             return l.bytes(set);
           })
      .def("code_points", &Langs::code_points)
      .def("concat", [](Langs& l, Lang a, Lang b) { return l.concat(a, b); })
      .def("either", &Langs::either)
      .def("both", &Langs::both)
      .def("complement", &Langs::complement)
      .def("minus", &Langs::minus)
      .def("star", &Langs::star)
      .def("repeat", &Langs::repeat, py::arg("lang"), py::arg("at_least"), py::arg("at_most") = -1)
      .def("any_bytes", &Langs::any_bytes)
      .def("any_char", &Langs::any_char)
      .def("text", &Langs::text)
      .def("dfa",
           [](Langs& l, const std::vector<std::vector<int32_t>>& rows,
              const std::vector<bool>& accepting, int32_t start) {
             auto dfa = std::make_shared<Dfa>();
             for (const auto& row : rows)
               dfa->targets.insert(dfa->targets.end(), row.begin(), row.end());
             dfa->accepting.assign(accepting.begin(), accepting.end());
             return l.dfa(std::move(dfa), start);
           })
      .def(
          "regex",
          [](Langs& l, const std::string& pattern, bool search, bool ignore_case, bool dot_all,
             bool python) {
            return regex(l, pattern,
                         {.search = search,
                          .ignore_case = ignore_case,
                          .dot_all = dot_all,
                          .python = python});
          },
          py::arg("pattern"), py::kw_only(), py::arg("search") = true,
          py::arg("ignore_case") = false, py::arg("dot_all") = false, py::arg("python") = false,
          Released())
      .def("format", [](Langs& l, const std::string& name) { return format(l, name); })
      .def("plain_numbers", [](Langs& l) { return plain_numbers(l); })
      .def("plain_integers", [](Langs& l) { return plain_integers(l); })
      .def(
          "at_least",
          [](Langs& l, const std::string& x, bool exclusive) {
            return at_least(l, Decimal::parse(x), exclusive);
          },
          py::arg("number"), py::arg("exclusive") = false)
      .def(
          "at_most",
          [](Langs& l, const std::string& x, bool exclusive) {
            return at_most(l, Decimal::parse(x), exclusive);
          },
          py::arg("number"), py::arg("exclusive") = false)
      .def("multiple_of",
           [](Langs& l, const std::string& x) { return multiple_of(l, Decimal::parse(x)); })
      .def("equal_to",
           [](Langs& l, const std::string& x) { return equal_to(l, Decimal::parse(x)); })
      .def("exponent_numbers",
           [](Langs& l, const std::string& sign) {
             constexpr const char* kNames[] = {"any", "nonnegative", "nonpositive", "positive",
                                               "negative"};
             for (int i = 0; i < 5; ++i)
               if (sign == kNames[i]) return exponent_numbers(l, Sign(i));
             throw std::invalid_argument("sign");
           })
      .def("steps", [](Langs& l, Lang lang,
                       const py::bytes& text) { return l.steps(lang, std::string_view(text)); })
      .def("accepts",
           [](Langs& l, Lang lang, const py::bytes& text) {
             return l.accepts(l.steps(lang, std::string_view(text)));
           })
      .def("alive", &Langs::alive)
      .def("infinite", &Langs::infinite)
      .def("count", &Langs::count, Released())
      .def("shortest", [](Langs& l, Lang lang) { return py::bytes(l.shortest(lang)); })
      .def("list",
           [](Langs& l, Lang lang, int64_t cap) {
             py::list words;
             for (const std::string& w : l.list(lang, cap)) words.append(py::bytes(w));
             return words;
           })
      .def("lengths",
           [](Langs& l, Lang lang) {
             Lengths x = l.lengths(lang);
             return std::pair(x.shortest, x.all_longer);
           })
      .def("same", &Langs::same)
      .def("size", &Langs::size)
      .def("memory", &Langs::memory)
      .def("set_fuel", &Langs::set_fuel);
  m.def("format_names", &format_names);
  m.def("decimal_text", [](const std::string& x) { return Decimal::parse(x).text(); });
  m.def("decimal_compare", [](const std::string& a, const std::string& b) {
    return Decimal::parse(a).compare(Decimal::parse(b));
  });
  m.def("decimal_multiple_of", [](const std::string& a, const std::string& b) {
    return Decimal::parse(a).multiple_of(Decimal::parse(b));
  });
}

}  // namespace tokops::grammar
