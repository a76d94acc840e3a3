// Python's view of AsapTrie. Rows and masks are numpy arrays that share a tensor's memory; none is
// copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "asap_trie.h"

namespace py = pybind11;

namespace tokops::grammar {
namespace {

using Row = py::array_t<float, py::array::c_style>;
using Mask = py::array_t<int32_t, py::array::c_style>;
using Path = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

int32_t visit(AsapTrie& trie, int32_t parent, int32_t token, float logit, Row logits,
              const std::optional<Mask>& mask, bool fresh_too) {
  if (logits.ndim() != 1 || logits.shape(0) != trie.vocabulary())
    throw py::value_error("AsapTrie: logits must be [" + std::to_string(trie.vocabulary()) +
                          "] float32");
  if (mask && mask->ndim() != 1) throw py::value_error("AsapTrie: mask must be [W] int32");
  return trie.visit(parent, token, logit, logits.mutable_data(), mask ? mask->data() : nullptr,
                    mask ? size_t(mask->shape(0)) : 0, fresh_too);
}

int32_t find(const AsapTrie& trie, const Path& tokens) {
  if (tokens.ndim() != 1) throw py::value_error("AsapTrie: a path must have one dimension");
  return trie.find(tokens.data(), size_t(tokens.shape(0)));
}

py::dict describe(const AsapTrie& trie, int32_t at) {
  const auto& node = trie.node(at);
  const auto count = py::ssize_t(node.entries.size());
  py::array_t<int32_t> tokens(count), children(count);
  py::array_t<double> lp(count), theta(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const auto& e = node.entries[size_t(i)];
    tokens.mutable_at(i) = e.token;
    children.mutable_at(i) = e.child;
    lp.mutable_at(i) = e.lp;
    theta.mutable_at(i) = e.theta;
  }
  py::dict out;
  out["tokens"] = tokens;
  out["children"] = children;
  out["log_probs"] = lp;
  out["log_theta"] = theta;
  out["tail"] = node.tail;
  out["tail_count"] = node.tail_count;
  out["mass"] = node.mass;
  out["parent"] = node.parent;
  out["depth"] = node.depth;
  return out;
}

}  // namespace

void bind_asap(py::module_& m) {
  py::class_<AsapTrie>(m, "AsapTrie",
                       "Bounds that ASAp has learned, by context; see tokops.methods.ASAp.")
      .def(py::init<int32_t, int32_t, double, int64_t>(), py::arg("vocabulary"),
           py::arg("keep_all") = 1024, py::arg("least") = 1e-4,
           py::arg("max_bytes") = int64_t(1) << 30)
      .def("visit", &visit, py::arg("parent"), py::arg("token"), py::arg("logit"),
           py::arg("logits").noconvert(), py::arg("mask").noconvert() = py::none(),
           py::arg("fresh_too") = true)
      .def("reject", &AsapTrie::reject, py::arg("node"), py::arg("token"), py::arg("logit"))
      .def("end", &AsapTrie::end, py::arg("node"))
      .def("find", &find, py::arg("tokens"))
      .def("child", &AsapTrie::child, py::arg("node"), py::arg("token"))
      .def("freeze", &AsapTrie::freeze)
      .def("merge", &AsapTrie::merge)
      .def("node", &describe, py::arg("node"))
      .def_property_readonly("frozen", &AsapTrie::frozen)
      .def_property_readonly("vocabulary", &AsapTrie::vocabulary)
      .def_property_readonly("memory", &AsapTrie::memory)
      .def("__len__", &AsapTrie::size)
      .def("save", [](const AsapTrie& trie) { return py::bytes(trie.save()); })
      .def_static("load",
                  [](const py::bytes& bytes) { return AsapTrie::load(std::string_view(bytes)); })
      .def(py::pickle(
          [](const AsapTrie& trie) { return py::bytes(trie.save()); },
          [](const py::bytes& bytes) { return AsapTrie::load(std::string_view(bytes)); }));
}

}  // namespace tokops::grammar
