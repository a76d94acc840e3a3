// Nodes and atoms, each kept once.
#include <cstring>

#include "schema_impl.h"

namespace tokops::grammar {

namespace {

void put(std::string& key, int64_t v) { key.append(reinterpret_cast<const char*>(&v), sizeof v); }

std::string key_of(const Decimal& d) {
  return (d.negative ? "-" : "+") + d.digits + "e" + std::to_string(d.exponent);
}

std::string key_of(const KeySet& k) {
  std::string key;
  put(key, k.kind);
  put(key, k.lang);
  put(key, k.key);
  put(key, int64_t(k.names.size()));
  for (const int32_t n : k.names) put(key, n);
  for (const Lang p : k.patterns) put(key, p);
  return key;
}

}  // namespace

int32_t Schema::Impl::name(const std::string& s) {
  const auto [at, fresh] = name_ids.try_emplace(s, int32_t(names.size()));
  if (fresh) names.push_back(s);
  return at->second;
}

Literal Schema::Impl::conjunction(std::vector<Literal> kids) {
  std::vector<Literal> flat;
  for (const Literal l : kids) {
    if (l == kTrueLiteral) continue;
    if (l == kFalseLiteral) return kFalseLiteral;
    if (!(l & 1) && nodes[size_t(l >> 1)].kind == Node::kAnd) {
      const auto& inner = nodes[size_t(l >> 1)].kids;
      flat.insert(flat.end(), inner.begin(), inner.end());
    } else {
      flat.push_back(l);
    }
  }
  // The order is the schema's: it is the order in which members are listed.
  std::vector<Literal> unique;
  for (const Literal l : flat) {
    bool seen = false;
    for (const Literal u : unique) {
      if (u == (l ^ 1)) return kFalseLiteral;
      seen |= u == l;
    }
    if (!seen) unique.push_back(l);
    if (unique.size() > 512) break;  // the quadratic search above is for small lists
  }
  if (unique.size() > 512) {
    std::set<Literal> seen;
    unique.clear();
    for (const Literal l : flat) {
      if (seen.count(l ^ 1)) return kFalseLiteral;
      if (seen.insert(l).second) unique.push_back(l);
    }
  }
  if (unique.empty()) return kTrueLiteral;
  if (unique.size() == 1) return unique[0];
  std::string key = "A";
  for (const Literal l : unique) put(key, l);
  const auto [at, fresh] = interned.try_emplace(std::move(key), Literal(2 * nodes.size()));
  if (fresh) {
    Node n{};
    n.kind = Node::kAnd;
    n.kids = std::move(unique);
    n.pointer = here;
    nodes.push_back(std::move(n));
  }
  return at->second;
}

Literal Schema::Impl::disjunction(std::vector<Literal> kids) {
  for (Literal& l : kids) l ^= 1;
  return conjunction(std::move(kids)) ^ 1;
}

Literal Schema::Impl::atom(Atom a, const std::string& key) {
  const auto [at, fresh] = interned.try_emplace(key, Literal(2 * nodes.size()));
  if (fresh) {
    Node n{};
    n.kind = Node::kAtom;
    n.atom = int32_t(atoms.size());
    n.pointer = here;
    nodes.push_back(std::move(n));
    atoms.push_back(std::move(a));
  }
  return at->second;
}

Literal Schema::Impl::types(uint8_t mask) {
  if ((mask & 63) == 63) return kTrueLiteral;
  if (mask == 0) return kFalseLiteral;
  Atom a{};
  a.kind = Atom::kTypeIn;
  a.types = mask;
  return atom(std::move(a), "t" + std::to_string(mask));
}

Literal Schema::Impl::text(Lang lang) {
  if (lang == langs->text() || lang == langs->any_bytes()) return kTrueLiteral;
  Atom a{};
  a.kind = Atom::kText;
  a.type = JsonType::kString;
  a.lang = lang;
  return atom(std::move(a), "s" + std::to_string(lang));
}

Literal Schema::Impl::required(int32_t n) {
  Atom a{};
  a.kind = Atom::kRequired;
  a.type = JsonType::kObject;
  a.name = n;
  return atom(std::move(a), "r" + std::to_string(n));
}

Literal Schema::Impl::member(int32_t n, Literal inner, int32_t place) {
  Atom a{};
  a.kind = Atom::kMember;
  a.type = JsonType::kObject;
  a.name = n;
  a.inner = inner;
  a.order = place;
  return atom(std::move(a), "m" + std::to_string(n) + "," + std::to_string(inner));
}

Literal Schema::Impl::members(KeySet keys, Literal inner) {
  if (inner == kTrueLiteral) return kTrueLiteral;
  Atom a{};
  a.kind = Atom::kMembers;
  a.type = JsonType::kObject;
  a.inner = inner;
  std::string key = "M" + key_of(keys);
  put(key, inner);
  a.keys = std::move(keys);
  return atom(std::move(a), key);
}

Literal Schema::Impl::number_atom(Atom::Kind kind, const Decimal& d, bool upper, bool exclusive) {
  Atom a{};
  a.kind = kind;
  a.type = JsonType::kNumber;
  a.number = d;
  a.upper = upper;
  a.exclusive = exclusive;
  return atom(std::move(a), "n" + std::to_string(kind) + (upper ? "u" : "l") +
                                (exclusive ? "x" : "i") + key_of(d));
}

Literal Schema::Impl::counted(Atom::Kind kind, JsonType type, int64_t count, Literal inner,
                              int64_t from) {
  Atom a{};
  a.kind = kind;
  a.type = type;
  a.count = count;
  a.inner = inner;
  a.from = from;
  return atom(std::move(a), "c" + std::to_string(kind) + "," + std::to_string(count) + "," +
                                std::to_string(inner) + "," + std::to_string(from));
}

Literal Schema::Impl::constant(const Json& v) { return one_of_values({&v}); }

// The formula of an enum: scalars as one atom of their type, arrays and objects item by item.
Literal Schema::Impl::one_of_values(const std::vector<const Json*>& values) {
  uint8_t mask = 0, bools = 0;
  std::vector<Decimal> numbers;
  std::vector<std::string> words;
  std::vector<Literal> arrays, objects;
  for (const Json* v : values) {
    switch (v->kind) {
      case Json::kNull:
        mask |= type_bit(JsonType::kNull);
        break;
      case Json::kFalse:
      case Json::kTrue:
        mask |= type_bit(JsonType::kBool);
        bools |= v->kind == Json::kTrue ? 2 : 1;
        break;
      case Json::kNumber:
        mask |= type_bit(JsonType::kNumber);
        numbers.push_back(Decimal::parse(v->text));
        break;
      case Json::kString:
        mask |= type_bit(JsonType::kString);
        words.push_back(v->text);
        break;
      case Json::kArray: {
        mask |= type_bit(JsonType::kArray);
        std::vector<Literal> all;
        for (size_t i = 0; i < v->items.size(); ++i)
          all.push_back(counted(Atom::kItem, JsonType::kArray, int64_t(i), constant(v->items[i])));
        all.push_back(counted(Atom::kMinItems, JsonType::kArray, int64_t(v->items.size())));
        all.push_back(counted(Atom::kMaxItems, JsonType::kArray, int64_t(v->items.size())));
        arrays.push_back(conjunction(std::move(all)));
        break;
      }
      case Json::kObject: {
        mask |= type_bit(JsonType::kObject);
        std::vector<Literal> all;
        KeySet others;
        others.kind = KeySet::kAdditional;
        for (size_t i = 0; i < v->items.size(); ++i) {
          const int32_t n = name(v->keys[i]);
          others.names.push_back(n);
          all.push_back(required(n));
          all.push_back(member(n, constant(v->items[i]), ++order));
        }
        std::sort(others.names.begin(), others.names.end());
        all.push_back(members(std::move(others), kFalseLiteral));
        objects.push_back(conjunction(std::move(all)));
        break;
      }
    }
  }
  std::vector<Literal> all{types(mask)};
  if (bools == 1 || bools == 2) {
    Atom a{};
    a.kind = Atom::kBoolIn;
    a.type = JsonType::kBool;
    a.types = bools;
    all.push_back(atom(std::move(a), "b" + std::to_string(bools)));
  }
  if (!numbers.empty()) {
    Atom a{};
    a.kind = Atom::kEqual;
    a.type = JsonType::kNumber;
    std::string key = "=";
    for (const Decimal& d : numbers) key += key_of(d) + ";";
    a.numbers = std::move(numbers);
    all.push_back(atom(std::move(a), key));
  }
  if (!words.empty())
    all.push_back(text(words.size() == 1 ? langs->word(words[0]) : langs->words(std::move(words))));
  // An atom or formula about arrays holds of every other type, so that a disjunction of several
  // must not be true of those: "not an array, or one of these".
  const auto guarded = [&](std::vector<Literal> some, JsonType t) {
    if (some.empty()) return;
    if (some.size() == 1) {
      all.push_back(some[0]);
      return;
    }
    for (Literal& l : some) l = conjunction({types(type_bit(t)), l});
    some.push_back(types(uint8_t(63 & ~type_bit(t))));
    all.push_back(disjunction(std::move(some)));
  };
  guarded(std::move(arrays), JsonType::kArray);
  guarded(std::move(objects), JsonType::kObject);
  return conjunction(std::move(all));
}

}  // namespace tokops::grammar
