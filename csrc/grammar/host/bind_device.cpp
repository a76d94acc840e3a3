// Python's view of DeviceTables. What it exports are numpy arrays of their own.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>

#include "bind.h"
#include "device_tables.h"

namespace py = pybind11;

namespace tokops::grammar {
namespace {

using Ints = py::array_t<int32_t>;

// (states [n], next [n, 256], accepting [n] uint8, mask_of [n], first mask, masks [m, W])
py::tuple changes(DeviceTables& t) {
  const std::vector<int32_t> states = t.take_changed();
  const auto n = py::ssize_t(states.size());
  const auto words = py::ssize_t(t.vocabulary()->words());
  Ints ids(n), next(std::vector<py::ssize_t>{n, 256}), mask_of(n);
  py::array_t<uint8_t> accepting(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    const int32_t s = states[size_t(i)];
    ids.mutable_at(i) = s;
    std::memcpy(next.mutable_data(i, 0), t.next(s), 256 * sizeof(int32_t));
    accepting.mutable_at(i) = t.accepting(s);
    mask_of.mutable_at(i) = t.mask_of(s);
  }
  const int32_t first = t.take_masks();
  Ints masks(std::vector<py::ssize_t>{t.masks() - first, words});
  if (t.masks() > first)
    std::memcpy(masks.mutable_data(), t.pool(first), size_t(t.masks() - first) * size_t(words) * 4);
  return py::make_tuple(ids, next, accepting, mask_of, first, masks);
}

}  // namespace

void bind_device(py::module_& m) {
  py::class_<DeviceTables>(m, "DeviceTables")
      .def(py::init<std::shared_ptr<Vocabulary>, int32_t, int32_t>(), py::arg("vocabulary"),
           py::arg("max_states") = 65536, py::arg("max_masks") = 4096)
      .def("add", [](DeviceTables& t, const std::shared_ptr<Grammar>& g) { return t.add(g); })
      .def("visit", &DeviceTables::visit)
      .def("explore", &DeviceTables::explore)
      .def("explore_all", &DeviceTables::explore_all)
      .def("explore_loops", &DeviceTables::explore_loops)
      .def("mask", &DeviceTables::mask)
      .def("mask_known",
           [](const DeviceTables& t, int32_t state) {
             return state >= 0 && state < t.states() && t.mask_of(state) >= 0;
           })
      .def("matcher", &DeviceTables::matcher)
      .def("locate", &DeviceTables::locate)
      .def("changes", &changes)
      .def_property_readonly("states", &DeviceTables::states)
      .def_property_readonly("masks", &DeviceTables::masks)
      .def_property_readonly("max_states", &DeviceTables::max_states)
      .def_property_readonly("max_masks", &DeviceTables::max_masks);
}

}  // namespace tokops::grammar
