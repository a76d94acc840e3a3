// The attention kernel of paged_decode around the arithmetic on one tile (.simt.cu, .mma.cu): how
// keys and values reach shared memory, which of them a row sees, and how the warps' sums become the
// block's result.
#pragma once
#include "attention/paged_decode.cuh"

namespace tokops::paged {
namespace {

// A row of the block: its token and logical position.
struct Row {
  int t, pos;
};

// Where one key of a tile lies; position -1 where there is none.
struct Slot {
  int64_t k, v;  // element offsets into the pools
  int pos;
};

// Shape of the shared memory. Rows of a tile are DP elements in 16-byte pieces, stored with piece ^
// (row & 7) so that eight rows of one piece, and eight pieces of one row, lie in different banks.
template <class T_, int DP_, int KT_, int NS_>
struct Tile {
  using T = T_;
  static constexpr int DP = DP_, KT = KT_, NS = NS_;  // padded head dimension, keys, stages
  static constexpr int kPiece = 16 / sizeof(T);       // elements per piece
  static constexpr int kPieces = DP / kPiece;         // pieces per row
  static constexpr int kElements = KT * DP;           // of one pool
  static constexpr int kSlots = (NS + 1) * KT;
  __device__ static int at(int row, int piece) {
    return (row * kPieces + (piece ^ (row & 7))) * kPiece;
  }
};

// The keys and values of one block's split: NS - 1 tiles in flight, their addresses one further.
template <class Shape>
struct Stream {
  using T = typename Shape::T;
  const Plan& plan;
  const Work& w;
  int begin, end;  // indices of this split
  T* stages;
  Slot* slots;

  __device__ int tiles() const { return (end - begin + Shape::KT - 1) / Shape::KT; }
  __device__ T* keys(int n) const {
    return stages + (n % Shape::NS) * (plan.p.v ? 2 : 1) * Shape::kElements;
  }
  __device__ T* values(int n) const { return keys(n) + Shape::kElements; }
  __device__ const Slot* slots_of(int n) const { return slots + n % (Shape::NS + 1) * Shape::KT; }

  // Zeroes the columns that pad the head dimension; no copy ever writes them.
  __device__ void clear_padding() const {
    const int used = plan.p.D / Shape::kPiece, pad = Shape::kPieces - used;
    if (pad == 0) return;
    const int rows = Shape::NS * (plan.p.v ? 2 : 1) * Shape::KT;
    for (int i = threadIdx.x; i < rows * pad; i += kThreads) {
      T* x = stages + Shape::at(i / pad, used + i % pad);
      for (int e = 0; e < Shape::kPiece; ++e) x[e] = from_float<T>(0.f);
    }
  }

  // Looks up this thread's key of tile n, in two steps: copies are issued while the table answers.
  struct Found {
    int pos, offset, page;
  };
  static constexpr int kEach = Shape::KT / kWarps;  // by the first lanes of every warp
  __device__ static int found_key() { return threadIdx.x / 32 * kEach + threadIdx.x % 32; }
  __device__ Found find(int n) const {
    Found f{-1, 0, 0};
    const int i = begin + n * Shape::KT + found_key();
    if (threadIdx.x % 32 >= kEach || i >= end) return f;
    const int pos = w.list ? w.list[i] : i;
    if (pos < 0 || pos >= w.view.length) return f;
    const int page_index = pos / plan.p.P;
    return {pos, pos - page_index * plan.p.P,
            plan.p.table[w.b * plan.p.table_b + w.hkv * plan.p.table_h + page_index]};
  }
  // Bad table entries are clamped.
  __device__ void keep(int n, const Found& f) const {
    if (threadIdx.x % 32 >= kEach) return;
    const PagedDecode& p = plan.p;
    int64_t page = f.page;
    page = page < 0 ? 0 : page >= p.pages_in_pool ? p.pages_in_pool - 1 : page;
    slots[n % (Shape::NS + 1) * Shape::KT + found_key()] = {
        page * p.k_n + w.hkv * p.k_h + f.offset * p.k_p,
        page * p.v_n + w.hkv * p.v_h + f.offset * p.v_p, f.pos};
  }

