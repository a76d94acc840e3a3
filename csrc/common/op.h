// What a binding needs: tensors, checks, the launch queue, and registration for the backend built.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>

#include "common/backend.h"

namespace tokops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dtype as Python spells it.
inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    default:
      return torch::headeronly::toString(t);
  }
}

inline DType dtype_of(const Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16 or float16, got ",
                  dtype_name(t.scalar_type()));
  return DType::f32;
}

inline void check_dtype(const Tensor& t, ScalarType want, const char* op, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == want, op, ": ", name, " must be ", dtype_name(want), ", got ",
                  dtype_name(t.scalar_type()));
}

inline void check_device(const Tensor& t, const Tensor& like, const char* op, const char* name) {
  STD_TORCH_CHECK(t.device() == like.device(), op, ": ", name,
                  " must be on the same device as the first argument");
}

// The data of a small integer or float operand, contiguous; the Tensor must outlive the pointer.
template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
inline std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& t) {
  if (!t) return std::nullopt;
  return torch::stable::contiguous(*t);
}

}  // namespace tokops

#if TOKOPS_CUDA_SIM
// tests/cuda_sim: the bindings as for CUDA, on CPU tensors, over .cu kernels that g++ compiled.
#define TOKOPS_BACKEND_KEY CPU
namespace tokops {
inline constexpr bool kOnHost = false;
struct Launch {
  Queue queue;
  explicit Launch(const Tensor&) {}
};
}  // namespace tokops
#elif TOKOPS_BACKEND_IS_CUDA
// Declared by torch only when USE_CUDA is set.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#define TOKOPS_BACKEND_KEY CUDA
namespace tokops {
inline constexpr bool kOnHost = false;
// Makes t's device current for its lifetime and names the stream to launch on.
struct Launch {
  torch::stable::accelerator::DeviceGuard guard;
  Queue queue;
  explicit Launch(const Tensor& t) : guard(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &queue.stream));
  }
};
}  // namespace tokops
#else
#define TOKOPS_BACKEND_KEY CPU
namespace tokops {
inline constexpr bool kOnHost = true;
struct Launch {
  Queue queue;
  explicit Launch(const Tensor&) {
    queue.pool = [](int64_t b, int64_t e, int64_t g, void (*f)(int64_t, int64_t, void*), void* c) {
      TORCH_ERROR_CODE_CHECK(torch_parallel_for(b, e, g, f, c));
    };
  }
};
}  // namespace tokops
#endif

// TOKOPS_IMPL(m) { m.impl("name", TORCH_BOX(&fn)); }
#define TOKOPS_IMPL_(key, m) STABLE_TORCH_LIBRARY_IMPL(tokops, key, m)
#define TOKOPS_IMPL_EXPAND(key, m) TOKOPS_IMPL_(key, m)
#define TOKOPS_IMPL(m) TOKOPS_IMPL_EXPAND(TOKOPS_BACKEND_KEY, m)
