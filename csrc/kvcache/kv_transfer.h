// Moves tokens between packed pools.
#pragma once
#include "kvcache/codec.h"

namespace tokops {

struct KvTransfer {
  PackedPool from[2], to[2];  // K and V
  PageTable from_table, to_table;
  const int32_t *slots_from, *slots_to;  // [B, Hkv, n]
  const int32_t* counts;                 // [B, Hkv]
  int32_t B, Hkv, n;
  bool verbatim[2];  // both pools store alike: bytes and scales move as they are
};

// kv_transfer.isa.cpp on the CPU, .cu on CUDA. Slots outside a table and pages outside a pool are
// skipped.
void kv_transfer(const KvTransfer& p, const Queue& q);

namespace {  // headers of .isa.cpp files must not emit shared symbols

struct Move {
  int64_t from_slot, from_page, to_slot, to_page;
};
// Entry j of the list of (b, h) for K or V; false where there is nothing to move.
TOKOPS_HD bool move_of(const KvTransfer& p, int side, int64_t b, int64_t h, int64_t j, Move* m) {
  const int64_t list = b * p.Hkv + h;
  if (j >= p.counts[list]) return false;
  m->from_slot = p.slots_from[list * p.n + j];
  m->to_slot = p.slots_to[list * p.n + j];
  m->from_page = page_of(p.from_table, p.from[side], b, h, m->from_slot);
  m->to_page = page_of(p.to_table, p.to[side], b, h, m->to_slot);
  return m->from_page >= 0 && m->to_page >= 0;
}

// Columns of scales of a row that moves as it is.
TOKOPS_HD int moved_columns(const PackedPool& p) {
  return p.kind != CodecKind::full && p.geometry == Geometry::token ? p.D / p.group : 0;
}

}  // namespace
}  // namespace tokops
