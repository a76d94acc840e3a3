// The Python module tokops.lib._grammar: vocabularies, grammars, matchers.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>

#include "bind.h"
#include "matcher.h"
#include "pool.h"
#include "uri.h"

namespace py = pybind11;

namespace tokops::grammar {

namespace {

constexpr int kDeepestJson = 400;

// The way to a value: a key or an index at each level.
struct Way {
  const Way* outer;
  const std::string* key;  // or nullptr
  size_t index;
};

std::string pointer_of(const Way* w, const std::string& root) {
  if (!w) return root;
  return pointer_of(w->outer, root) + "/" +
         (w->key ? pointer_escaped(*w->key) : std::to_string(w->index));
}

// Errors point to `root` and the way from there.
Json convert(py::handle h, const std::string& root, const Way* way = nullptr, int level = 0) {
  const auto at = [&] { return pointer_of(way, root); };
  if (level > kDeepestJson)
    throw BudgetError(
        "nesting", at(),
        "the schema is nested more than " + std::to_string(kDeepestJson) + " levels deep");
  Json j;
  PyObject* o = h.ptr();
  if (o == Py_None) return j;
  if (PyBool_Check(o)) {
    j.kind = o == Py_True ? Json::kTrue : Json::kFalse;
  } else if (PyUnicode_Check(o)) {
    j.kind = Json::kString;
    Py_ssize_t n = 0;
    const char* s = PyUnicode_AsUTF8AndSize(o, &n);
    if (!s) {
      PyErr_Clear();
      throw GrammarError("string", at(), "a string of the schema holds a lone surrogate");
    }
    j.text.assign(s, size_t(n));
  } else if (PyDict_Check(o)) {
    j.kind = Json::kObject;
    const auto d = py::reinterpret_borrow<py::dict>(h);
    j.keys.reserve(d.size());
    j.items.reserve(d.size());
    for (const auto& [k, v] : d) {
      if (!PyUnicode_Check(k.ptr()))
        throw GrammarError("object", at(), "keys of objects are strings");
      j.keys.push_back(convert(k, root, way, level).text);
      const Way inner{way, &j.keys.back(), 0};
      j.items.push_back(convert(v, root, &inner, level + 1));
    }
  } else if (PyList_Check(o) || PyTuple_Check(o)) {
    j.kind = Json::kArray;
    for (const auto& v : py::reinterpret_borrow<py::sequence>(h)) {
      const Way inner{way, nullptr, j.items.size()};
      j.items.push_back(convert(v, root, &inner, level + 1));
    }
  } else {
    j.kind = Json::kNumber;
    if (PyFloat_Check(o) && !std::isfinite(PyFloat_AS_DOUBLE(o)))
      throw GrammarError("number", at(), "NaN and infinities are no JSON numbers");
    try {
      j.text = py::str(h).cast<std::string>();
    } catch (const py::error_already_set& e) {
      if (!PyLong_Check(o) || !e.matches(PyExc_ValueError)) throw;
      throw GrammarError("number", at(),
                         "Python writes no integers of so many digits (see "
                         "sys.set_int_max_str_digits): give the schema as text");
    }
    try {
      (void)Decimal::parse(j.text);
    } catch (const std::invalid_argument&) {
      throw GrammarError("schema", at(),
                         "expected JSON values, got " + j.text.substr(0, 60) + " of " +
                             py::repr(py::type::of(h)).cast<std::string>());
    }
  }
  return j;
}

// A row of 32-bit words: a numpy array, anything with the buffer protocol, or a CPU tensor.
uint32_t* rows_of(py::handle h, int64_t rows, int32_t words, const char* what) {
  const auto wrong = [&](const std::string& got) {
    return py::value_error(std::string(what) + ": mask: expected contiguous int32 of " +
                           (rows < 0 ? "" : std::to_string(rows) + " x ") + std::to_string(words) +
                           " words, got " + got);
  };
  if (PyObject_CheckBuffer(h.ptr())) {
    Py_buffer b;
    if (PyObject_GetBuffer(h.ptr(), &b, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      throw wrong("memory that is read-only or not contiguous");
    }
    uint32_t* const p = static_cast<uint32_t*>(b.buf);
    const bool ok =
        b.itemsize == 4 && b.format &&
        (std::strchr(b.format, 'i') || std::strchr(b.format, 'l') || std::strchr(b.format, 'I')) &&
        b.len == (rows < 0 ? 1 : rows) * words * 4;
    const std::string got =
        std::to_string(b.len) + " bytes of items of " + std::to_string(b.itemsize);
    PyBuffer_Release(&b);
    if (!ok) throw wrong(got);
    return p;
  }
  if (!py::hasattr(h, "data_ptr")) throw wrong(py::repr(py::type::of(h)).cast<std::string>());
  static PyObject* const int32_type =
      py::object(py::module_::import("torch").attr("int32")).release().ptr();
  if (h.attr("dtype").ptr() != int32_type || h.attr("is_cpu").ptr() != Py_True ||
      !h.attr("is_contiguous")().cast<bool>() ||
      h.attr("numel")().cast<int64_t>() != (rows < 0 ? 1 : rows) * words)
    throw wrong("a tensor " + py::str(h.attr("shape")).cast<std::string>() + " of " +
                py::str(h.attr("dtype")).cast<std::string>());
  return reinterpret_cast<uint32_t*>(h.attr("data_ptr")().cast<uintptr_t>());
}

// Of a list, an array or a tensor.
std::vector<int32_t> ints_of(py::handle h) {
  if (py::hasattr(h, "tolist")) return h.attr("tolist")().cast<std::vector<int32_t>>();
  return h.cast<std::vector<int32_t>>();
}

SchemaOptions options_of(const py::dict& d) {
  SchemaOptions o;
  for (const auto& [key, v] : d) {
    const std::string k = key.cast<std::string>();
    if (k == "whitespace")
      o.whitespace = v.cast<std::string>();
    else if (k == "max_whitespace")
      o.max_whitespace = v.cast<int32_t>();
    else if (k == "schema_order")
      o.schema_order = v.cast<bool>();
    else if (k == "assert_formats")
      o.assert_formats = v.cast<bool>();
    else if (k == "one_of")
      o.one_of = v.cast<std::string>();
    else if (k == "strict")
      o.strict = v.cast<bool>();
    else if (k == "max_alternatives")
      o.max_alternatives = v.cast<int64_t>();
    else if (k == "max_steps")
      o.max_steps = v.cast<int64_t>();
    else if (k == "timeout")
      o.timeout = v.cast<double>();
    else if (k == "draft")
      o.draft = v.cast<int32_t>();
    else if (k == "base")
      o.base = v.cast<std::string>();
    else if (k == "registry") {
      for (const auto& [uri, doc] : v.cast<py::dict>()) {
        std::string u = uri.cast<std::string>();
        if (!u.empty() && u.back() == '#') u.pop_back();
        const std::string root = u + "#";
        o.registry.emplace(std::move(u), convert(doc, root));
      }
    } else
      throw py::type_error("unknown option " + k);
  }
  if (PyGILState_Check())
    o.interrupt = [] {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
  return o;
}

// What compiling one grammar may add to the languages that it shares.
struct Compiling {
  Langs::Account account{0, size_t(96) << 20};
  Langs::Charged charged{account};
};

// `place`: of the schema, in what holds it.
std::shared_ptr<Schema> schema_of(Lexemes& l, py::handle h, const py::dict& options,
                                  const std::string& place = "") {
  SchemaOptions o = options_of(options);
  o.place = place;
  return std::make_shared<Schema>(l.langs(), convert(h, place), std::move(o));
}

Pool& pool(int threads) {
  static std::mutex lock;
  static std::vector<std::unique_ptr<Pool>> pools;
  const std::lock_guard guard(lock);
  for (auto& p : pools)
    if (p->threads() == threads) return *p;
  pools.push_back(std::make_unique<Pool>(threads));
  return *pools.back();
}

}  // namespace

Json to_json(py::handle h) { return convert(h, ""); }

}  // namespace tokops::grammar

using namespace tokops::grammar;

PYBIND11_MODULE(_grammar, m) {
  m.doc() = "Grammars as automata: see tokops.grammar";
  static py::exception<GrammarError> grammar_error(m, "GrammarError", PyExc_ValueError);
  static py::exception<BudgetError> budget_error(m, "BudgetError", grammar_error.ptr());
  py::register_exception_translator([](std::exception_ptr p) {
    const auto raise = [](const GrammarError& e, PyObject* type) {
      // A message may quote a part of the source that ends inside a character.
      const auto text = [](const std::string& t) {
        return py::reinterpret_steal<py::object>(
            PyUnicode_DecodeUTF8(t.data(), Py_ssize_t(t.size()), "replace"));
      };
      py::object o = py::reinterpret_borrow<py::object>(type)(text(e.what()));
      o.attr("keyword") = text(e.keyword);
      o.attr("pointer") = text(e.pointer);
      o.attr("reason") = text(e.reason);
      PyErr_SetObject(type, o.ptr());
    };
    try {
      if (p) std::rethrow_exception(p);
    } catch (const BudgetError& e) {
      raise(e, budget_error.ptr());
    } catch (const GrammarError& e) {
      raise(e, grammar_error.ptr());
    }
  });

  py::class_<Vocabulary, std::shared_ptr<Vocabulary>>(m, "Vocabulary")
      .def(py::init([](const py::sequence& tokens, std::vector<int32_t> eos, int32_t width,
                       size_t cache_bytes) {
        std::vector<std::string> all;
        all.reserve(tokens.size());
        for (const auto& t : tokens) {
          if (!PyBytes_Check(t.ptr())) throw py::type_error("Vocabulary: tokens: expected bytes");
          all.emplace_back(PyBytes_AS_STRING(t.ptr()), size_t(PyBytes_GET_SIZE(t.ptr())));
          if (all.back().size() > 4096)
            throw py::value_error("Vocabulary: tokens: a token has more than 4096 bytes");
        }
        return std::make_shared<Vocabulary>(std::move(all), std::move(eos), width, cache_bytes);
      }))
      .def_property_readonly("size", &Vocabulary::size)
      .def_property_readonly("width", &Vocabulary::width)
      .def_property_readonly("words", &Vocabulary::words)
      .def_property_readonly("nodes", &Vocabulary::nodes)
      .def_property_readonly("cached_bytes",
                             [](Vocabulary& v) { return v.lexemes()->cached_bytes(); })
      .def_property_readonly("language_bytes",
                             [](Vocabulary& v) { return v.lexemes()->langs().memory(); })
      .def_property_readonly("eos", &Vocabulary::eos)
      .def("token", [](const Vocabulary& v, int32_t t) {
        if (t < 0 || t >= v.width()) throw py::index_error("token out of range");
        return py::bytes(t < v.size() ? v.token(t) : std::string());
      });

  py::class_<Grammar, std::shared_ptr<Grammar>>(m, "Grammar")
      .def_static(
          "from_schema",
          [](const std::shared_ptr<Vocabulary>& v, py::handle schema, const py::dict& options) {
            auto l = v->lexemes();
            const Compiling compiling;
            auto s = schema_of(*l, schema, options);
            return std::make_shared<Grammar>(v, std::move(l), std::move(s));
          })
      .def_static("from_rules",
                  [](const std::shared_ptr<Vocabulary>& v, const std::string& dialect,
                     const std::string& source, const std::string& start, const py::function& loads,
                     const py::dict& options) {
                    auto l = v->lexemes();
                    const Compiling compiling;
                    Rules r = dialect == "ebnf"   ? parse_ebnf(l->langs(), source, start)
                              : dialect == "lark" ? parse_lark(l->langs(), source, start)
                                                  : regex_rules(l->langs(), source);
                    simplify(l->langs(), r);
                    std::vector<std::shared_ptr<Schema>> schemas;
                    for (size_t i = 0; i < r.schemas.size(); ++i)
                      schemas.push_back(
                          schema_of(*l, loads(r.schemas[i], r.places[i]), options, r.places[i]));
                    return std::make_shared<Grammar>(v, std::move(l), r, std::move(schemas));
                  })
      .def_static(
          "from_tags",
          [](const std::shared_ptr<Vocabulary>& v, const py::list& tags,
             std::vector<std::string> triggers, bool at_least_one, bool stop_after_first,
             const py::dict& options) {
            // tags: (begin, schema or pattern, end, is_regex)
            std::vector<Tag> all;
            std::vector<py::object> documents;
            for (const auto& h : tags) {
              const auto t = h.cast<py::tuple>();
              Tag tag{t[0].cast<std::string>(), "", t[2].cast<std::string>(), t[3].cast<bool>()};
              if (tag.is_regex)
                tag.schema = t[1].cast<std::string>();
              else {
                tag.schema = std::to_string(documents.size());  // a JSON text that names which
                documents.push_back(py::reinterpret_borrow<py::object>(t[1]));
              }
              all.push_back(std::move(tag));
            }
            TagOptions o;
            o.triggers = std::move(triggers);
            o.at_least_one = at_least_one;
            o.stop_after_first = stop_after_first;
            auto l = v->lexemes();
            const Compiling compiling;
            Rules r = tag_rules(l->langs(), all, o);
            simplify(l->langs(), r);
            std::vector<std::shared_ptr<Schema>> schemas;
            for (size_t i = 0; i < r.schemas.size(); ++i)
              schemas.push_back(
                  schema_of(*l, documents[std::stoul(r.schemas[i])], options, r.places[i]));
            return std::make_shared<Grammar>(v, std::move(l), r, std::move(schemas));
          })
      .def_property_readonly("warnings", &Grammar::warnings)
      .def_property_readonly("vocabulary", &Grammar::vocabulary);

  py::class_<Matcher>(m, "Matcher")
      .def(py::init(
          [](std::shared_ptr<Grammar> g) { return std::make_unique<Matcher>(std::move(g)); }))
      .def("accept", &Matcher::accept, py::arg("token"))
      .def("allows", &Matcher::allows, py::arg("token"))
      .def("accept_bytes",
           [](Matcher& s, const py::bytes& b) { return s.accept_bytes(std::string_view(b)); })
      .def("bytes_taken",
           [](Matcher& s, const py::bytes& b) {
             size_t n = 0;
             if (s.accept_bytes(std::string_view(b), &n)) s.rollback(1);
             return n;
           })
      .def("rollback", &Matcher::rollback, py::arg("tokens"))
      .def("reset", &Matcher::reset)
      .def("fork", [](const Matcher& s) { return std::make_unique<Matcher>(s); })
      .def(
          "fill",
          [](Matcher& s, py::handle mask) {
            uint32_t* p = rows_of(mask, -1, s.grammar().vocabulary()->words(), "fill");
            s.fill(p);
          },
          py::arg("mask"))
      .def(
          "fill_tree",
          [](Matcher& s, py::handle tree, py::handle ids, py::handle mask) {
            const std::vector<int32_t> parents = ints_of(tree), tokens = ints_of(ids);
            if (parents.size() != tokens.size())
              throw py::value_error("fill_tree: parents and tokens differ in length");
            for (size_t i = 0; i < parents.size(); ++i)
              if (parents[i] < -1 || parents[i] >= int32_t(i))
                throw py::value_error(
                    "fill_tree: parents: expected -1 or the index of an earlier node");
            uint32_t* p = rows_of(mask, int64_t(parents.size()), s.grammar().vocabulary()->words(),
                                  "fill_tree");
            fill_tree(s, parents.data(), tokens.data(), int32_t(parents.size()), p);
          },
          py::arg("parents"), py::arg("tokens"), py::arg("mask"))
      .def("jump_forward", [](Matcher& s) { return py::bytes(s.jump_forward()); })
      .def("allowed_bytes", [](Matcher& s) { return py::bytes(s.allowed_bytes()); })
      .def("expected", &Matcher::expected)
      .def("is_done", &Matcher::done)
      .def("is_complete", &Matcher::complete)
      .def_property_readonly("configurations", [](const Matcher& s) { return s.end() - s.begin(); })
      .def_property_readonly("accepted", &Matcher::accepted)
      .def_property_readonly("text",
                             [](const Matcher& s) { return py::bytes(std::string(s.text())); });

  m.def(
      "fill_batch",
      [](const py::list& matchers, py::handle mask, int threads) {
        std::vector<Matcher*> all;
        for (const auto& h : matchers) all.push_back(h.is_none() ? nullptr : h.cast<Matcher*>());
        int32_t words = 0;
        for (const Matcher* x : all)
          if (x) {
            const int32_t w = x->grammar().vocabulary()->words();
            if (words && words != w)
              throw py::value_error("fill_batch: the matchers' vocabularies differ in width");
            words = w;
          }
        for (size_t i = 0; i < all.size(); ++i)
          for (size_t j = 0; j < i; ++j)
            if (all[i] && all[i] == all[j])
              throw py::value_error("fill_batch: one matcher stands in two rows");
        if (!words) return;
        uint32_t* p = rows_of(mask, int64_t(all.size()), words, "fill_batch");
        const py::gil_scoped_release released;
        const auto row = [&](int64_t i) {
          uint32_t* r = p + i * words;
          if (all[size_t(i)])
            all[size_t(i)]->fill(r);
          else
            std::memset(r, 0xff, size_t(words) * 4);
        };
        if (threads <= 1 || all.size() <= 1)
          for (size_t i = 0; i < all.size(); ++i) row(int64_t(i));
        else
          pool(threads).run(int64_t(all.size()), row);
      },
      py::arg("matchers"), py::arg("mask"), py::arg("threads"));

  bind_languages(m);
  bind_rules(m);
  bind_asap(m);
  bind_device(m);
  bind_infill(m);
}
