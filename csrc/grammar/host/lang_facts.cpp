// What is known of an expression by its parts: whether it holds "", any word, how many, which are
// text.
#include <algorithm>

#include "lang_impl.h"

namespace tokops::grammar {
namespace {

constexpr int32_t kNever = 1 << 30;

int32_t sum(int32_t a, int32_t b) { return std::min(kNever, a + b); }

TextMap closure(TextMap once) {
  TextMap all = kTextIdentity;
  for (;;) {
    TextMap more = all * once;
    more.ends |= all.ends, more.fails |= all.fails;
    if (more == all) return all;
    all = more;
  }
}

// Facts of a leaf of ASCII or unknown words.
TextMap leaf_text(bool ascii, bool accepts) {
  if (!ascii) return {};
  return {accepts ? kTextIdentity.ends : kTextAscii.ends, kTextAscii.fails};
}

}  // namespace

// What is known of an expression by its parts.
int Langs::Impl::describe(Expression& e) const {
  bool empty = false, alive = false, finite = false, infinite = false;
  TextMap text;
  e.depth = 1;
  e.plain = true;
  e.looping = false;
  e.shortest = 0;

  auto has = [&](Lang lang, Fact fact) { return (facts(lang) & fact) != 0; };
  auto part = [&](Lang lang) -> const Expression& {
    const Expression& p = at(lang);
    e.plain &= p.plain;
    e.looping |= p.looping;
    e.depth = std::max<uint16_t>(e.depth, p.depth + 1);
    return p;
  };

  switch (e.kind) {
    case Kind::kNothing:
      text = kTextNone;
      e.shortest = kNever;
      finite = true;
      break;
    case Kind::kEmptyWord:
      text = kTextIdentity;
      empty = finite = true;
      break;
    case Kind::kBytes:
      text = text_map(sets[e.a]);
      e.shortest = 1;
      finite = true;
      break;
    case Kind::kConcat: {
      const Expression &a = part(e.a), &b = at(e.b);
      e.plain &= b.plain;
      e.looping |= b.looping;
      e.depth = std::max(e.depth, b.depth);
      empty = has(e.a, kAccepts) && has(e.b, kAccepts);
      alive = has(e.a, kAlive) && has(e.b, kAlive);
      finite = has(e.a, kFinite) && has(e.b, kFinite);
      infinite = alive && (has(e.a, kInfinite) || has(e.b, kInfinite));
      text = this->text(e.a) * this->text(e.b);
      e.shortest = sum(a.shortest, b.shortest);
      break;
    }
    case Kind::kEither:
      finite = true;
      text = kTextNone;
      e.shortest = kNever;
      for (Lang x : std::span(e.items, e.a)) {
        const Expression& p = part(x);
        empty |= has(x, kAccepts);
        alive |= has(x, kAlive);
        finite &= has(x, kFinite);
        infinite |= has(x, kInfinite);
        text.ends |= p.ends, text.fails |= p.fails;
        e.shortest = std::min(e.shortest, p.shortest);
      }
      break;
    case Kind::kBoth:
      empty = true;
      for (Lang x : std::span(e.items, e.a)) {
        const Expression& p = part(x);
        empty &= has(x, kAccepts);
        finite |= has(x, kFinite);
        text.ends &= p.ends, text.fails &= p.fails;
        e.shortest = std::max(e.shortest, p.shortest);
      }
      e.plain = false;
      break;
    case Kind::kNot:
      part(e.a);
      e.plain = false;
      empty = !has(e.a, kAccepts);
      alive = infinite = has(e.a, kFinite);
      e.shortest = empty ? 0 : 1;
      break;
    case Kind::kStar: {
      const Expression& p = part(e.a);
      empty = true;
      infinite = has(e.a, kAlive) && (p.shortest > 0 || has(e.a, kInfinite));
      text = closure(this->text(e.a));
      break;
    }
    case Kind::kRepeat: {
      const Expression& p = part(e.a);
      empty = e.lo == 0;
      alive = has(e.a, kAlive);
      finite = e.hi >= 0 && has(e.a, kFinite);
      infinite = alive && (has(e.a, kInfinite) || (e.hi < 0 && p.shortest > 0));
      text = closure(this->text(e.a));
      if (e.lo > 0) text = this->text(e.a) * text;
      e.shortest = int32_t(std::min<int64_t>(kNever, int64_t(p.shortest) * e.lo));
      break;
    }
    case Kind::kWords: {
      const Tree& tree = *trees[e.a];
      const Tree::Node& node = tree.nodes[e.b];
      empty = node.accepts;
      finite = true;
      e.shortest = node.shortest;
      if (tree.is_ascii) {
        text = leaf_text(true, empty);
      } else if (tree.is_text) {
        text.fails = uint8_t(~(1 << node.text));
        text.ends &= ~(uint64_t(0xff) << (8 * node.text));
        text.ends |= uint64_t(1) << (8 * node.text);
      }
      break;
    }
    case Kind::kAutomaton:
      empty = machines[e.a].automaton->accepts(e.b) != bool(e.hi);
      text = leaf_text(machines[e.a].ascii && !e.hi, empty);
      e.shortest = empty ? 0 : 1;
      break;
    case Kind::kLoop:
      e.plain = false;
      e.looping = true;
      empty = e.lo & 1;
      e.shortest = empty ? 0 : 1;
      if (e.lo & 2) text.ends = (text.ends & ~uint64_t(0xff)) | 1, text.fails = 0xfe;
      break;
  }
  e.ends = text.ends;
  e.fails = text.fails;
  if (e.kind == Kind::kNothing) return kDead | kFinite;
  alive |= empty || e.plain || infinite;
  return (empty ? kAccepts : 0) | (alive ? kAlive : 0) | (finite ? kFinite : 0) |
         (infinite ? kInfinite : 0);
}

}  // namespace tokops::grammar
