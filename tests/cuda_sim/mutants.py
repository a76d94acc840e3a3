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
    ("cuh", "(w.end - w.begin + plan.splits - 1) / plan.splits", "(w.end - w.begin) / plan.splits"),
    ("cuh", "(per_split + kChunk - 1) / kChunk * kChunk", "per_split / kChunk * kChunk"),
    # Scores.
    ("cuh", "i - lo + hi", "i - lo + hi + 1"),
    ("cuh", "outside * (split + 1) / plan.splits", "outside * split / plan.splits"),
    ("cuh", "tile + r * folded * KT + i % KT", "tile + r * KT + i % KT"),
    ("cuh", "total + x[g * KT]", "total + x[g]"),
    ("cuh", "fmaxf(total, x[g * KT])", "fmaxf(total, x[(g - 1) * KT])"),
    ("cuh", "if (key >= last) continue;", "if (key >= last - 1) continue;"),
    # Where keys and values lie.
    ("tile.cuh", "piece ^ (row & 7)", "piece ^ (row & 3)", _ON_PURPOSE),
    ("tile.cuh", "stages + (n % Shape::NS)", "stages + (n % (Shape::NS - 1))"),
    ("tile.cuh", "slots + n % (Shape::NS + 1)", "slots + n % Shape::NS"),
    ("tile.cuh", "slots[n % (Shape::NS + 1)", "slots[n % Shape::NS"),
    ("tile.cuh", "n * Shape::KT + found_key();", "n * Shape::KT + found_key() + 1;"),
    ("tile.cuh", "page_index = pos / plan.p.P", "page_index = (pos + 1) / plan.p.P"),
    ("tile.cuh", "pos - page_index * plan.p.P", "(pos + 1) % plan.p.P"),
    ("tile.cuh", "w.b * plan.p.table_b", "w.b * plan.p.pages"),
    ("tile.cuh", "w.hkv * plan.p.table_h", "0"),
    ("tile.cuh", "page * p.v_n + w.hkv * p.v_h", "page * p.v_n"),
    ("tile.cuh", "f.offset * p.k_p", "f.offset * p.D"),
    ("tile.cuh", "live ? src[e]", "live ? src[e ^ 1]"),
    # Which keys a row sees.
    (
        "tile.cuh",
        "where(i).row * Shape::KT + where(i).key]",
        "where(i).row * Shape::KT + (where(i).key ^ 1)]",
    ),
    ("tile.cuh", "p.log_gamma[w.h0 + r % w.heads]", "p.log_gamma[w.h0]"),
    ("tile.cuh", "position(where(i).key) == w.view.start", "position(where(i).key) == w.view.start + 1"),
    ("tile.cuh", "rows[r].pos > w.view.start", "rows[r].pos >= w.view.start"),
    ("tile.cuh", "w.view.first + p.T - p.window", "w.view.first + p.T - p.window - 1"),
    ("tile.cuh", "w.view.first + w.t0 + 1", "w.view.first + w.t0 + 2"),
    ("tile.cuh", "first + KT <= hi", "first + KT <= hi + 1"),
    ("tile.cuh", "first >= lo", "first >= lo - 2"),
    # The ring of tiles.
    ("tile.cuh", "cp_async_wait<NS - 2>", "cp_async_wait<NS - 1>"),
    ("tile.cuh", "n < NS; ++n) stream.keep(", "n < NS - 1; ++n) stream.keep("),
    ("tile.cuh", "stream.load(n + NS - 1)", "stream.load(n + NS)"),
    ("tile.cuh", "stream.keep(n + NS, found)", "stream.keep(n + NS - 1, found)"),
    (
        "tile.cuh",
        "slots + Shape::kSlots * int(sizeof(Slot))",
        "slots + (Shape::kSlots - 1) * int(sizeof(Slot))",
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
    ("tile.cuh", "begin = w.begin + split * w.chunk", "begin = w.begin + split * (w.chunk + 1)"),
    ("tile.cuh", "? w.end : begin + w.chunk", "? w.end : begin + w.chunk - 1"),
    # Fragments.
    ("mma.cu", "row0 + lane % 16, 2 * d + lane / 16", "row0 + lane % 16, 2 * d + 1 - lane / 16"),
    (
        "mma.cu",
        "key0 + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2",
        "key0 + lane / 8 % 2 * 8 + lane % 8, 2 * d + lane / 16",
    ),
    ("mma.cu", "pack_two<T>(s[0][2], s[0][3])", "pack_two<T>(s[0][3], s[0][2])"),
    ("mma.cu", "key0 + lane % 16, 2 * d + lane / 16", "key0 + (lane ^ 1) % 16, 2 * d + lane / 16"),
    ("mma.cu", "{x[2], x[3]}", "{x[3], x[2]}"),
    ("mma.cu", "lane / 4 * 4 + j % 8 / 2", "lane / 4 * 4 + j % 4"),
    ("mma.cu", "c * 8 + lane % 4 * 2 + e]", "c * 8 + lane % 4 * 2 + 1 - e]"),
    ("mma.cu", "warp_max<4>(top)", "warp_max<2>(top)"),
    ("mma.cu", "warp_sum<4>(l[half])", "warp_sum<2>(l[half])"),
    # Lanes.
    ("simt.cu", "piece = lane % 8 + 8 * c", "piece = lane % 8 + 4 * c"),
    ("simt.cu", "key0 + group + 4 * i, piece", "key0 + group + 3 * i, piece"),
    ("simt.cu", "j % 4 * 8)", "(j + 1) % 4 * 8)"),
    ("simt.cu", "column = (lane + 32 * u) * kUnit", "column = (lane + 31 * u) * kUnit"),
    ("simt.cu", "warp_sum<8>(s[r][i])", "warp_sum<4>(s[r][i])"),
    ("simt.cu", "tops[kWarps * RT + warp_row + r]", "tops[kWarps * RT + warp_row]"),
    # The merge of splits.
    ("cu", "int s = slice; s < live", "int s = slice + 1; s < live"),
    ("cu", "at * p.D + 4 * lane)", "at * p.D + 4 * (lane ^ 1))"),
    ("cu", "sums[slice * p.D + 4 * lane + e]", "sums[slice * p.D + 4 * lane + 3 - e]"),
    ("cu", "group * p.Hkv + h / per_kv", "group * p.Hkv + h % p.Hkv"),
    ("cu", "plan.lists_g > 1 ? h % per_kv : 0", "0"),
    ("cu", "(tokens + fit - 1) / fit", "tokens / fit"),
]
