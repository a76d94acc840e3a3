#include <tuple>
#include <vector>

#include "attention/decode_arguments.h"
#include "attention/parts.h"
#include "common/check.h"

namespace tokops {
namespace {

constexpr const char* kOp = "packed_decode";
constexpr int kTensors = 14, kNumbers = 4;  // of every part, as in python/tokops/attention/parts.py

// One part's tensors by name; an operand that is not there is empty.
struct PartTensors {
  Tensor k, k_scale, k_zero, k_norm, v, v_scale, v_zero, v_norm, table, lens, first, begin,
      positions, where;
  int64_t k_codec, v_codec, slot_base, k_tiles;
};

std::string name_of(size_t part, const char* what) {
  return "parts[" + std::to_string(part) + "]." + what;
}

Codec codec_of(int64_t code, const std::string& name) {
  STD_TORCH_CHECK(code >= 0 && code <= int(Codec::e5m2), kOp, ": ", name, " must be 0..5, got ",
                  code);
  return Codec(code);
}

int64_t packed_bytes(Codec codec, int64_t dim) {
  return codec == Codec::int4 ? dim / 2 : codec == Codec::int2 ? dim / 4 : dim;
}

// Checks of one pool [N, H, P, row] and what is known of it from the queries.
void check_data(const Tensor& t, Codec codec, const std::string& name, const Tensor& q) {
  STD_TORCH_CHECK(t.dim() == 4, kOp, ": ", name, " must have 4 dimensions, got ", t.dim());
  const bool full = codec == Codec::full;
  check_dtype(t, full ? q.scalar_type() : ScalarType::Byte, kOp, name.c_str());
  check_device(t, q, kOp, name.c_str());
  const int64_t dim = q.size(3), row = full ? dim : packed_bytes(codec, dim);
  STD_TORCH_CHECK(full || dim % (codec == Codec::int4 || codec == Codec::int2 ? 32 : 16) == 0, kOp,
                  ": the codec of ", name, " needs a head dimension that is a multiple of ",
                  codec == Codec::int4 || codec == Codec::int2 ? 32 : 16, ", got ", dim);
  STD_TORCH_CHECK(t.size(3) == row, kOp, ": ", name, " must have rows of ", row,
                  " for head dimension ", dim, ", got ", t.size(3));
  STD_TORCH_CHECK(t.size(3) <= 1 || t.stride(3) == 1, kOp, ": ", name,
                  " must have a contiguous last dimension");
}

void fill_scale(Side& x, const Tensor& scale, const std::string& name) {
  STD_TORCH_CHECK(scale.dim() == 4, kOp, ": ", name, "_scale must have 4 dimensions, got ",
                  scale.dim());
  STD_TORCH_CHECK(
      scale.scalar_type() == ScalarType::Half || scale.scalar_type() == ScalarType::Float, kOp,
      ": ", name, "_scale must be float16 or float32, got ", dtype_name(scale.scalar_type()));
  x.scale = scale.const_data_ptr();
  x.wide_scale = scale.scalar_type() == ScalarType::Float;
  x.s_n = scale.stride(0), x.s_h = scale.stride(1), x.s_p = scale.stride(2),
  x.s_g = scale.stride(3);
}

void fill_zero(Side& x, const Tensor& scale, const Tensor& zero, const std::string& name) {
  if (zero.numel() == 0 && zero.dim() != 4) return;  // not given
  check_dtype(zero, scale.scalar_type(), kOp, (name + "_zero").c_str());
  check_device(zero, scale, kOp, (name + "_zero").c_str());
  bool same = zero.dim() == 4;
  for (int64_t i = 0; same && i < 4; ++i)
    same =
        zero.size(i) == scale.size(i) && (zero.size(i) <= 1 || zero.stride(i) == scale.stride(i));
  STD_TORCH_CHECK(same, kOp, ": ", name, "_zero must have the shape and strides of ", name,
                  "_scale ", list_of(scale.sizes()), ", got ", list_of(zero.sizes()));
  x.zero = zero.const_data_ptr();
}

// Geometry out of the scale's shape: [N, H, P, D / group], [1, H, 1, 1] or [N, H, P / group, D].
void fill_geometry(Side& x, const Tensor& data, const Tensor& scale, const std::string& name,
                   int64_t dim, bool per_head) {
  const int64_t rows = scale.size(2), columns = scale.size(3), P = data.size(2);
  const int64_t least = x.codec == Codec::int4 || x.codec == Codec::int2 ? 32 : 16;
  const bool head = rows == 1 && columns == 1 && P > 1 && dim > 1;
  x.channel = !head && columns == dim && rows != P && rows > 0 && P % rows == 0;
  const bool token = rows == P && columns > 0 && dim % columns == 0 && dim / columns % least == 0;
  STD_TORCH_CHECK(head || x.channel || token, kOp, ": ", name, "_scale must be [N, H, ", P, ", ",
                  dim, " / group] with a group of a multiple of ", least, ", [N, H, ", P,
                  " / group, ", dim, "] or [N, H, 1, 1], got ", list_of(scale.sizes()));
  const auto fits = [](int64_t got, int64_t want) { return got == want || got == 1; };
  STD_TORCH_CHECK(fits(scale.size(0), data.size(0)) && fits(scale.size(1), data.size(1)), kOp, ": ",
                  name, "_scale must have the pages and heads of ", name, " ",
                  list_of(data.sizes()), ", got ", list_of(scale.sizes()));
  STD_TORCH_CHECK(scale.size(1) == data.size(1) || !per_head, kOp, ": ", name,
                  "_scale must have one head per page");
  x.group = int32_t(x.channel ? P / rows : head ? dim : dim / columns);
  if (scale.size(0) == 1) x.s_n = 0;
  if (scale.size(1) == 1) x.s_h = 0;
  if (head) x.s_p = x.s_g = 0;
}

Side side_of(const Tensor& data, const Tensor& scale, const Tensor& zero, const Tensor& norm,
             int64_t code, const std::string& name, const Tensor& q, bool per_head) {
  Side x{};
  x.codec = codec_of(code, name + "_codec");
  check_data(data, x.codec, name, q);
  x.data = data.const_data_ptr();
  const int64_t size =
      x.codec == Codec::full ? (data.scalar_type() == ScalarType::Float ? 4 : 2) : 1;
  x.n = data.stride(0) * size, x.h = per_head ? 0 : data.stride(1) * size,
  x.p = data.stride(2) * size;
  if (x.codec != Codec::full) {
    check_device(scale, q, kOp, (name + "_scale").c_str());
    fill_scale(x, scale, name);
    fill_geometry(x, data, scale, name, q.size(3), per_head);
    fill_zero(x, scale, zero, name);
    if (per_head) x.s_h = 0;
  }
  if (norm.dim() != 1 || norm.numel() != 0) {  // given
    check_tensor(kOp, (name + "_norm").c_str(), norm, 3, {ScalarType::Half}, q);
    check_shape(kOp, (name + "_norm").c_str(), norm, {data.size(0), data.size(1), data.size(2)},
                "[N, H, P]");
    x.norm = static_cast<const uint16_t*>(norm.const_data_ptr());
    x.norm_n = norm.stride(0), x.norm_h = per_head ? 0 : norm.stride(1), x.norm_p = norm.stride(2);
  }
  return x;
}

const int32_t* ints_or_null(Tensor& t, const std::string& name, const std::vector<int64_t>& shape,
                            const char* words, const Tensor& q) {
  if (t.dim() == 1 && t.numel() == 0) return nullptr;  // not given
  check_dtype(t, ScalarType::Int, kOp, name.c_str());
  check_device(t, q, kOp, name.c_str());
  check_shape(kOp, name.c_str(), t, shape, words);
  t = torch::stable::contiguous(t);
  return static_cast<const int32_t*>(t.const_data_ptr());
}

// Keys in tiles of 16 tokens: a kernel of the CPU's reads them, all of them.
void check_tiles(const Side& k, const Tensor& data, const std::string& name, bool selected) {
  STD_TORCH_CHECK(kOnHost, kOp, ": ", name, "_tiles: keys in tiles are read by the CPU alone");
  STD_TORCH_CHECK(k.codec == Codec::int8 || k.codec == Codec::int4 || k.codec == Codec::int2, kOp,
                  ": ", name, "_tiles needs codes of int8, int4 or int2, got codec ", int(k.codec));
  STD_TORCH_CHECK(data.size(2) % 16 == 0, kOp, ": ", name,
                  "_tiles needs a page size that is a multiple of 16, got ", data.size(2));
  STD_TORCH_CHECK(data.size(2) <= 1 || data.stride(2) == data.size(3), kOp, ": ", name,
                  "_tiles needs pages whose rows lie one behind the other");
  STD_TORCH_CHECK(!selected, kOp, ": ", name,
                  "_tiles: keys in tiles are read densely, not selected");
}

int64_t heads_of(const PartTensors& x) {
  return x.table.dim() == 3 ? x.table.size(1) : x.k.size(1);
}

Part part_of(PartTensors& x, size_t i, const Tensor& q, int64_t heads, bool selected) {
  const int64_t batch = q.size(0);
  check_dtype(x.table, ScalarType::Int, kOp, name_of(i, "block_table").c_str());
  check_device(x.table, q, kOp, name_of(i, "block_table").c_str());
  STD_TORCH_CHECK(x.table.dim() == 2 || x.table.dim() == 3, kOp, ": ", name_of(i, "block_table"),
                  " must have 2 or 3 dimensions, got ", x.table.dim());
  const bool per_head = x.table.dim() == 3;
  Part p{};
  p.k = side_of(x.k, x.k_scale, x.k_zero, x.k_norm, x.k_codec, name_of(i, "k"), q, per_head);
  STD_TORCH_CHECK(x.k_tiles == 0 || x.k_tiles == 1, kOp, ": ", name_of(i, "k"),
                  "_tiles must be 0 or 1, got ", x.k_tiles);
  if (x.k_tiles) check_tiles(p.k, x.k, name_of(i, "k"), selected);
  p.k.tiles = x.k_tiles == 1;
  p.v = side_of(x.v, x.v_scale, x.v_zero, x.v_norm, x.v_codec, name_of(i, "v"), q, per_head);
  for (int d = 0; d < 3; ++d)
    STD_TORCH_CHECK(x.v.size(d) == x.k.size(d), kOp, ": ", name_of(i, "v"),
                    " must have the pages, heads and page size of ", name_of(i, "k"), " ",
                    list_of(x.k.sizes()), ", got ", list_of(x.v.sizes()));
  STD_TORCH_CHECK(!per_head || x.k.size(1) == 1, kOp, ": ", name_of(i, "k"),
                  " must have one head per page when block_table is [B, Hkv, pages], got ",
                  x.k.size(1));
  STD_TORCH_CHECK(heads_of(x) == heads && x.table.size(0) == batch, kOp, ": ",
                  name_of(i, "block_table"), " must be of ", batch, " sequences and ", heads,
                  " KV heads, got ", list_of(x.table.sizes()));
  x.table = torch::stable::contiguous(x.table);
  p.table = static_cast<const int32_t*>(x.table.const_data_ptr());
  p.table_b = x.table.stride(0), p.table_h = per_head ? x.table.stride(1) : 0;
  p.pages = x.table.size(-1), p.P = x.k.size(2), p.pages_in_pool = x.k.size(0);
  const int64_t cap = int64_t(p.pages) * p.P;
  STD_TORCH_CHECK(cap < INT32_MAX, kOp, ": pages * page size must be below 2^31, got ", cap);
  const bool head_lens = x.lens.dim() == 2;
  p.lens =
      ints_or_null(x.lens, name_of(i, "lens"),
                   head_lens ? std::vector<int64_t>{batch, heads} : std::vector<int64_t>{batch},
                   head_lens ? "[B, Hkv]" : "[B]", q);
  STD_TORCH_CHECK(p.lens || batch == 0, kOp, ": ", name_of(i, "lens"), " must be [B] or [B, Hkv]");
  p.lens_b = head_lens ? heads : 1, p.lens_h = head_lens ? 1 : 0;
  p.first = ints_or_null(x.first, name_of(i, "first"), {batch}, "[B]", q);
  p.begin = ints_or_null(x.begin, name_of(i, "begin"), {batch}, "[B]", q);
  p.positions = ints_or_null(x.positions, name_of(i, "positions"), {batch, heads, cap},
                             "[B, Hkv, pages * P]", q);
  STD_TORCH_CHECK(!p.positions || (!p.first && !p.begin), kOp, ": ", name_of(i, "positions"),
                  " excludes first and begin");
  if (x.where.dim() != 1 || x.where.numel() != 0) {  // given
    check_tensor(kOp, name_of(i, "where").c_str(), x.where, 3, {ScalarType::Int}, q);
    p.where_len = x.where.size(2);
    p.where = ints_or_null(x.where, name_of(i, "where"), {batch, heads, p.where_len},
                           "[B, Hkv, length]", q);
  }
  STD_TORCH_CHECK(x.slot_base >= 0 && x.slot_base <= INT32_MAX, kOp, ": ", name_of(i, "slot_base"),
                  " must be 0..2^31-1, got ", x.slot_base);
  p.slot_base = int32_t(x.slot_base);
  return p;
}

// Values on the host: lengths and pages in range, positions and places within the sequence.
void check_part_values(const PackedDecode& d, const Part& p, size_t i) {
  const int64_t cap = int64_t(p.pages) * p.P;
  for (int64_t b = 0; b < d.base.B; ++b) {
    const int64_t length = d.base.seq_lens[b];
    STD_TORCH_CHECK((!p.first || p.first[b] >= 0) && (!p.begin || p.begin[b] >= 0), kOp, ": ",
                    name_of(i, "first"), " and begin must be >= 0, sequence ", b, " has others");
    for (int64_t h = 0; h < d.base.Hkv; ++h) {
      const int64_t n = p.lens[b * p.lens_b + h * p.lens_h];
      STD_TORCH_CHECK(n >= 0 && n <= cap, kOp, ": ", name_of(i, "lens"), " must be 0..", cap,
                      " (pages * page size), got ", n, " for sequence ", b);
      const int32_t* row = p.table + b * p.table_b + h * p.table_h;
      bool inside = true;
      for (int64_t j = 0; j < (n + p.P - 1) / (p.P > 0 ? p.P : 1); ++j)
        inside &= row[j] >= 0 && row[j] < p.pages_in_pool;
      STD_TORCH_CHECK(inside, kOp, ": ", name_of(i, "block_table"), " entries must be 0..",
                      p.pages_in_pool - 1, " for pages in use, sequence ", b, " has others");
      if (p.positions) {
        const int32_t* pos = p.positions + (b * d.base.Hkv + h) * cap;
        for (int64_t j = 0; j < n; ++j) inside &= pos[j] >= 0 && pos[j] < length;
        STD_TORCH_CHECK(inside, kOp, ": ", name_of(i, "positions"),
                        " must be 0..seq_lens-1 for slots in use");
      }
    }
    STD_TORCH_CHECK(!(p.positions && d.base.selected) || (p.where && p.where_len >= length), kOp,
                    ": ", name_of(i, "where"),
                    " must reach to seq_lens where positions are selected");
  }
}

std::tuple<Tensor, Tensor, Tensor> packed_decode_op(
    const Tensor& q, std::vector<Tensor> tensors, std::vector<int64_t> numbers, const Tensor& lens,
    OptTensor q_lens, OptTensor starts, std::optional<double> scale, OptTensor selected,
    OptTensor counts, OptTensor ancestors, OptTensor sink_logit, OptTensor log_gamma,
    std::optional<double> softcap, std::optional<int64_t> window, bool rotate, bool q_int8,
    std::optional<int64_t> max_len) {
  const size_t n = tensors.size() / kTensors;
  STD_TORCH_CHECK(
      tensors.size() % kTensors == 0 && n >= 1 && n <= kMaxParts && numbers.size() == n * kNumbers,
      kOp, ": parts must be 1..", kMaxParts, " parts of ", kTensors, " tensors and ", kNumbers,
      " numbers, got ", tensors.size(), " and ", numbers.size());
  DecodeArguments a{kOp,       q,          lens,      q_lens, starts,  selected, counts,
                    ancestors, sink_logit, log_gamma, scale,  softcap, window};
  std::vector<PartTensors> parts;
  for (size_t i = 0; i < n; ++i) {
    const Tensor* t = tensors.data() + i * kTensors;
    const int64_t* x = numbers.data() + i * kNumbers;
    parts.push_back({t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11],
                     t[12], t[13], x[0], x[1], x[2], x[3]});
    STD_TORCH_CHECK(t[0].dim() == 4, kOp, ": ", name_of(i, "k"), " must have 4 dimensions, got ",
                    t[0].dim());
  }
  const int64_t heads = heads_of(parts[0]);
  check_queries(a, heads);
  check_extras(a, heads);
  check_vector(lens, ScalarType::Int, q.size(0), q, kOp, "seq_lens", "[B]");
  STD_TORCH_CHECK(!max_len || (*max_len >= 0 && !selected), kOp,
                  ": scores come out of the dense pass: max_len must be >= 0 and selected None");
  PackedDecode d{};
  fill_arguments(d.base, a, heads);
  d.base.P = 1, d.base.pages = INT32_MAX;  // lengths are logical: no pool bounds them
  d.base.v = d.base.q;                     // any address: values are read
  d.base.rotate = rotate, d.base.q_int8 = q_int8, d.n_parts = int32_t(n);
  for (size_t i = 0; i < n; ++i)
    d.parts[i] = part_of(parts[i], i, a.q, heads, selected.has_value());
  if (kOnHost) {
    check_page_values(kOp, PageValues{nullptr, 0, 0, d.base.seq_lens, 1, 0, d.base.B, heads, 1,
                                      INT32_MAX, 0, d.base.q_lens, d.base.starts, d.base.T});
    for (size_t i = 0; i < n; ++i) check_part_values(d, d.parts[i], i);
    if (d.base.selected) check_selection(kOp, d.base);
  }
  DecodeResults r = new_results(d.base, a, true);
  d.base.score_len = max_len.value_or(0);
  if (max_len)
    new_scores(d.base, a, r);
  else
    r.scores = torch::stable::new_empty(a.q, std::array<int64_t, 1>{0}, ScalarType::Float);
  if (d.base.B == 0) return {r.out, r.lse, r.scores};
  Launch launch(a.q);
  const Tensor workspace = torch::stable::new_empty(
      a.q, std::array<int64_t, 1>{int64_t(packed_decode_workspace(d) + 7) / 8}, ScalarType::Long);
  d.base.workspace = workspace.mutable_data_ptr();
  packed_decode(d, launch.queue);
  return {r.out, r.lse, r.scores};
}

}  // namespace

TOKOPS_IMPL(m) { m.impl("packed_decode", TORCH_BOX(&packed_decode_op)); }
}  // namespace tokops
