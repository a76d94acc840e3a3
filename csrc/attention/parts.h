// Parts of a cache: pools of pages, full-precision or packed, that one attention call reads
// together.
#pragma once
#include <type_traits>

#include "attention/paged_decode.h"

namespace tokops {

// How keys or values are kept. The numbers are those of tokops.kvcache.Codec.code; int3 is int4
// with eight levels.
enum class Codec : int { full, int8, int4, int2, e4m3, e5m2 };

// Keys or values of one part. x = (code * scale + zero) * norm. Strides count bytes for data, else
// elements.
struct Side {
  const void* data;          // [N, H, P, row]: rows of D elements of q's dtype, or packed codes
  int64_t n, h, p;           // strides of data
  const void *scale, *zero;  // token geometry [N, H, P, D / group], channel geometry [N, H, P /
                             // group, D]; zero null: -128 * scale for int8, else 0
  int64_t s_n, s_h, s_p,
      s_g;  // strides of both: page, head, token (or group of tokens), group of dims (or dim)
  const uint16_t* norm;            // [N, H, P] float16 or null; NaN: the slot holds nothing
  int64_t norm_n, norm_h, norm_p;  // strides
  Codec codec;
  bool wide_scale;  // scale and zero are float32, else float16
  bool channel;     // geometry: scales by dim, shared by `group` tokens
  bool tiles;       // pages are tiles of 16 tokens (kvcache/kv_relayout.h), p the bytes of a row
  int32_t group;    // dims (token geometry) or tokens (channel geometry) that share a scale
};

// Slot s of (sequence b, KV head h) holds logical position first[b] + s, or positions[b, h, s].
struct Part {
  Side k, v;
  const int32_t* table;  // [B, (Hkv,) pages]; head strides are 0 where the heads share
  int64_t table_b, table_h;
  const int32_t* lens;  // [B, (Hkv)]: slots in use
  int64_t lens_b, lens_h;
  int64_t pages_in_pool;
  int32_t P, pages;
  const int32_t *first, *begin;  // [B] or null (0); slots below begin are not part of it
  const int32_t *positions,
      *where;  // [B, Hkv, pages * P] and [B, Hkv, where_len], contiguous, or null
  int64_t where_len;
  int32_t slot_base;  // where holds slot_base + s for slot s of this part, anything else for others
};

constexpr int kMaxParts = 16;

struct PackedDecode {
  PagedDecode
      base;  // everything but the pools: lengths, selections and scores are by logical position
  Part parts[kMaxParts];
  int32_t n_parts;
};

// As for paged_decode; packed_decode on the CPU is in paged_decode.isa.cpp.
size_t packed_decode_workspace(const PackedDecode& p);
void packed_decode(const PackedDecode& p, const Queue& q);

}  // namespace tokops