  __device__ void copy_piece(T* dst, const T* pool, int64_t offset, bool live, bool vector) const {
    const T* src = live ? pool + offset : pool;
    if (vector) {
      ptx::cp_async<16>(dst, src, live);
    } else {
      for (int e = 0; e < Shape::kPiece; ++e) dst[e] = live ? src[e] : from_float<T>(0.f);
    }
  }

  // Starts the copies of tile n. Keys that are not there become zeros: 0 times garbage may be NaN.
  __device__ void load(int n) const {
    if (n < tiles()) {
      const PagedDecode& p = plan.p;
      const int piece = threadIdx.x % Shape::kPieces;
      const Slot* s = slots_of(n);
      if (piece * Shape::kPiece < p.D) {
#pragma unroll 4
        for (int j = threadIdx.x / Shape::kPieces; j < Shape::KT; j += kThreads / Shape::kPieces) {
          const bool live = s[j].pos >= 0;
          const int at = Shape::at(j, piece), column = piece * Shape::kPiece;
          copy_piece(keys(n) + at, static_cast<const T*>(p.k), s[j].k + column, live,
                     plan.vector_k);
          if (p.v)
            copy_piece(values(n) + at, static_cast<const T*>(p.v), s[j].v + column, live,
                       plan.vector_v);
        }
      }
    }
    ptx::cp_async_commit();  // an empty group too: NS - 1 groups are always in flight
  }
};

// Byte offsets into dynamic shared memory, the same on host and device.
template <class Math>
struct Layout {
  using Shape = typename Math::Shape;
  static constexpr int kPartial = kWarps * Math::RT * (Shape::DP + 2) * int(sizeof(float));
  int slots, queries, rows, scores, total;
  __host__ __device__ Layout(int warps_m, bool values, bool with_scores) {
    const int block_rows = warps_m * Math::RT;
    slots = Shape::NS * (values ? 2 : 1) * Shape::kElements * int(sizeof(typename Shape::T));
    queries = slots + Shape::kSlots * int(sizeof(Slot));
    rows = queries + block_rows * Shape::DP * int(sizeof(typename Math::Q));
    scores = rows + block_rows * int(sizeof(Row));
    total = scores + (with_scores ? block_rows * Shape::KT * int(sizeof(float)) : 0);
  }
  static_assert(kPartial <= Shape::NS * 2 * Shape::kElements * int(sizeof(typename Shape::T)));
};

// What the arithmetic of one tile needs to know.
template <class Shape_>
struct TileView {
  const typename Shape_::T *keys, *values;
  const Slot* slots;
  int first, count;        // index of the first key; keys in this tile
  int plain_lo, plain_hi;  // every row of the block sees the positions in between
  bool clear;              // the whole tile is such positions
  float* scores;           // [rows, KT] to stage raw scores in, or null
  bool exact;              // a value that is not finite may be present
};

// An element of a warp's scores: its row in the block and its key in the tile.
struct Element {
  int row, key;
};

// Turns N products q . k of a lane into logits and stages the raw scores. where(i) places x(i).
template <int N, class Shape, class Where, class Value>
__device__ __forceinline__ void to_logits(const PagedDecode& p, const Work& w, const Row* rows,
                                          const TileView<Shape>& v, bool stage, Where where,
                                          Value x) {
  const auto position = [&](int key) {
    return w.list ? v.slots[key].pos : key < v.count ? v.first + key : -1;
  };
  unsigned seen = ~0u, doubtful = 0;
  if (!v.clear) {
    seen = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int key = position(where(i).key);
      if (key >= v.plain_lo && key < v.plain_hi) {
        seen |= 1u << i;
      } else if (key >= 0) {
        doubtful |= 1u << i;
      }
    }
#pragma unroll 1
    for (int i = 0; doubtful >> i; ++i) {
      const Row row = rows[where(i).row];
      if ((doubtful >> i & 1) && sees(p, w.view, w.b, row.t, row.pos, position(where(i).key)))
        seen |= 1u << i;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x(i) = seen >> i & 1 ? clean_score(x(i) * p.scale) : -INFINITY;
    if (stage) v.scores[where(i).row * Shape::KT + where(i).key] = x(i);
  }
  if (p.softcap > 0.f) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (x(i) > -INFINITY) x(i) = p.softcap * tanhf(x(i) / p.softcap);
  }
  if (p.log_gamma) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int r = where(i).row;
      if (position(where(i).key) == w.view.start && rows[r].pos > w.view.start)
        x(i) += p.log_gamma[w.h0 + r % w.heads];
    }
  }
}

