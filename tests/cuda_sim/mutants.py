"""The index shifts of mutate.py: (file, what stands there, what takes its place, why nothing can turn red)."""

_ON_PURPOSE = "a permutation of banks that writer and readers share: changes speed, not results"

SHIFTS = [
    # Which rows and keys a block has.
    ("cuh", "w.h0 = w.hkv * per_kv + g", "w.h0 = w.hkv * per_kv"),
    ("cuh", ": block * plan.tokens;", ": block * plan.tokens + block;"),
    ("cuh", "p.sel_rows > 1 ? w.t0 : 0", "0"),
    ("cuh", "plan.lists_g > 1 ? w.h0 : w.hkv", "w.hkv"),
    ("cuh", "p.selected + at * p.sel_k", "p.selected + at * p.sel_k + (at > 0)"),
    ("cuh", "n > p.sel_k ? p.sel_k : n", "n > p.sel_k ? p.sel_k : n - 1"),
    ("cuh", "(n + splits - 1) / splits", "n / splits"),
    ("cuh", "(each + kChunk - 1) / kChunk * kChunk", "each / kChunk * kChunk"),
    # Scores.
    ("cuh", "i - lo + hi", "i - lo + hi + 1"),
    ("cuh", "outside * (w.split + 1) / plan.splits", "outside * w.split / plan.splits"),
    ("cuh", "tile + r * folded * KT + i % KT", "tile + r * KT + i % KT"),
    ("cuh", "total + x[g * KT]", "total + x[g]"),
    ("cuh", "fmaxf(total, x[g * KT])", "fmaxf(total, x[(g - 1) * KT])"),
    ("cuh", "key < 0 || key >= p.score_len) continue", "key < 0 || key >= p.score_len - 1) continue"),
    # Where keys and values lie.
    ("tile.cuh", "piece ^ (row & 7)", "piece ^ (row & 3)", _ON_PURPOSE),
    ("stream.cuh", "stages + (n % NS)", "stages + (n % (NS - 1))"),
    ("stream.cuh", "slots + n % (NS + 1)", "slots + n % NS"),
    ("stream.cuh", "slots[n % (NS + 1)", "slots[n % NS"),
    ("stream.cuh", "n * Shape::KT + Shape::found_key();", "n * Shape::KT + Shape::found_key() + 1;"),
    ("stream.cuh", "page_index = pos / plan.p.P", "page_index = (pos + 1) / plan.p.P"),
    ("stream.cuh", "pos - page_index * plan.p.P", "(pos + 1) % plan.p.P"),
    ("stream.cuh", "w.b * plan.p.table_b", "w.b * plan.p.pages"),
    ("stream.cuh", "w.hkv * plan.p.table_h", "0"),
    ("stream.cuh", "page * p.v_n + w.hkv * p.v_h", "page * p.v_n"),
    ("stream.cuh", "f.offset * p.k_p", "f.offset * p.D"),
    ("stream.cuh", "live ? src[e]", "live ? src[e ^ 1]"),
    # Which keys a row sees.
    (
        "tile.cuh",
        "where(i).row * View::Shape::KT + where(i).key]",
        "where(i).row * View::Shape::KT + (where(i).key ^ 1)]",
    ),
    ("tile.cuh", "p.log_gamma[w.h0 + r % w.heads]", "p.log_gamma[w.h0]"),
    ("tile.cuh", "position(where(i).key) == w.view.start", "position(where(i).key) == w.view.start + 1"),
    ("tile.cuh", "rows[r].pos > w.view.start", "rows[r].pos >= w.view.start"),
    ("tile.cuh", "w.view.first + p.T - p.window", "w.view.first + p.T - p.window - 1"),
    ("tile.cuh", "w.view.first + w.t0 + 1", "w.view.first + w.t0 + 2"),
    ("tile.cuh", "first + KT <= hi", "first + KT <= hi + 1"),
    ("tile.cuh", "first >= lo", "first >= lo - 2"),
    # The ring of tiles.
    ("stream.cuh", "cp_async_wait<NS - 2>", "cp_async_wait<NS - 1>"),
    ("stream.cuh", "n < NS; ++n) keep(", "n < NS - 1; ++n) keep("),
    ("stream.cuh", "load(n + NS - 1)", "load(n + NS)"),
    ("stream.cuh", "keep(n + NS, found)", "keep(n + NS - 1, found)"),
    (
        "tile.cuh",
        "slots + Shape::kSlots * int(sizeof(typename Stream::Slot))",
        "slots + (Shape::kSlots - 1) * int(sizeof(typename Stream::Slot))",
    ),
    ("tile.cuh", "scores = rows + block_rows * int(sizeof(Row))", "scores = rows + block_rows"),
    ("tile.cuh", "? block_rows * Shape::KT", "? (block_rows - 1) * Shape::KT"),
    # What a block writes.
    ("tile.cuh", "step = plan.warps_m * RT", "step = RT"),
    ("tile.cuh", "partial[k * DP + d]", "partial[k * DP + (d ^ 1)]"),
    (
        "tile.cuh",
        "h = w.h0 + r % w.heads; const int64_t row",
        "h = w.h0 + (r + 1) % w.heads; const int64_t row",
    ),
    ("stream.cuh", "begin = w.begin + w.split * w.chunk", "begin = w.begin + w.split * (w.chunk + 1)"),
    ("stream.cuh", "? w.end : begin + w.chunk", "? w.end : begin + w.chunk - 1"),
    # Fragments.
    ("mma.cuh", "row0 + lane % 16, 2 * d + lane / 16", "row0 + lane % 16, 2 * d + 1 - lane / 16"),
    (
        "mma.cuh",
        "key0 + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2",
        "key0 + lane / 8 % 2 * 8 + lane % 8, 2 * d + lane / 16",
    ),
    ("mma.cuh", "pack_two<T>(s[0][2], s[0][3])", "pack_two<T>(s[0][3], s[0][2])"),
    ("mma.cuh", "key0 + lane % 16, 2 * d + lane / 16", "key0 + (lane ^ 1) % 16, 2 * d + lane / 16"),
    ("mma.cuh", "{x[2], x[3]}", "{x[3], x[2]}"),
    ("mma.cuh", "lane / 4 * 4 + j % 8 / 2", "lane / 4 * 4 + j % 4"),
    ("mma.cuh", "c * 8 + lane % 4 * 2 + e]", "c * 8 + lane % 4 * 2 + 1 - e]"),
    ("mma.cuh", "warp_max<4>(top)", "warp_max<2>(top)"),
    ("mma.cuh", "warp_sum<4>(l[half])", "warp_sum<2>(l[half])"),
    # Lanes.
    ("simt.cuh", "piece = lane % 8 + 8 * c", "piece = lane % 8 + 4 * c"),
    ("simt.cuh", "key0 + group + 4 * i, piece", "key0 + group + 3 * i, piece"),
    ("simt.cuh", "j % 4 * 8)", "(j + 1) % 4 * 8)"),
    ("simt.cuh", "column = (lane + 32 * u) * kUnit", "column = (lane + 31 * u) * kUnit"),
    ("simt.cuh", "warp_sum<8>(s[r][i])", "warp_sum<4>(s[r][i])"),
    ("simt.cuh", "tops[kWarps * RT + warp_row + r]", "tops[kWarps * RT + warp_row]"),
    # The merge of splits.
    ("cu", "int s = slice; s < live", "int s = slice + 1; s < live"),
    ("cu", "at * p.D + 4 * lane)", "at * p.D + 4 * (lane ^ 1))"),
    ("cu", "sums[slice * p.D + 4 * lane + e]", "sums[slice * p.D + 4 * lane + 3 - e]"),
    ("cu", "group * p.Hkv + h / per_kv", "group * p.Hkv + h % p.Hkv"),
    ("cu", "plan.lists_g > 1 ? h % per_kv : 0", "0"),
    ("cu", "(tokens + fit - 1) / fit", "tokens / fit"),
]
