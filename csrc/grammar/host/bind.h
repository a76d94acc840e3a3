// What the parts of the module tokops.lib._grammar share.
#pragma once
#include <pybind11/pybind11.h>

#include "json.h"

namespace tokops::grammar {

Json to_json(pybind11::handle);  // dict, list, str, bool, None, int, float or Decimal

void bind_languages(pybind11::module_&);
void bind_rules(pybind11::module_&);
void bind_asap(pybind11::module_&);
void bind_device(pybind11::module_&);
void bind_infill(pybind11::module_&);
void bind_bpe(pybind11::module_&);

}  // namespace tokops::grammar
