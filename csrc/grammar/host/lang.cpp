#include "lang.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#ifdef __unix__
#include <sys/mman.h>
#endif

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

constexpr int kMaxDepth = 2000;

thread_local Langs::Account* account_of_thread = nullptr;

// Zeroed memory of which only the pages that are touched are taken.
template <class T>
T* reserve(size_t n) {
#ifdef __unix__
  void* memory = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#else
  void* memory = std::calloc(n, sizeof(T));
  if (!memory) throw std::bad_alloc();
#endif
  return static_cast<T*>(memory);
}

template <class T>
void release(T* memory, [[maybe_unused]] size_t n) {
#ifdef __unix__
  if (memory) munmap(static_cast<void*>(memory), n * sizeof(T));
#else
  std::free(static_cast<void*>(memory));
#endif
}

}  // namespace

Langs::Impl::Impl(Langs& langs_, size_t max_bytes_) : langs(langs_), max_bytes(max_bytes_) {
  capacity = std::clamp<size_t>(max_bytes / 88, 1024, size_t(1) << 30);
  expressions = reserve<Expression>(capacity);
  langs.states_ = reserve<State>(capacity);
  langs.facts_ = reserve<std::atomic<uint8_t>>(capacity);
  table.assign(1024, -1);
  std::fill(std::begin(byte_langs), std::end(byte_langs), -1);

  Expression nothing{.kind = Kind::kNothing}, empty{.kind = Kind::kEmptyWord};
  intern(nothing);
  intern(empty);
  ByteSet all;
  all.add(0, 255);
  every_byte = bytes(all);
  Expression star{.kind = Kind::kStar, .a = every_byte};
  every_string = intern(star);
}

Langs::Impl::~Impl() {
  release(expressions, capacity);
  release(langs.states_, capacity);
  release(langs.facts_, capacity);
}

Langs::Charged::Charged(Account& a) : before_(std::exchange(account_of_thread, &a)) {}
Langs::Charged::~Charged() { account_of_thread = before_; }

void Langs::Impl::charge(size_t bytes) {
  Account* account = account_of_thread;
  const auto most = [](size_t n) {
    throw BudgetError("max_bytes", "",
                      "the languages need more than " + std::to_string(n) + " bytes");
  };
  if (held + bytes > max_bytes) most(max_bytes);
  if (account && account->used + bytes > account->most) most(account->most);
  held += bytes;
  if (account) account->used += bytes;
}

void* Langs::Impl::allocate(size_t bytes, size_t align) {
  auto at = (reinterpret_cast<uintptr_t>(arena) + align - 1) & ~(align - 1);
  if (!arena || at + bytes > reinterpret_cast<uintptr_t>(arena_end)) {
    size_t block = std::max<size_t>(bytes + align, size_t(1) << 16);
    charge(block);
    blocks.emplace_back(new char[block]);
    arena = blocks.back().get();
    arena_end = arena + block;
    at = (reinterpret_cast<uintptr_t>(arena) + align - 1) & ~(align - 1);
  }
  arena = reinterpret_cast<char*>(at + bytes);
  return reinterpret_cast<void*>(at);
}

Lang Langs::Impl::intern(Expression& e, const Lang* list, int32_t n) {
  bool listed = list != nullptr;
  uint64_t h = mix(uint64_t(e.kind) << 56 ^ uint64_t(uint32_t(e.a)) << 24 ^ uint32_t(e.b));
  if (listed) {
    e.a = n;
    for (int32_t i = 0; i < n; ++i) h = mix(h + uint32_t(list[i]));
  } else {
    h = mix(h ^ (uint64_t(uint32_t(e.lo)) << 32 | uint32_t(e.hi)));
  }
  e.hash = uint32_t(h);

  size_t mask = table.size() - 1, slot = e.hash & mask;
  for (; table[slot] >= 0; slot = (slot + 1) & mask) {
    const Expression& o = expressions[table[slot]];
    if (o.hash != e.hash || o.kind != e.kind || o.a != e.a) continue;
    if (listed ? std::memcmp(o.items, list, sizeof(Lang) * n) == 0
               : o.b == e.b && o.lo == e.lo && o.hi == e.hi)
      return table[slot];
  }

  if (size_t(size) == capacity)
    throw BudgetError("max_bytes", "", "more than " + std::to_string(capacity) + " languages");
  charge(sizeof(Expression) + sizeof(State) + 1);
  if (listed) {
    auto* copy = static_cast<Lang*>(allocate(sizeof(Lang) * n, alignof(Lang)));
    std::memcpy(copy, list, sizeof(Lang) * n);
    e.items = copy;
  }
  int facts = describe(e);
  if (e.depth > kMaxDepth)
    throw BudgetError("nesting", "",
                      "expressions are nested more than " + std::to_string(kMaxDepth) + " deep");
  e.classes = -1;

  Lang lang = size++;
  expressions[lang] = e;
  learn(lang, facts);
  table[slot] = lang;
  if (size_t(size) * 2 > table.size()) {
    charge(table.size() * sizeof(int32_t));
    std::vector<int32_t> wider(table.size() * 2, -1);
    size_t m = wider.size() - 1;
    for (Lang i = 0; i < size; ++i) {
      size_t s = expressions[i].hash & m;
      while (wider[s] >= 0) s = (s + 1) & m;
      wider[s] = i;
    }
    table.swap(wider);
  }
  return lang;
}

