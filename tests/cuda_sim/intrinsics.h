// CUDA's device functions in plain C++. Included by sim.h.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>

// ---- Barriers, votes, shuffles. ----

inline void __syncthreads(tokops::sim::Site at = tokops::sim::Site::current()) {
  tokops::sim::block_barrier("__syncthreads", 0, at);
}
inline int __syncthreads_count(int p, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::block_barrier("__syncthreads_count", p, at).count;
}
inline int __syncthreads_and(int p, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::block_barrier("__syncthreads_and", p, at).all;
}
inline int __syncthreads_or(int p, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::block_barrier("__syncthreads_or", p, at).any;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       tokops::sim::Site at = tokops::sim::Site::current()) {
  tokops::sim::meet(nullptr, 0, "__syncwarp", mask, at);
}

namespace tokops::sim {
// A shuffle: `source` is the lane read, or one outside this lane's group of `width`, which gives
// back `v`.
template <class T>
T shuffle(const char* what, unsigned mask, T v, int source, int width, Site at) {
  if (width < 1 || width > kLanes || !std::has_single_bit(unsigned(width)))
    fail("shuffle width", at);
  const int group = lane() & ~(width - 1);
  const auto all = gather(v, what, mask, at);
  const bool inside = what == std::string_view("__shfl_xor_sync")
                          ? source < group + width
                          : source >= group && source < group + width;
  return inside ? all[source] : v;
}
template <class T, class F>
T reduce(const char* what, unsigned mask, T v, Site at, F&& fold) {
  const auto all = gather(v, what, mask, at);
  T total = v;
  for (int i = 0; i < kLanes; ++i)
    if (i != lane() && all.meeting.arrived >> i & 1) total = fold(total, all[i]);
  return total;
}
}  // namespace tokops::sim

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32,
              tokops::sim::Site at = tokops::sim::Site::current()) {
  const int source = (tokops::sim::lane() & ~(width - 1)) | (from & (width - 1));
  return tokops::sim::shuffle("__shfl_sync", mask, v, source, width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32,
                 tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::shuffle("__shfl_up_sync", mask, v, tokops::sim::lane() - int(by), width, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32,
                   tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::shuffle("__shfl_down_sync", mask, v, tokops::sim::lane() + int(by), width,
                              at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32,
                  tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::shuffle("__shfl_xor_sync", mask, v, tokops::sim::lane() ^ by, width, at);
}

inline unsigned __ballot_sync(unsigned mask, int p,
                              tokops::sim::Site at = tokops::sim::Site::current()) {
  const auto all = tokops::sim::gather(p != 0, "__ballot_sync", mask, at);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= unsigned(all.meeting.arrived >> i & 1 && all[i]) << i;
  return votes;
}
inline int __any_sync(unsigned mask, int p, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__any_sync", mask, int(p != 0), at, std::bit_or<int>());
}
inline int __all_sync(unsigned mask, int p, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__all_sync", mask, int(p != 0), at, std::bit_and<int>());
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v, tokops::sim::Site at = tokops::sim::Site::current()) {
  const auto all = tokops::sim::gather(v, "__match_any_sync", mask, at);
  unsigned same = 0;
  for (int i = 0; i < 32; ++i) same |= unsigned(all.meeting.arrived >> i & 1 && all[i] == v) << i;
  return same;
}
// CUDA promises no more than that the caller itself is active.
inline unsigned __activemask() { return 1u << tokops::sim::lane(); }

template <class T>
T __reduce_add_sync(unsigned mask, T v, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_add_sync", mask, v, at,
                             [](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T v, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_min_sync", mask, v, at,
                             [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T v, tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_max_sync", mask, v, at,
                             [](T a, T b) { return std::max(a, b); });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v,
                                  tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_and_sync", mask, v, at, std::bit_and<unsigned>());
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v,
                                 tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_or_sync", mask, v, at, std::bit_or<unsigned>());
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v,
                                  tokops::sim::Site at = tokops::sim::Site::current()) {
  return tokops::sim::reduce("__reduce_xor_sync", mask, v, at, std::bit_xor<unsigned>());
}

// ---- Atomics and fences: one fiber runs at a time, so a plain update is atomic. ----

namespace tokops::sim {
template <class T, class F>
T update(T* p, F&& f) {
  yield();
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace tokops::sim

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) {
    if constexpr (std::is_integral_v<T>)
      return T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(v));
    else
      return T(old + v);
  });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(
      p, [&](T old) { return T(std::make_unsigned_t<T>(old) - std::make_unsigned_t<T>(v)); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return std::max(old, v); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return std::min(old, v); });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return T(old & v); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return T(old | v); });
}
template <class T>
T atomicXor(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return T(old ^ v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return tokops::sim::update(p, [&](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned top) {
  return tokops::sim::update(p, [&](unsigned old) { return old >= top ? 0u : old + 1; });
}

inline void __threadfence() { tokops::sim::yield(); }
inline void __threadfence_block() { tokops::sim::yield(); }
inline void __threadfence_system() { tokops::sim::yield(); }
inline void __nanosleep(unsigned) { tokops::sim::yield(); }
[[noreturn]] inline void __trap(tokops::sim::Site at = tokops::sim::Site::current()) {
  tokops::sim::fail("__trap", at);
}

// ---- Memory with cache hints. ----

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

// ---- Bits and numbers. ----

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero((unsigned long long)x); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero((unsigned long long)x) + 1 : 0; }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned((unsigned long long)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return unsigned(((unsigned long long)high << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return unsigned(((unsigned long long)high << 32 | low) >> (by & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline int __float2int_rn(float x) { return int(lrintf(x)); }
inline int __float2int_rz(float x) { return int(x); }

// CUDA's min and max take any two numbers; a NaN gives way to the other.
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) || T(a) != T(a) ? T(b) : T(a);
}
template <class A, class B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) || T(a) != T(a) ? T(b) : T(a);
}
