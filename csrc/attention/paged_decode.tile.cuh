// The attention kernel of paged_decode and packed_decode around the arithmetic on one tile
// (.simt.cuh, .mma.cuh): which keys a row sees, and how the warps' sums become the block's result.
// A stream brings keys and values to shared memory (.stream.cuh, packed_decode.stream.cuh).
#pragma once
#include "attention/paged_decode.cuh"

namespace tokops::paged {
namespace {

// A row of the block: its token and logical position.
struct Row {
  int t, pos;
};

// Shape of the shared memory. Rows of a tile are DP elements in 16-byte pieces, stored with piece ^
// (row & 7) so that eight rows of one piece, and eight pieces of one row, lie in different banks.
template <class T_, int DP_, int KT_, int NS_, class Team_ = BlockTeam>
struct Tile {
  using T = T_;
  using Team = Team_;
  static constexpr int DP = DP_, KT = KT_, NS = NS_;  // padded head dimension, keys, stages
  static constexpr int kPiece = 16 / sizeof(T);       // elements per piece
  static constexpr int kPieces = DP / kPiece;         // pieces per row
  static constexpr int kElements = KT * DP;           // of one pool
  static constexpr int kSlots = (NS + 1) * KT;
  __device__ static int at(int row, int piece) {
    return (row * kPieces + (piece ^ (row & 7))) * kPiece;
  }

  // The first lanes of every warp look up the keys of a tile.
  static constexpr int kEach = KT * 32 / Team::kSize;
  static_assert(kEach <= 32);
  __device__ static bool finds() { return threadIdx.x % 32 < kEach; }
  __device__ static int found_key() { return Team::rank() / 32 * kEach + threadIdx.x % 32; }

