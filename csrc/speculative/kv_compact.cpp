#include "speculative/kv_compact.h"

#include <algorithm>
#include <array>

#include "common/check.h"

namespace tokops {
namespace {

using torch::stable::contiguous;

constexpr const char* kOp = "kv_compact";

// A pool, asked of torch once: there are two for every layer, and every question is a call.
struct Pool {
  char* data;
  int64_t element;
  std::array<int64_t, 4> size, stride;

  // Whether both can be moved by one launch.
  bool like(const Pool& other) const {
    return element == other.element && size == other.size && stride == other.stride;
  }
};

// The pools of one argument: [N, H, P, D], or several in one tensor, [L, N, H, P, D].
void add_pools(std::vector<Pool>* pools, const Tensor& t, size_t index, const Tensor& table) {
  const auto name = [&] { return "pools[" + std::to_string(index) + "]"; };
  const auto sizes = t.sizes(), strides = t.strides();
  const size_t dims = sizes.size();
  STD_TORCH_CHECK(dims == 4 || dims == 5, kOp, ": ", name(), " must have 4 or 5 dimensions, got ",
                  dims);
  STD_TORCH_CHECK(t.device() == table.device(), kOp, ": ", name(),
                  " must be on the same device as the first argument");
  Pool pool{static_cast<char*>(t.mutable_data_ptr()), int64_t(t.element_size()), {}, {}};
  std::copy(sizes.end() - 4, sizes.end(), pool.size.begin());
  std::copy(strides.end() - 4, strides.end(), pool.stride.begin());
  STD_TORCH_CHECK(pool.size[3] <= 1 || pool.stride[3] == 1, kOp, ": ", name(),
                  " must have a contiguous last dimension");
  const int64_t count = dims == 5 ? sizes[0] : 1, step = dims == 5 ? strides[0] : 0;
  STD_TORCH_CHECK(count < 2 || step != 0, kOp, ": pools must not hold a pool twice");
  for (int64_t i = 0; i < count; ++i, pool.data += step * pool.element) pools->push_back(pool);
}

// A pool that is named twice would lose rows: they would move from where they are no longer.
void check_distinct(const std::vector<Tensor>& tensors) {
  std::vector<const void*> begins;
  begins.reserve(tensors.size());
  for (const Tensor& t : tensors)
    if (t.numel()) begins.push_back(t.const_data_ptr());
  std::sort(begins.begin(), begins.end());
  STD_TORCH_CHECK(std::adjacent_find(begins.begin(), begins.end()) == begins.end(), kOp,
                  ": pools must not hold a pool twice");
}

void check_shape_of(const Pool& pool, size_t index, bool per_head, const Pool& first) {
  const int64_t heads = per_head ? 1 : first.size[1];
  const bool fits =
      pool.size[0] == first.size[0] && pool.size[1] == heads && pool.size[2] == first.size[2];
  STD_TORCH_CHECK(fits, kOp, ": pools[", std::to_string(index), "] must be [N, H, P, D] with N ",
                  first.size[0], ", H ", heads, ", P ", first.size[2], ", got ",
                  list_of(pool.size));
}

// rows ascending from 0 up, base + rows inside the table, and its entries inside the pools.
void check_values(const KvCompact& p) {
  const int64_t cap = int64_t(p.pages) * p.P, heads = p.base_h ? p.H : 1;
  for (int64_t b = 0; b < p.B; ++b) {
    const int32_t* row = p.rows + b * p.n;
    const int64_t live = p.counts ? p.counts[b] : p.n;
    STD_TORCH_CHECK(live >= 0 && live <= p.n, kOp, ": counts must be 0..", p.n, ", got ", live,
                    " for sequence ", b);
    int64_t last = -1;
    for (int64_t j = 0; j < live; last = row[j++])
      STD_TORCH_CHECK(row[j] > last, kOp, ": rows must be strictly ascending from 0 up");
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t base = p.base[b * p.base_b + h * p.base_h], end = base + last + 1;
      STD_TORCH_CHECK(base >= 0 && end <= cap, kOp, ": base must be >= 0 and base + rows below ",
                      cap, " (pages * page size), got base ", base, " for sequence ", b);
      const int32_t* entry = p.table + b * p.table_b + h * p.table_h;
      for (int64_t i = base / p.P; live && i * p.P < end; ++i)
        STD_TORCH_CHECK(entry[i] >= 0 && entry[i] < p.pages_in_pool, kOp,
                        ": block_table entries must be 0..", p.pages_in_pool - 1,
                        " for pages in use, sequence ", b, " has others");
    }
  }
}

void kv_compact_op(const std::vector<Tensor>& tensors, const Tensor& block_table,
                   const Tensor& base, const Tensor& rows, const std::optional<Tensor>& counts) {
  STD_TORCH_CHECK(block_table.dim() == 2 || block_table.dim() == 3, kOp,
                  ": block_table must have 2 or 3 dimensions, got ", block_table.dim());
  check_dtype(block_table, ScalarType::Int, kOp, "block_table");
  const bool per_head = block_table.dim() == 3;
  std::vector<int64_t> shape = shape_of(block_table);
  shape.pop_back();
  check_tensor(kOp, "base", base, int64_t(shape.size()), {ScalarType::Int}, block_table);
  check_shape(kOp, "base", base, shape, "block_table's shape without its last axis");
  check_tensor(kOp, "rows", rows, 2, {ScalarType::Int}, block_table);
  STD_TORCH_CHECK(rows.size(0) == shape[0], kOp, ": rows must be [B, n] with B ", shape[0],
                  ", got ", list_of(rows.sizes()));
  if (counts) {
    check_tensor(kOp, "counts", *counts, 1, {ScalarType::Int}, block_table);
    check_shape(kOp, "counts", *counts, {shape[0]}, "[B]");
  }
  std::vector<Pool> pools;
  pools.reserve(2 * tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    add_pools(&pools, tensors[i], i, block_table);
    if (!pools.empty()) check_shape_of(pools.back(), i, per_head, pools.front());
  }
  check_distinct(tensors);
  if (pools.empty()) return;
  const Pool& first = pools.front();
  const Tensor table = contiguous(block_table), starts = contiguous(base), kept = contiguous(rows);
  const auto live = contiguous_or_none(counts);
  const int64_t pages = table.size(table.dim() - 1);
  STD_TORCH_CHECK(pages * first.size[2] < INT32_MAX, kOp,
                  ": pages * page size must be below 2^31, got ", pages * first.size[2]);
  KvCompact p{};
  p.table = static_cast<const int32_t*>(table.const_data_ptr());
  p.H = int32_t(per_head ? shape[1] : first.size[1]);
  p.table_b = per_head ? p.H * pages : pages;
  p.table_h = per_head ? pages : 0;
  p.base = static_cast<const int32_t*>(starts.const_data_ptr());
  p.base_b = per_head ? p.H : 1;
  p.base_h = per_head ? 1 : 0;
  p.rows = static_cast<const int32_t*>(kept.const_data_ptr());
  p.counts = data_or_null<int32_t>(live);
  p.B = int32_t(shape[0]);
  p.P = int32_t(first.size[2]);
  p.pages = int32_t(pages);
  p.n = int32_t(kept.size(1));
  p.pages_in_pool = first.size[0];
  if (kOnHost) check_values(p);
  if (kept.numel() == 0 || p.H == 0) return;
  Launch launch(table);
  for (size_t i = 0; i < pools.size();) {
    const Pool& like = pools[i];
    p.page = like.stride[0] * like.element;
    p.head = per_head ? 0 : like.stride[1] * like.element;
    p.slot = like.stride[2] * like.element;
    p.row_bytes = int32_t(like.size[3] * like.element);
    uint64_t bits = uint64_t(p.page) | uint64_t(p.head) | uint64_t(p.slot) | uint64_t(p.row_bytes);
    for (p.count = 0; i < pools.size() && p.count < kMostPools && pools[i].like(like); ++i) {
      p.pools[p.count] = pools[i].data;
      bits |= reinterpret_cast<uintptr_t>(p.pools[p.count++]);
    }
    p.unit = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;
    if (p.row_bytes) kv_compact(p, launch.queue);
  }
}

}  // namespace
TOKOPS_IMPL(m) { m.impl("kv_compact", TORCH_BOX(&kv_compact_op)); }
}  // namespace tokops