// Positions [lo, hi) that every row of the block sees.
__device__ inline void plain_range(const PagedDecode& p, const Work& w, int* lo, int* hi) {
  *lo = w.view.start;
  if (p.window) {
    const int reach = w.view.first + p.T - p.window;  // above the reach of the last row
    *lo = reach > *lo ? reach : *lo;
  }
  *hi = p.ancestors ? w.view.first : w.view.first + w.t0 + 1;
  if (w.t1 > w.view.rows) *hi = *lo;
}

// One pass over the split: each key and value is read from memory once, for all rows of the block.
template <class Math>
__device__ void pass(Math& math, const Stream<typename Math::Shape>& stream, float* staged,
                     bool exact) {
  using Shape = typename Math::Shape;
  constexpr int KT = Shape::KT, NS = Shape::NS;
  const PagedDecode& p = stream.plan.p;
  int lo, hi;
  plain_range(p, stream.w, &lo, &hi);
  for (int n = 0; n < NS; ++n) stream.keep(n, stream.find(n));
  __syncthreads();  // the first slots, queries, rows and padding are written
  for (int n = 0; n < NS - 1; ++n) stream.load(n);
  for (int n = 0; n < stream.tiles(); ++n) {
    ptx::cp_async_wait<NS - 2>();
    __syncthreads();  // tile n and the next slots are there for all; nobody reads tile n - 1
    const auto found = stream.find(n + NS);
    stream.load(n + NS - 1);
    stream.keep(n + NS, found);
    const int first = stream.begin + n * KT;
    const int count = stream.end - first < KT ? stream.end - first : KT;
    const bool clear = !stream.w.list && count == KT && first >= lo && first + KT <= hi;
    math.tile(TileView<Shape>{stream.keys(n), stream.values(n), stream.slots_of(n), first, count,
                              lo, hi, clear, staged, exact});
    if (p.scores) {
      __syncthreads();  // the tile's scores are staged by all warps
      write_scores<KT>(p, stream.w, staged, first, stream.end);
    }
  }
}

// Combines the warps that shared a row's keys and writes the row: the result if this block saw all
// of them, else a part. partial: [kWarps, RT, DP] sums, then [kWarps, RT] maxima and totals.
template <class T, int DP, int RT>
__device__ void finish(const Plan& plan, const Work& w, int split, const float* partial) {
  const PagedDecode& p = plan.p;
  const float *tops = partial + kWarps * RT * DP, *totals = tops + kWarps * RT;
  for (int i = threadIdx.x; i < w.rows() * p.D; i += kThreads) {
    const int r = i / p.D, d = i - r * p.D;
    const int step = plan.warps_m * RT;  // to the same row in the next warp that has it
    float m = -INFINITY, l = 0.f, o = 0.f;
    for (int k = r; k < kWarps * RT; k += step) m = fmaxf(m, tops[k]);
    for (int k = r; k < kWarps * RT && m > -INFINITY; k += step) {
      const float gain = ptx::exp2_fast((tops[k] - m) * kLog2e);
      l += totals[k] * gain;
      o += weighed(partial[k * DP + d], gain);
    }
    const int t = w.t0 + r / w.heads, h = w.h0 + r % w.heads;
    const int64_t row = (int64_t(w.b) * p.T + t) * p.Hq + h;
    if (plan.splits == 1) {
      const Closing c = close_row(p, t < w.view.rows, h, m, l);
      static_cast<T*>(p.out)[row * p.D + d] = from_float<T>(weighed(o, c.gain));
      if (d == 0) p.lse[row] = c.lse;
    } else {
      const int64_t at = row * plan.splits + split;
      plan.part_out[at * p.D + d] = o;
      if (d == 0) plan.part_top[at] = m;
      if (d == 0) plan.part_total[at] = l;
    }
  }
}