  // Zeroes the columns that pad the head dimension; no copy ever writes them.
  __device__ static void clear_padding(T* x, int rows, int D) {
    const int used = D / kPiece, pad = kPieces - used;
    for (int i = Team::rank(); i < rows * pad; i += Team::kSize)
      for (int e = 0; e < kPiece; ++e) x[at(i / pad, used + i % pad) + e] = from_float<T>(0.f);
  }
};

// Byte offsets into dynamic shared memory, the same on host and device. The teams' data come first,
// and the warps' sums take their place in the end. Queries that the warps hold in registers lie
// there too, before any data.
template <class Math, class Stream>
struct Layout {
  using Shape = typename Math::Shape;
  static constexpr int kTeams = Shape::Team::kTeams;
  static constexpr int kPartial = kWarps * Math::RT * (Shape::DP + 2) * int(sizeof(float));
  static constexpr int kTeamSlots = Shape::kSlots * int(sizeof(typename Stream::Slot));
  static constexpr int kWork = (int(sizeof(Work)) + 31) / 32 * 32;  // as queries are aligned
  int data, slots, work, queries, rows, scores, team_scores, total;
  __host__ __device__ explicit Layout(const typename Stream::Plan& plan) {
    const int block_rows = plan.warps_m * Math::RT;
    const int query_bytes = block_rows * Shape::DP * int(sizeof(typename Math::Q));
    data = Stream::data_bytes(plan);
    slots = kTeams * data;
    if (plan.p.out && slots < kPartial) slots = kPartial;
    work = slots + kTeams * kTeamSlots;
    queries = Math::kHeld ? 0 : work + kWork;
    rows = work + kWork + (Math::kHeld ? 0 : query_bytes);
    scores = rows + block_rows * int(sizeof(Row)) + Math::kBehindRows;
    team_scores = plan.p.scores ? block_rows * Shape::KT * int(sizeof(float)) : 0;
    total = scores + kTeams * team_scores;
  }
};

// A team's share.
template <class Team, int KT>
__device__ inline Span share_of(Span all) {
  const int n = all.end - all.begin, each = (n + Team::kTeams * KT - 1) / (Team::kTeams * KT) * KT;
  const int begin = all.begin + Team::index() * each;
  if (begin >= all.end) return {all.end, all.end};
  return {begin, all.end - begin < each ? all.end : begin + each};
}

// What the arithmetic of one tile needs to know.
template <class Shape_, class Slot>
struct TileView {
  using Shape = Shape_;
  const typename Shape::T *keys, *values;
  const Slot* slots;
  bool scattered;          // positions are those of the slots
  int first, count;        // index of the first key; keys in this tile
  int plain_lo, plain_hi;  // every row of the block sees the positions in between
  bool clear;              // the whole tile is such positions
  float* scores;           // [rows, KT] to stage raw scores in, or null
  // Logical position of a key, -1 where there is none.
  __device__ int position(int key) const {
    return scattered ? slots[key].pos : key < count ? first + key : -1;
  }
};

// An element of a warp's scores: its row in the block and its key in the tile.
struct Element {
  int row, key;
};

// Turns N products q . k of a lane into logits and stages the raw scores. where(i) places x(i).
template <int N, class View, class Where, class Value>
__device__ __forceinline__ void to_logits(const PagedDecode& p, const Work& w, const Row* rows,
                                          const View& v, bool stage, Where where, Value x) {
  unsigned seen = ~0u, doubtful = 0;
  if (!v.clear) {
    seen = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int key = v.position(where(i).key);
      if (key >= v.plain_lo && key < v.plain_hi) {
        seen |= 1u << i;
      } else if (key >= 0) {
        doubtful |= 1u << i;
      }
    }
#pragma unroll 1
    for (int i = 0; doubtful >> i; ++i) {
      const Row row = rows[where(i).row];
      if ((doubtful >> i & 1) && sees(p, w.view, w.b, row.t, row.pos, v.position(where(i).key)))
        seen |= 1u << i;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x(i) = seen >> i & 1 ? clean_score(x(i) * p.scale) : -INFINITY;
    if (stage) v.scores[where(i).row * View::Shape::KT + where(i).key] = x(i);
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
      if (v.position(where(i).key) == w.view.start && rows[r].pos > w.view.start)
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

// One pass over a team's keys: each key and value is read from memory once, for all rows of the
// block.
template <class Math, class Stream>
__device__ void pass(Math& math, Stream& stream, float* staged) {
  using Shape = typename Math::Shape;
  using Team = typename Shape::Team;
  constexpr int KT = Shape::KT;
  const PagedDecode& p = stream.plan.p;
  int lo, hi;
  plain_range(p, stream.w, &lo, &hi);
  const bool scattered = stream.scattered();
  stream.start();
  for (int n = 0, first = stream.span.begin; first < stream.span.end; ++n, first += KT) {
    stream.next(n);
    const int count = stream.span.end - first < KT ? stream.span.end - first : KT;
    const bool clear = !scattered && count == KT && first >= lo && first + KT <= hi;
    const TileView<Shape, typename Stream::Slot> view{stream.keys(n),
                                                      stream.values(n),
                                                      stream.slots_of(n),
                                                      scattered,
                                                      first,
                                                      count,
                                                      lo,
                                                      hi,
                                                      clear,
                                                      staged};
    math.tile(view);
    if (p.scores) {
      Team::sync();  // the tile's scores are staged by all
      write_scores<Team, KT, Stream::kPacked>(p, stream.w, staged,
                                              [&](int key) { return view.position(key); });
    }
  }
}

// Where row r of a block has its query.
__device__ inline int64_t query_offset(const PagedDecode& p, const Work& w, int r) {
  return w.b * p.q_b + (w.t0 + r / w.heads) * p.q_t + (w.h0 + r % w.heads) * p.q_h;
}

// Combines the warps that shared a row's keys and writes the row: the result if this block saw all
// of them, else a part. partial: [kWarps, RT, DP] sums, then [kWarps, RT] maxima and totals.
template <class Stream, int DP, int RT>
__device__ void finish(const Plan& plan, const Work& w, float* partial) {
  const PagedDecode& p = plan.p;
  const bool turn = Stream::kPacked && p.rotate && plan.splits == 1;
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
      if (turn) partial[r * DP + d] = weighed(o, c.gain);  // read by this thread alone
      if (!turn) Stream::write(p, row * p.D + d, weighed(o, c.gain));
      if (d == 0) p.lse[row] = c.lse;
    } else {
      const int64_t at = row * plan.splits + w.split;
      plan.part_out[at * p.D + d] = o;
      if (d == 0) plan.part_top[at] = m;
      if (d == 0) plan.part_total[at] = l;
    }
  }
  if (!turn) return;
  hadamard_rows(partial, w.rows(), p.D, DP);
  for (int i = threadIdx.x; i < w.rows() * p.D; i += kThreads) {
    const int r = i / p.D, d = i - r * p.D;
    const int64_t row = (int64_t(w.b) * p.T + w.t0 + r / w.heads) * p.Hq + w.h0 + r % w.heads;
    Stream::write(p, row * p.D + d, partial[r * DP + d]);
  }
}

// Tells the merge that a split has no keys.
__device__ inline void mark_empty(const Plan& plan, const Work& w) {
  for (int r = threadIdx.x; r < w.rows(); r += kThreads) {
    const int64_t row =
        (int64_t(w.b) * plan.p.T + w.t0 + r / w.heads) * plan.p.Hq + w.h0 + r % w.heads;
    plan.part_top[row * plan.splits + w.split] = -INFINITY;
  }
}

// The rows of up to warps_m row tiles over one split of their keys, each key and value read once.
// False, and no sums written, if a value that is not finite may have met a weight of zero.
template <class Math, class Stream>
__device__ __forceinline__ bool sum_split(const typename Stream::Plan& plan, const Work& found,
                                          Span span, unsigned char* shared) {
  using Shape = typename Math::Shape;
  using Team = typename Shape::Team;
  const PagedDecode& p = plan.p;
  const Layout<Math, Stream> layout(plan);
  const int team = Team::index();
  // What all threads know is kept here for want of registers.
  Work& w = *reinterpret_cast<Work*>(shared + layout.work);
  if (threadIdx.x == 0) w = found;
  __syncthreads();  // the work is written
  Stream stream(plan, w, share_of<Team, Shape::KT>(span), shared + team * layout.data,
                shared + layout.slots + team * layout.kTeamSlots);
  Row* rows = reinterpret_cast<Row*>(shared + layout.rows);
  for (int r = threadIdx.x; r < plan.warps_m * Math::RT; r += kThreads) {
    const int t = w.t0 + r / w.heads;
    rows[r] = r < w.rows() ? Row{t, row_position(p, w.view, w.b, t)} : Row{p.T, 0};
  }
  Math math(plan, w, reinterpret_cast<typename Math::Q*>(shared + layout.queries), rows, stream);
  if constexpr (Math::kHeld) math.hold();
  stream.clear_padding();
  float* staged = p.scores
                      ? reinterpret_cast<float*>(shared + layout.scores + team * layout.team_scores)
                      : nullptr;
  math.reset();
  pass(math, stream, staged);
  // The barrier also says that nobody reads the tiles any more.
  if (__syncthreads_or(!Math::kExact && math.spoiled())) return false;
  if (!p.out) return true;
  float* partial = reinterpret_cast<float*>(shared);
  math.store(partial, partial + kWarps * Math::RT * Shape::DP);
  __syncthreads();  // all warps' sums are written
  finish<Stream, Shape::DP, Math::RT>(plan, w, partial);
  return true;
}

// What the block has to do: `span` is empty where it has left what there was to leave.
template <class Stream>
__device__ Work begin_block(const typename Stream::Plan& plan, Span* span) {
  const PagedDecode& p = plan.p;
  ptx::start_next();
  int64_t index = blockIdx.x;
  const int block = index % plan.blocks;
  index /= plan.blocks;
  const Work w = Stream::work(plan, index / plan.splits, block, index % plan.splits);
  if (p.scores && !Stream::kPacked) fill_unseen(plan, w);
  *span = Stream::span_of(plan, w);
  const bool empty = span->begin >= span->end && (plan.splits > 1 || !p.out);
  if (empty && p.out) mark_empty(plan, w);
  if (empty) *span = {0, -1};
  return w;
}

// The block's split once more, key by key. A call of its own that finds everything again, so that
// it costs the usual case no registers.
template <class Math, class Stream>
__device__ TOKOPS_NOINLINE void sum_exactly(const typename Stream::Plan& plan,
                                            unsigned char* shared) {
  Span span;
  const Work found = begin_block<Stream>(plan, &span);
  sum_split<Math, Stream>(plan, found, span, shared);
}

template <class Math, class Stream>
__device__ __forceinline__ void decode_split(const typename Stream::Plan& plan, const Work& found,
                                             Span span, unsigned char* shared) {
  const bool done = sum_split<Math, Stream>(plan, found, span, shared);
  if constexpr (!Math::kExact)
    if (!done) sum_exactly<typename Math::Exact, Stream>(plan, shared);
}

template <class Math, class Stream>
__global__ void __launch_bounds__(kThreads, Math::kBlocksPerSm)
    decode_kernel(const __grid_constant__ typename Stream::Plan plan) {
  TOKOPS_SHARED_DYNAMIC(unsigned char, shared);
  Span span;
  const Work found = begin_block<Stream>(plan, &span);
  if (span.end < span.begin) return;
  decode_split<Math, Stream>(plan, found, span, shared);
}

template <class Math, class Stream>
void launch_decode(const typename Stream::Plan& plan, const Queue& q) {
  const int64_t grid = groups_of(plan) * plan.splits * plan.blocks;
  if (grid > INT32_MAX)
    throw std::runtime_error(std::string(plan.op) + ": too many rows for one launch");
  const Layout<Math, Stream> layout(plan);
  launch(decode_kernel<Math, Stream>, dim3(unsigned(grid)), dim3(kThreads), size_t(layout.total), q,
         plan);
}

}  // namespace
}  // namespace tokops::paged
