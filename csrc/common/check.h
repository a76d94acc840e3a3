// Argument checks of bindings, in the words of tokops/_check.py.
#pragma once
#include <cfloat>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/op.h"

namespace tokops {

// "[2, 3]"; no more than `most` numbers.
template <class Ints>
std::string list_of(const Ints& x, size_t most = 8) {
  std::string s;
  size_t n = 0;
  for (const auto v : x)
    if (n++ < most) s += (s.empty() ? "" : ", ") + std::to_string(v);
  return "[" + s + "]";
}

inline void check_tensor(const char* op, const char* name, const Tensor& t, int64_t dims,
                         std::initializer_list<ScalarType> dtypes, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() == dims, op, ": ", name, " must have ", dims, " dimensions, got ",
                  t.dim());
  bool ok = false;
  for (const ScalarType d : dtypes) ok = ok || t.scalar_type() == d;
  if (!ok) {
    std::string wanted;
    for (const ScalarType d : dtypes)
      wanted += std::string(wanted.empty() ? "" : " or ") + dtype_name(d);
    STD_TORCH_CHECK(false, op, ": ", name, " must be ", wanted, ", got ",
                    dtype_name(t.scalar_type()));
  }
  check_device(t, like, op, name);
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        const std::vector<int64_t>& shape, const char* words) {
  const auto got = t.sizes();
  bool ok = got.size() == shape.size();
  for (size_t i = 0; ok && i < shape.size(); ++i) ok = got[i] == shape[i];
  STD_TORCH_CHECK(ok, op, ": ", name, " must be ", words, " = ", list_of(shape), ", got ",
                  list_of(got));
}

// A cap is divided by in float32.
inline void check_softcap(const char* op, const std::optional<double>& softcap) {
  STD_TORCH_CHECK(!softcap || *softcap >= FLT_MIN, op, ": softcap must be > 0 in float32, got ",
                  softcap.value_or(0));
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto s = t.sizes();
  return {s.begin(), s.end()};
}

// The values of a contiguous int32 tensor on the host, for messages.
inline std::string values_of(const Tensor& t) {
  const int32_t* x = static_cast<const int32_t*>(t.const_data_ptr());
  return list_of(std::vector<int32_t>(x, x + (t.numel() < 8 ? t.numel() : 8)));
}

// Checks lo <= values <= hi of a contiguous int32 tensor on the host.
inline void check_range(const char* op, const char* name, const Tensor& t, int64_t lo, int64_t hi,
                        const std::string& words) {
  const int32_t* x = static_cast<const int32_t*>(t.const_data_ptr());
  bool ok = true;
  for (int64_t i = 0; i < t.numel(); ++i) ok = ok && x[i] >= lo && x[i] <= hi;
  STD_TORCH_CHECK(ok, op, ": ", name, " must be ", words, ", got ", values_of(t));
}

}  // namespace tokops
