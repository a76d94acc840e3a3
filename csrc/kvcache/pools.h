// Checks of packed pools and their tables, in the words of tokops/kvcache/packing.py. For bindings.
#pragma once
#include <string>

#include "attention/pages.h"
#include "common/check.h"
#include "kvcache/codec.h"

namespace tokops {

// A scale's strides, 0 along axes of one entry that stand for all.
inline void set_strides(const Tensor& t, int64_t* n, int64_t* h, int64_t* p, int64_t* d) {
  *n = t.size(0) == 1 ? 0 : t.stride(0);
  *h = t.size(1) == 1 ? 0 : t.stride(1);
  *p = t.stride(2);
  *d = t.stride(3);
}

// Which elements share a scale of that shape, or false.
inline bool find_geometry(const Tensor& scale, PackedPool* p, int64_t heads) {
  const int64_t n = scale.size(0), rows = scale.size(2), columns = scale.size(3);
  if (scale.size(1) != heads) return false;
  if (n == p->pages && rows == p->P && columns > 0 && p->D % columns == 0) {
    p->geometry = Geometry::token;
    p->group = int32_t(p->D / columns);
  } else if ((n == p->pages || n == 1) && rows == 1 && columns == 1) {
    p->geometry = Geometry::head;
    p->group = p->D;
  } else if (n == p->pages && rows > 0 && p->P > 0 && p->P % rows == 0 && columns == p->D) {
    p->geometry = Geometry::channel;
    p->group = int32_t(p->P / rows);
  } else {
    return false;
  }
  return true;
}

inline void set_scales(const char* op, const std::string& of, const Tensor& codes,
                       const Tensor& scale, const Tensor& zero, PackedPool* p) {
  check_tensor(op, (of + "scale").c_str(), scale, 4, {ScalarType::Half, ScalarType::Float}, codes);
  STD_TORCH_CHECK(
      find_geometry(scale, p, codes.size(1)), op, ": ", of,
      "scale must be [N, H, P, D/group], [N, H, P/group, D] or [N or 1, H, 1, 1] with N ", p->pages,
      ", H ", codes.size(1), ", P ", p->P, ", D ", p->D, ", got ", list_of(scale.sizes()));
  p->scale_dtype = scale.scalar_type() == ScalarType::Half ? DType::f16 : DType::f32;
  p->scale = scale.mutable_data_ptr();
  set_strides(scale, &p->scale_n, &p->scale_h, &p->scale_p, &p->scale_d);
  if (zero.numel() == 0 && (p->kind == CodecKind::int8 || is_fp8(p->kind) || scale.numel() == 0))
    return;
  STD_TORCH_CHECK(!is_fp8(p->kind), op, ": ", of, "zero must be empty for fp8, got ",
                  list_of(zero.sizes()));
  check_shape(op, (of + "zero").c_str(), zero, shape_of(scale), "the shape of the scale");
  check_tensor(op, (of + "zero").c_str(), zero, 4, {scale.scalar_type()}, codes);
  p->zero = zero.mutable_data_ptr();
  set_strides(zero, &p->zero_n, &p->zero_h, &p->zero_p, &p->zero_d);
}

// The codes of a pool, without scales; `of` is "k_", "v_", ... or "".
inline PackedPool packed_codes(const char* op, const std::string& of, const Tensor& codes,
                               int64_t codec) {
  STD_TORCH_CHECK(codec >= 0 && codec <= 6, op, ": ", of, "codec must be 0..6, got ", codec);
  PackedPool p{};
  p.kind = CodecKind(codec);
  const std::string name = of + "codes";
  const bool full = p.kind == CodecKind::full;
  if (full)
    check_tensor(op, name.c_str(), codes, 4,
                 {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, codes);
  else
    check_tensor(op, name.c_str(), codes, 4, {ScalarType::Byte}, codes);
  STD_TORCH_CHECK(codes.size(3) <= 1 || codes.stride(3) == 1, op, ": ", name,
                  " must have a contiguous last dimension");
  const int bits = bits_of(p.kind);
  const int64_t dim = full ? codes.size(3) : codes.size(3) * 8 / bits;
  STD_TORCH_CHECK(dim >= 1 && dim <= kMaxHeadDim, op, ": ", name, " must hold 1..", kMaxHeadDim,
                  " elements per row, got ", dim);
  STD_TORCH_CHECK(full || bits == 8 || dim % kPackBlock == 0, op, ": ", name,
                  " must hold whole blocks of ", kPackBlock, " elements per row, got ", dim);
  const int64_t size = int64_t(codes.element_size());
  p.codes = static_cast<char*>(codes.mutable_data_ptr());
  p.codes_n = codes.stride(0) * size;
  p.codes_h = codes.size(1) == 1 ? 0 : codes.stride(1) * size;
  p.codes_p = codes.stride(2) * size;
  p.pages = codes.size(0);
  p.P = int32_t(codes.size(2));
  p.D = int32_t(dim);
  if (full) p.dtype = dtype_of(codes, op, name.c_str());
  return p;
}

// The pool that three tensors and a codec make.
inline PackedPool packed_pool(const char* op, const std::string& of, const Tensor& codes,
                              const Tensor& scale, const Tensor& zero, int64_t codec) {
  PackedPool p = packed_codes(op, of, codes, codec);
  if (p.kind == CodecKind::full) {
    STD_TORCH_CHECK(scale.numel() == 0 && zero.numel() == 0, op, ": ", of, "scale and ", of,
                    "zero must be empty for codec 0");
  } else {
    set_scales(op, of, codes, scale, zero, &p);
  }
  return p;
}

// Checks the second pool of a table against its first; D may differ.
inline void check_pair(const char* op, const std::string& of, const Tensor& v, const Tensor& k) {
  check_device(v, k, op, (of + "v_codes").c_str());
  for (int i = 0; i < 3; ++i)
    STD_TORCH_CHECK(v.size(i) == k.size(i), op, ": ", of, "v_codes must have the N, H and P of ",
                    of, "k_codes ", list_of(k.sizes()), ", got ", list_of(v.sizes()));
}

// Checks a contiguous table against a pool's codes; returns the number of KV heads.
inline int64_t check_table(const char* op, const char* name, const Tensor& table,
                           const Tensor& codes) {
  check_dtype(table, ScalarType::Int, op, name);
  check_device(table, codes, op, name);
  STD_TORCH_CHECK(table.dim() == 2 || table.dim() == 3, op, ": ", name,
                  " must have 2 or 3 dimensions, got ", table.dim());
  STD_TORCH_CHECK(table.dim() == 2 || codes.size(1) == 1, op, ": ", name,
                  " [B, Hkv, pages] needs one head per page, got ", codes.size(1));
  STD_TORCH_CHECK(table.size(-1) * codes.size(2) < INT32_MAX, op,
                  ": pages * page size must be below 2^31, got ", table.size(-1) * codes.size(2));
  return table.dim() == 3 ? table.size(1) : codes.size(1);
}

inline PageTable page_table(const Tensor& table) {
  const int64_t pages = table.size(-1);
  const bool per_head = table.dim() == 3;
  return {static_cast<const int32_t*>(table.const_data_ptr()),
          per_head ? table.size(1) * pages : pages, per_head ? pages : 0, int32_t(pages)};
}

}  // namespace tokops