// One block: the rows of up to warps_m row tiles over one split of their keys, each key and value
// read once. Empty splits leave at once; the merge knows them by the same arithmetic.
template <class Math>
__global__ void __launch_bounds__(kThreads, Math::kBlocksPerSm) decode_kernel(const Plan plan) {
  using Shape = typename Math::Shape;
  using T = typename Shape::T;
  TOKOPS_SHARED_DYNAMIC(unsigned char, shared);
  const PagedDecode& p = plan.p;
  int64_t index = blockIdx.x;
  const int block = index % plan.blocks;
  index /= plan.blocks;
  const int split = index % plan.splits;
  const Work w = work_of(plan, index / plan.splits, block);
  if (p.scores) fill_unseen(plan, w, split);
  const int begin = w.begin + split * w.chunk;
  const int end = w.end - begin < w.chunk ? w.end : begin + w.chunk;
  if (begin >= end && (plan.splits > 1 || !p.out)) return;

  const Layout<Math> layout(plan.warps_m, p.v, p.scores);
  Row* rows = reinterpret_cast<Row*>(shared + layout.rows);
  for (int r = threadIdx.x; r < plan.warps_m * Math::RT; r += kThreads) {
    const int t = w.t0 + r / w.heads;
    rows[r] = r < w.rows() ? Row{t, row_position(p, w.view, w.b, t)} : Row{p.T, 0};
  }
  const Stream<Shape> stream{plan,
                             w,
                             begin,
                             end,
                             reinterpret_cast<T*>(shared),
                             reinterpret_cast<Slot*>(shared + layout.slots)};
  stream.clear_padding();
  Math math(plan, w, reinterpret_cast<typename Math::Q*>(shared + layout.queries), rows);
  float* staged = p.scores ? reinterpret_cast<float*>(shared + layout.scores) : nullptr;
  for (bool exact = false;; exact = true) {
    math.reset();
    pass(math, stream, staged, exact);
    // The barrier also says that nobody reads the tiles any more.
    if (!__syncthreads_or(!exact && math.spoiled())) break;
  }
  if (!p.out) return;
  float* partial = reinterpret_cast<float*>(shared);
  math.store(partial, partial + kWarps * Math::RT * Shape::DP);
  __syncthreads();  // all warps' sums are written
  finish<T, Shape::DP, Math::RT>(plan, w, split, partial);
}

template <class Math>
void launch_decode(const Plan& plan, const Queue& q) {
  const PagedDecode& p = plan.p;
  const int64_t grid =
      int64_t(p.B) * plan.lists_t * p.Hkv * plan.lists_g * plan.splits * plan.blocks;
  if (grid > INT32_MAX) throw std::runtime_error("paged_decode: too many rows for one launch");
  const Layout<Math> layout(plan.warps_m, p.v != nullptr, p.scores != nullptr);
  launch(decode_kernel<Math>, dim3(unsigned(grid)), dim3(kThreads), size_t(layout.total), q, plan);
}

}  // namespace
}  // namespace tokops::paged
