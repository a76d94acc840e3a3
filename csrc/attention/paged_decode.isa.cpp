// paged_decode and packed_decode. Copies for AMX and AVX-VNNI are asked for by the words
// __AMX_BF16__ and __AVXVNNI__ (cmake/TokopsIsa.cmake): see tiles_amx.h and packed_dot8.h.
#include "attention/decode_items.h"
#include "common/isa.h"

namespace tokops {
namespace {

// The pools of a call as its only part.
Part part_of(const PagedDecode& p) {
  const int64_t size = p.dtype == DType::f32 ? 4 : 2;
  Part x{};
  x.k = {.data = p.k, .n = p.k_n * size, .h = p.k_h * size, .p = p.k_p * size};
  x.v = {.data = p.v, .n = p.v_n * size, .h = p.v_h * size, .p = p.v_p * size};
  x.table = p.table, x.table_b = p.table_b, x.table_h = p.table_h;
  x.lens = p.seq_lens, x.lens_b = p.lens_b, x.lens_h = p.lens_h;
  x.pages_in_pool = p.pages_in_pool, x.P = p.P, x.pages = p.pages;
  return x;
}

void paged_decode_copy(const PagedDecode& p, const Queue& q) {
  const Part part = part_of(p);
  decode(Grid(p, &part, 1), q);
}

void packed_decode_copy(const PackedDecode& p, const Queue& q) {
  decode(Grid(p.base, p.parts, p.n_parts), q);
}

}  // namespace
}  // namespace tokops
TOKOPS_ISA_KERNEL(paged_decode, paged_decode_copy, PagedDecode)
TOKOPS_ISA_KERNEL(packed_decode, packed_decode_copy, PackedDecode)

#if TOKOPS_ISA_IS_BASE
namespace tokops {
size_t paged_decode_workspace(const PagedDecode& p) {
  const Part part = part_of(p);
  return decode_workspace(Grid(p, &part, 1));
}
size_t packed_decode_workspace(const PackedDecode& p) {
  return decode_workspace(Grid(p.base, p.parts, p.n_parts));
}
}  // namespace tokops
#endif
