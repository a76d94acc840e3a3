// Random numbers by counter: Philox4x32-10. The same seed gives the same tokens on every backend,
// at any batch size and in any order, because a draw is named and not taken in turn.
#pragma once
#include "common/backend.h"

namespace tokops {
namespace {  // headers of .isa.cpp files must not emit shared symbols

// What a draw is for.
enum class Use : uint32_t { accept = 0, final_token = 1, draft = 2, plain = 3, race = 4 };

struct Words {
  uint32_t at[4];
};

TOKOPS_HD Words philox(Words counter, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  Words c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c.at[0], b = 0xCD9E8D57ull * c.at[2];
    c = {{uint32_t(b >> 32) ^ c.at[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c.at[3] ^ k1,
          uint32_t(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// One request's numbers. Position and stream enter by their low 32 bits.
struct Stream {
  uint64_t seed;
  uint32_t stream;

  // 64 random bits for a draw: position is the index, in the request's sequence, of the token that
  // is decided; slot tells draws for the same token and use apart.
  TOKOPS_HD uint64_t bits(uint32_t position, uint32_t slot, Use use) const {
    const Words w = philox({{position, stream, slot, uint32_t(use)}}, seed);
    return uint64_t(w.at[1]) << 32 | w.at[0];
  }
  // The same as a number in [0, 1).
  TOKOPS_HD double uniform(uint32_t position, uint32_t slot, Use use) const {
    return double(bits(position, slot, use) >> 11) * (1.0 / 9007199254740992.0);  // 2^-53
  }
};

TOKOPS_HD uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return uint64_t((unsigned __int128)a * b >> 64);
#endif
}

}  // namespace
}  // namespace tokops