// ---- Langs

Langs::Langs(size_t max_bytes) : impl_(std::make_unique<Impl>(*this, max_bytes)) {}
Langs::~Langs() = default;

#define TOKOPS_LOCKED std::lock_guard guard(impl_->lock)

Lang Langs::bytes(const ByteSet& set) {
  TOKOPS_LOCKED;
  return impl_->bytes(set);
}
Lang Langs::word(std::string_view text) {
  TOKOPS_LOCKED;
  return impl_->word(text);
}
Lang Langs::words(std::vector<std::string> list) {
  TOKOPS_LOCKED;
  return impl_->words(list);
}
Lang Langs::concat(Lang a, Lang b) {
  TOKOPS_LOCKED;
  return impl_->concat(a, b);
}
Lang Langs::concat(std::initializer_list<Lang> list) {
  TOKOPS_LOCKED;
  Lang all = kEmptyWord;
  for (auto part = list.end(); part != list.begin();) all = impl_->concat(*--part, all);
  return all;
}
Lang Langs::either(std::vector<Lang> list) {
  TOKOPS_LOCKED;
  return impl_->either(list);
}
Lang Langs::both(std::vector<Lang> list) {
  TOKOPS_LOCKED;
  return impl_->both(list);
}
Lang Langs::complement(Lang a) {
  TOKOPS_LOCKED;
  return impl_->complement(a);
}
Lang Langs::star(Lang a) {
  TOKOPS_LOCKED;
  return impl_->star(a);
}
Lang Langs::repeat(Lang a, int32_t at_least, int32_t at_most) {
  TOKOPS_LOCKED;
  return impl_->repeat(a, at_least, at_most);
}
Lang Langs::automaton(std::shared_ptr<const Automaton> automaton, int32_t state) {
  TOKOPS_LOCKED;
  return impl_->automaton(std::move(automaton), state, false);
}

Lang Langs::open_loop(bool accepts_empty, bool is_text) {
  TOKOPS_LOCKED;
  Expression e{.kind = Kind::kLoop, .a = -1, .b = impl_->size};
  e.lo = int(accepts_empty) | int(is_text) << 1;
  return impl_->intern(e);
}

void Langs::close_loop(Lang loop, Lang body) {
  TOKOPS_LOCKED;
  impl_->expressions[loop].a = body;
}

Lang Langs::any_bytes() { return impl_->every_string; }
Lang Langs::text() {
  TOKOPS_LOCKED;
  impl_->build_text();
  return impl_->text_tails[0];
}
Lang Langs::any_char() {
  TOKOPS_LOCKED;
  impl_->build_text();
  return impl_->one_char;
}
Lang Langs::code_points(const CodePoints& ranges) {
  TOKOPS_LOCKED;
  return impl_->code_points(ranges);
}

Lang Langs::new_step(Lang lang, uint8_t b) {
  TOKOPS_LOCKED;
  return impl_->step(lang, b);
}
Lang Langs::steps(Lang lang, std::string_view text) {
  for (size_t i = 0; i < text.size() && lang != kNothing; ++i) lang = step(lang, uint8_t(text[i]));
  return lang;
}
const uint8_t* Langs::classes(Lang lang) {
  TOKOPS_LOCKED;
  return impl_->partitions[impl_->classes_of(lang)]->of;
}

#define TOKOPS_QUESTION \
  TOKOPS_LOCKED;        \
  impl_->left = impl_->fuel

bool Langs::find_alive(Lang lang) {
  TOKOPS_QUESTION;
  return impl_->alive(lang);
}
bool Langs::infinite(Lang lang) {
  TOKOPS_QUESTION;
  return impl_->infinite(lang);
}
int64_t Langs::count(Lang lang, int64_t cap) {
  TOKOPS_QUESTION;
  return impl_->count(lang, cap);
}
std::string Langs::shortest(Lang lang) {
  TOKOPS_QUESTION;
  return impl_->shortest(lang);
}
Lengths Langs::lengths(Lang lang) {
  TOKOPS_QUESTION;
  return impl_->lengths(lang);
}
bool Langs::same(Lang a, Lang b) {
  TOKOPS_QUESTION;
  return impl_->same(a, b);
}
std::vector<std::string> Langs::list(Lang lang, int64_t cap) {
  TOKOPS_QUESTION;
  return impl_->list(lang, cap);
}

size_t Langs::size() const {
  TOKOPS_LOCKED;
  return size_t(impl_->size);
}
size_t Langs::memory() const {
  TOKOPS_LOCKED;
  return impl_->held;
}
void Langs::set_fuel(int64_t steps) {
  TOKOPS_LOCKED;
  impl_->fuel = steps;
}

std::optional<Lang> Langs::named(const std::string& name) {
  TOKOPS_LOCKED;
  auto found = impl_->names.find(name);
  return found == impl_->names.end() ? std::nullopt : std::optional(found->second);
}
Lang Langs::keep(const std::string& name, Lang lang) {
  TOKOPS_LOCKED;
  impl_->charge(name.size() + 96);
  impl_->names.emplace(name, lang);
  return lang;
}

}  // namespace tokops::grammar
