// From a JSON Schema document to nodes: references, keywords of all drafts from 4 on.
#include <cstring>

#include "schema_impl.h"
#include "uri.h"

namespace tokops::grammar {

namespace {

constexpr int32_t kDeepest = 400;       // schemas within schemas
constexpr size_t kMostCases = 64;       // ways to satisfy a schema beside unevaluatedProperties / Items

bool one_of_words(std::string_view s, std::initializer_list<std::string_view> words) {
  for (const std::string_view w : words)
    if (s == w) return true;
  return false;
}

int32_t draft_of(std::string_view uri, int32_t otherwise) {
  const auto has = [&](std::string_view part) { return uri.find(part) != uri.npos; };
  if (has("draft-04")) return 4;
  if (has("draft-05")) return 4;
  if (has("draft-06")) return 6;
  if (has("draft-07")) return 7;
  if (has("2019-09")) return 2019;
  if (has("2020-12")) return 2020;
  if (has("draft-03") || has("draft-02") || has("draft-01") || has("draft-00")) return 3;
  return otherwise;
}

// Keywords that say nothing about which values are valid.
bool annotation(std::string_view k) {
  return one_of_words(k, {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$comment", "$vocabulary", "title",
                          "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "definitions",
                          "$defs", "contentEncoding", "contentMediaType", "contentSchema"});
}

bool assertion(std::string_view k) {
  return one_of_words(
      k, {"$ref", "$dynamicRef", "$recursiveRef", "type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum",
          "minimum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "format", "items", "additionalItems", "prefixItems",
          "maxItems", "minItems", "uniqueItems", "contains", "maxContains", "minContains", "maxProperties", "minProperties",
          "required", "properties", "patternProperties", "additionalProperties", "dependencies", "dependentRequired",
          "dependentSchemas", "propertyNames", "if", "then", "else", "allOf", "anyOf", "oneOf", "not", "unevaluatedItems",
          "unevaluatedProperties"});
}

[[noreturn]] void malformed(const std::string& keyword, const std::string& pointer, const std::string& reason) {
  throw GrammarError(keyword, pointer, reason);
}

int64_t count_of(const Json& v, const char* keyword, const std::string& pointer) {
  if (v.kind != Json::kNumber) malformed(keyword, pointer, "expected a number");
  const Decimal d = Decimal::parse(v.text);
  if (!d.integer() || d.negative) malformed(keyword, pointer, "expected an integer of at least 0, got " + v.text);
  if (int64_t(d.digits.size()) + d.exponent > 9) return 1000000000;
  int64_t n = 0;
  for (const char c : d.digits) n = n * 10 + (c - '0');
  for (int64_t e = 0; e < d.exponent; ++e) n *= 10;
  return std::min<int64_t>(n, 1000000000);
}

Decimal number_of(const Json& v, const char* keyword, const std::string& pointer) {
  if (v.kind != Json::kNumber) malformed(keyword, pointer, "expected a number");
  return Decimal::parse(v.text);
}

}  // namespace

void Schema::Impl::warn(const std::string& w) {
  if (warnings.size() < 200 && std::find(warnings.begin(), warnings.end(), w) == warnings.end()) warnings.push_back(w);
}

void Schema::Impl::tick() {
  if ((++steps & 1023) == 0) {
    if (options.interrupt) options.interrupt();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (spent.count() > options.timeout)
      throw BudgetError("timeout", "", "compiling took longer than " + std::to_string(options.timeout) + " s");
  }
  if (steps > options.max_steps)
    throw BudgetError("max_steps", "", "the search for the shapes of values took more than " + std::to_string(options.max_steps) + " steps");
}

void Schema::Impl::add_document(const Json& j, const std::string& base, int32_t draft) {
  index(j, Place{base, "", draft}, 0);
  resources.try_emplace(base, Resource{&j, Place{base, "", draft}});
}

// Notes where the document names its parts.
void Schema::Impl::index(const Json& j, Place place, int32_t level) {
  if (level > kDeepest) throw BudgetError("nesting", place.pointer, "the schema is nested more than " + std::to_string(kDeepest) + " levels deep");
  if (j.kind == Json::kObject) {
    if (const Json* s = j.find("$schema"); s && s->kind == Json::kString) place.draft = draft_of(s->text, place.draft);
    const Json* id = j.find(place.draft == 4 ? "id" : "$id");
    if (place.draft <= 7 && j.find("$ref")) id = nullptr;  // siblings of $ref say nothing there
    bool opens = false;
    if (id && id->kind == Json::kString) {
      const size_t hash = id->text.find('#');
      const std::string uri = id->text.substr(0, hash);
      if (!uri.empty()) {
        place.base = resolve_uri(place.base, uri);
        resources.insert_or_assign(place.base, Resource{&j, place});
        opens = true;
      }
      if (hash != std::string::npos && hash + 1 < id->text.size() && place.draft <= 7)
        anchors.insert_or_assign(place.base + id->text.substr(hash), Resource{&j, place});
    }
    for (const char* word : {"$anchor", "$dynamicAnchor"})
      if (const Json* a = j.find(word); a && a->kind == Json::kString) {
        anchors.insert_or_assign(place.base + "#" + a->text, Resource{&j, place});
        if (word[1] == 'd') ++dynamic_anchors[a->text];
      }
    if (const Json* a = j.find("$recursiveAnchor"); a && a->kind == Json::kTrue) ++dynamic_anchors["$recursive"];
    if (opens || level == 0) places[&j] = place;
    for (size_t i = 0; i < j.items.size(); ++i) {
      const Json& v = j.items[i];
      if (v.kind != Json::kObject && v.kind != Json::kArray) continue;
      const std::string& k = j.keys[i];
      const bool maps = one_of_words(k, {"properties", "patternProperties", "definitions", "$defs", "dependentSchemas", "dependencies"});
      const bool list = v.kind == Json::kArray;
      if (!maps && !one_of_words(k, {"allOf", "anyOf", "oneOf", "items", "prefixItems", "additionalItems", "additionalProperties", "not", "if",
                                     "then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "contentSchema"}))
        continue;  // an $id elsewhere names nothing
      Place inner = place;
      inner.pointer += "/" + pointer_escaped(k);
      if (!maps && !list) {
        index(v, std::move(inner), level + 1);
        continue;
      }
      for (size_t m = 0; m < v.items.size(); ++m) {
        if (v.items[m].kind != Json::kObject) continue;
        Place at = inner;
        at.pointer += "/" + (list ? std::to_string(m) : pointer_escaped(v.keys[m]));
        index(v.items[m], std::move(at), level + 1);
      }
    }
  }
}

Schema::Impl::Resource Schema::Impl::resolve(const std::string& reference, const Place& from, const char* keyword) {
  const size_t hash = reference.find('#');
  const std::string uri = resolve_uri(from.base, reference.substr(0, hash));
  const std::string fragment = hash == std::string::npos ? "" : percent_decoded(reference.substr(hash + 1));
  auto found = resources.find(uri);
  if (found == resources.end()) {
    auto known = options.registry.find(uri);
    if (known == options.registry.end()) known = options.registry.find(uri + "#");
    if (known == options.registry.end())
      throw GrammarError(keyword, from.pointer, "can't resolve " + reference + ": there is no document " + uri +
                                                     " (pass it in registry={uri: schema})");
    kept.push_back(known->second);
    add_document(kept.back(), uri, from.draft);
    found = resources.find(uri);
  }
  if (fragment.empty()) return found->second;
  if (fragment[0] != '/') {
    const auto a = anchors.find(uri + "#" + fragment);
    if (a == anchors.end()) throw GrammarError(keyword, from.pointer, "can't resolve " + reference + ": there is no such anchor");
    return a->second;
  }
  // A JSON pointer; resources on its way change the base.
  Resource at = found->second;
  std::string_view rest = std::string_view(fragment).substr(1);
  while (true) {
    const size_t slash = rest.find('/');
    std::string token;
    const std::string_view raw = rest.substr(0, slash);
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] == '~' && i + 1 < raw.size()) {
        token += raw[i + 1] == '0' ? '~' : '/';
        ++i;
      } else {
        token += raw[i];
      }
    }
    const Json* next = nullptr;
    if (at.json->kind == Json::kObject) {
      next = at.json->find(token);
    } else if (at.json->kind == Json::kArray && !token.empty() && token.size() < 9 && token.find_first_not_of("0123456789") == token.npos) {
      const size_t i = std::stoul(token);
      if (i < at.json->items.size()) next = &at.json->items[i];
    }
    if (!next) throw GrammarError(keyword, from.pointer, "can't resolve " + reference + ": there is nothing at this place");
    at.json = next;
    at.place.pointer += "/" + pointer_escaped(token);
    if (const auto own = places.find(next); own != places.end()) at.place = own->second;
    if (slash == rest.npos) return at;
    rest = rest.substr(slash + 1);
  }
}

Literal Schema::Impl::read(const Json& j, const Place& outer) {
  tick();
  if (j.kind == Json::kTrue) return kTrueLiteral;
  if (j.kind == Json::kFalse) return kFalseLiteral;
  if (j.kind != Json::kObject) malformed("schema", outer.pointer, "a schema is an object or a boolean");
  if (j.items.empty()) return kTrueLiteral;
  if (const auto at = read_schemas.find(&j); at != read_schemas.end()) return at->second;
  const auto own = places.find(&j);
  const Place place = own == places.end() ? outer : own->second;
  if (const Json* meta = j.find("$schema"); meta && meta->kind == Json::kString) {
    std::string uri = meta->text;
    if (!uri.empty() && uri.back() == '#') uri.pop_back();
    if (const auto known = options.registry.find(uri); known != options.registry.end())
      if (const Json* words = known->second.find("$vocabulary"); words && words->kind == Json::kObject) {
        bool validates = false;
        for (const std::string& w : words->keys) validates |= w.find("/vocab/validation") != w.npos;
        if (!validates) throw GrammarError("$schema", place.pointer, "a meta-schema without the validation vocabulary is not supported");
      }
  }
  if (place.draft == 3) malformed("$schema", place.pointer, "draft 3 and earlier are not supported");
  if (++depth > kDeepest) throw BudgetError("nesting", place.pointer, "the schema is nested more than " + std::to_string(kDeepest) + " levels deep");
  // A reference to a schema that is still being read ends at its link.
  const Literal link = Literal(2 * nodes.size());
  Node n{};
  n.kind = Node::kLink;
  n.pointer = place.pointer;
  nodes.push_back(std::move(n));
  read_schemas.emplace(&j, link);
  const Literal l = read_keywords(j, place);
  nodes[size_t(link >> 1)].kids = {l};
  read_schemas[&j] = l;
  --depth;
  return l;
}

Literal Schema::Impl::one_of(std::vector<Literal> kids, const Place& place) {
  std::vector<Literal> some;
  for (const Literal l : kids)
    if (l != kFalseLiteral) some.push_back(l);
  if (some.empty()) return kFalseLiteral;
  if (some.size() == 1) return some[0];
  if (options.one_of == "any_of") return disjunction(std::move(some));
  const Literal l = Literal(2 * nodes.size());
  Node n{};
  n.kind = Node::kOneOf;
  n.kids = std::move(some);
  n.pointer = place.pointer + "/oneOf";
  nodes.push_back(std::move(n));
  return l;
}

Literal Schema::Impl::read_format(const Json& v, const Place& place) {
  if (v.kind != Json::kString) malformed("format", place.pointer, "expected a string");
  if (!options.assert_formats) return kTrueLiteral;
  if (const auto lang = format(*langs, v.text)) return text(*lang);
  warn("format at " + (place.pointer.empty() ? "the root" : place.pointer) + ": \"" + v.text + "\" is not known and not checked");
  return kTrueLiteral;
}

Literal Schema::Impl::read_keywords(const Json& j, const Place& place) {
  if (place.draft <= 7 && j.find("$ref")) {
    const Json& r = *j.find("$ref");
    if (r.kind != Json::kString) malformed("$ref", place.pointer, "expected a string");
    const Resource to = resolve(r.text, place, "$ref");
    return read(*to.json, to.place);
  }
  const bool members_left = j.find("unevaluatedProperties"), items_left = j.find("unevaluatedItems");
  if ((members_left || items_left) && place.draft >= 2019) {
    // Ways to satisfy the rest of the schema, each with what it evaluates.
    std::vector<Literal> ways;
    for (const Case& c : cases(j, place, true, 0)) {
      std::vector<Literal> all{c.formula};
      if (const Json* u = j.find("unevaluatedProperties"); u && !c.evaluated.all_members) {
        Place inner = place;
        inner.pointer += "/unevaluatedProperties";
        KeySet keys;
        keys.kind = KeySet::kAdditional;
        keys.names.assign(c.evaluated.names.begin(), c.evaluated.names.end());
        keys.patterns = c.evaluated.patterns;
        all.push_back(members(std::move(keys), read(*u, inner)));
      }
      if (const Json* u = j.find("unevaluatedItems"); u && !c.evaluated.all_items) {
        if (c.evaluated.contains && u->kind != Json::kTrue)
          throw GrammarError("unevaluatedItems", place.pointer, "beside contains it depends on which items match, which is not supported");
        Place inner = place;
        inner.pointer += "/unevaluatedItems";
        const Literal item = read(*u, inner);
        if (item != kTrueLiteral) all.push_back(counted(Atom::kItemsFrom, JsonType::kArray, 0, item, c.evaluated.items));
      }
      ways.push_back(conjunction(std::move(all)));
    }
    return disjunction(std::move(ways));
  }
  std::vector<Literal> all;
  read_simple(j, place, all, nullptr);
  const auto inner_place = [&](const std::string& tail) {
    Place p = place;
    p.pointer += tail;
    return p;
  };
  const auto list = [&](const char* keyword) {
    std::vector<Literal> out;
    if (const Json* v = j.find(keyword)) {
      if (v->kind != Json::kArray || v->items.empty()) malformed(keyword, place.pointer, "expected a list of schemas that is not empty");
      for (size_t i = 0; i < v->items.size(); ++i)
        out.push_back(read(v->items[i], inner_place("/" + std::string(keyword) + "/" + std::to_string(i))));
    }
    return out;
  };
  for (const Literal l : list("allOf")) all.push_back(l);
  if (j.find("anyOf")) all.push_back(disjunction(list("anyOf")));
  if (j.find("oneOf")) all.push_back(one_of(list("oneOf"), place));
  if (const Json* v = j.find("if"); v && place.draft >= 7) {
    const Literal condition = read(*v, inner_place("/if"));
    const Literal then = j.find("then") ? read(*j.find("then"), inner_place("/then")) : kTrueLiteral;
    const Literal otherwise = j.find("else") ? read(*j.find("else"), inner_place("/else")) : kTrueLiteral;
    if (then != otherwise)
      all.push_back(disjunction({conjunction({condition, then}), conjunction({condition ^ 1, otherwise})}));
    else
      all.push_back(then);
  }
  if (const Json* v = j.find("dependentSchemas"); v && place.draft >= 2019) {
    if (v->kind != Json::kObject) malformed("dependentSchemas", place.pointer, "expected an object");
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Literal has = required(name(v->keys[i]));
      const Literal then = read(v->items[i], inner_place("/dependentSchemas/" + pointer_escaped(v->keys[i])));
      all.push_back(disjunction({types(uint8_t(63 & ~type_bit(JsonType::kObject))), conjunction({has ^ 1, types(type_bit(JsonType::kObject))}),
                                 conjunction({has, then})}));
    }
  }
  for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"}) {
    const Json* v = j.find(keyword);
    if (!v || (keyword[1] == 'd' && place.draft < 2020) || (keyword[2] == 'e' && keyword[1] == 'r' && keyword[3] == 'c' && place.draft != 2019)) continue;
    if (v->kind != Json::kString) malformed(keyword, place.pointer, "expected a string");
    const Resource to = resolve(v->text, place, keyword);
    if (keyword[1] == 'd') {
      const size_t hash = v->text.find('#');
      const std::string anchor = hash == std::string::npos ? "" : v->text.substr(hash + 1);
      const auto known = dynamic_anchors.find(anchor);
      if (to.json->find("$dynamicAnchor") && known != dynamic_anchors.end() && known->second > 1)
        throw GrammarError(keyword, place.pointer, "several schemas have the dynamic anchor " + anchor + ": which is meant depends on the way there, which is not supported");
    }
    if (keyword[1] == 'r' && keyword[3] == 'c')
      if (const auto known = dynamic_anchors.find("$recursive"); known != dynamic_anchors.end() && known->second > 1)
        throw GrammarError(keyword, place.pointer, "several schemas have $recursiveAnchor: which is meant depends on the way there, which is not supported");
    all.push_back(read(*to.json, to.place));
  }
  for (const std::string& k : j.keys)
    if (!annotation(k) && !assertion(k))
      warn("unknown keyword \"" + k + "\" at " + (place.pointer.empty() ? "the root" : place.pointer) + ": not checked, as the specification says");
  return conjunction(std::move(all));
}

// The keywords that apply no schema to the value itself. With `evaluated`, also what they evaluate.
void Schema::Impl::read_simple(const Json& j, const Place& place, std::vector<Literal>& all, Evaluated* evaluated) {
  const auto at = [&](const std::string& tail) {
    Place p = place;
    p.pointer += tail;
    return p;
  };
  const auto find = [&](const char* k) { return j.find(k); };

  if (const Json* v = find("type")) {
    uint8_t mask = 0;
    bool integer = false, number = false;
    const auto add = [&](const Json& t) {
      if (t.kind != Json::kString) malformed("type", place.pointer, "expected a name of a type, or a list of names");
      if (t.text == "null") mask |= type_bit(JsonType::kNull);
      else if (t.text == "boolean") mask |= type_bit(JsonType::kBool);
      else if (t.text == "number") number = true;
      else if (t.text == "integer") integer = true;
      else if (t.text == "string") mask |= type_bit(JsonType::kString);
      else if (t.text == "array") mask |= type_bit(JsonType::kArray);
      else if (t.text == "object") mask |= type_bit(JsonType::kObject);
      else malformed("type", place.pointer, "\"" + t.text + "\" is not a type");
    };
    if (v->kind == Json::kArray) {
      if (v->items.empty()) malformed("type", place.pointer, "the list of types is empty");
      for (const Json& t : v->items) add(t);
    } else {
      add(*v);
    }
    if (number || integer) mask |= type_bit(JsonType::kNumber);
    all.push_back(types(mask));
    if (integer && !number) {
      Atom a{};
      a.kind = Atom::kInteger;
      a.type = JsonType::kNumber;
      all.push_back(atom(std::move(a), "i"));
    }
  }
  if (const Json* v = find("enum")) {
    if (v->kind != Json::kArray) malformed("enum", place.pointer, "expected a list");
    std::vector<const Json*> values;
    for (const Json& x : v->items) values.push_back(&x);
    all.push_back(one_of_values(values));
  }
  if (const Json* v = find("const"); v && place.draft >= 6) all.push_back(constant(*v));

  // numbers
  if (const Json* v = find("multipleOf")) {
    const Decimal d = number_of(*v, "multipleOf", place.pointer);
    if (d.negative || d.digits.empty()) malformed("multipleOf", place.pointer, "expected a number above 0");
    all.push_back(number_atom(Atom::kMultiple, d, false, false));
  }
  for (const bool upper : {false, true}) {
    const char* plain = upper ? "maximum" : "minimum";
    const char* strict = upper ? "exclusiveMaximum" : "exclusiveMinimum";
    const Json *p = find(plain), *s = find(strict);
    const bool modifies = s && s->boolean();
    if (p) all.push_back(number_atom(Atom::kBound, number_of(*p, plain, place.pointer), upper, modifies && s->kind == Json::kTrue));
    if (s && !modifies) all.push_back(number_atom(Atom::kBound, number_of(*s, strict, place.pointer), upper, true));
  }

  // strings
  if (const Json* v = find("minLength"))
    if (const int64_t n = count_of(*v, "minLength", place.pointer)) all.push_back(counted(Atom::kMinLength, JsonType::kString, n));
  if (const Json* v = find("maxLength")) all.push_back(counted(Atom::kMaxLength, JsonType::kString, count_of(*v, "maxLength", place.pointer)));
  if (const Json* v = find("pattern")) {
    if (v->kind != Json::kString) malformed("pattern", place.pointer, "expected a string");
    all.push_back(text(langs->both({langs->text(), regex(*langs, v->text, {}, "pattern", place.pointer)})));
  }
  if (const Json* v = find("format")) all.push_back(read_format(*v, place));

  // arrays
  const bool legacy_items = find("items") && find("items")->kind == Json::kArray;
  int64_t prefix = 0;
  const Json* listed = legacy_items ? find("items") : place.draft >= 2020 ? find("prefixItems") : nullptr;
  if (listed) {
    if (listed->kind != Json::kArray) malformed("prefixItems", place.pointer, "expected a list of schemas");
    if (legacy_items && place.draft >= 2020) warn("items at " + (place.pointer.empty() ? "the root" : place.pointer) + ": a list is read as prefixItems");
    for (const Json& item : listed->items) {
      const Literal l = read(item, at(std::string(legacy_items ? "/items/" : "/prefixItems/") + std::to_string(prefix)));
      if (l != kTrueLiteral) all.push_back(counted(Atom::kItem, JsonType::kArray, prefix, l));
      ++prefix;
    }
  }
  if (evaluated) evaluated->items = std::max(evaluated->items, prefix);
  const Json* rest = legacy_items ? find("additionalItems") : find("items");
  if (rest) {
    const Literal l = read(*rest, at(legacy_items ? "/additionalItems" : "/items"));
    if (l != kTrueLiteral) all.push_back(counted(Atom::kItemsFrom, JsonType::kArray, 0, l, prefix));
    if (evaluated) evaluated->all_items = true;
  }
  if (const Json* v = find("minItems"))
    if (const int64_t n = count_of(*v, "minItems", place.pointer)) all.push_back(counted(Atom::kMinItems, JsonType::kArray, n));
  if (const Json* v = find("maxItems")) all.push_back(counted(Atom::kMaxItems, JsonType::kArray, count_of(*v, "maxItems", place.pointer)));
  if (const Json* v = find("uniqueItems")) {
    if (!v->boolean()) malformed("uniqueItems", place.pointer, "expected true or false");
    if (v->kind == Json::kTrue) all.push_back(counted(Atom::kUnique, JsonType::kArray, 0));
  }
  if (const Json* v = find("contains"); v && place.draft >= 6) {
    const Literal l = read(*v, at("/contains"));
    int64_t fewest = 1;
    if (const Json* m = find("minContains"); m && place.draft >= 2019) fewest = count_of(*m, "minContains", place.pointer);
    if (fewest) all.push_back(counted(Atom::kSomeItems, JsonType::kArray, fewest, l));
    if (const Json* m = find("maxContains"); m && place.draft >= 2019)
      all.push_back(counted(Atom::kManyItems, JsonType::kArray, count_of(*m, "maxContains", place.pointer), l));
    if (evaluated && place.draft >= 2020) evaluated->contains = true;
  }

  // objects
  const Json* listed_members = find("properties");
  const Json* patterns = find("patternProperties");
  KeySet others;
  others.kind = KeySet::kAdditional;
  if (listed_members) {
    if (listed_members->kind != Json::kObject) malformed("properties", place.pointer, "expected an object");
    for (size_t i = 0; i < listed_members->items.size(); ++i) {
      const int32_t n = name(listed_members->keys[i]);
      const int32_t place_in_order = ++order;
      others.names.push_back(n);
      // Kept also where it says nothing, for the order.
      all.push_back(member(n, read(listed_members->items[i], at("/properties/" + pointer_escaped(listed_members->keys[i]))), place_in_order));
      if (evaluated) evaluated->names.insert(n);
    }
    std::sort(others.names.begin(), others.names.end());
  }
  if (patterns) {
    if (patterns->kind != Json::kObject) malformed("patternProperties", place.pointer, "expected an object");
    for (size_t i = 0; i < patterns->items.size(); ++i) {
      const std::string pointer = place.pointer + "/patternProperties/" + pointer_escaped(patterns->keys[i]);
      KeySet keys;
      keys.lang = langs->both({langs->text(), regex(*langs, patterns->keys[i], {}, "patternProperties", pointer)});
      others.patterns.push_back(keys.lang);
      if (evaluated) evaluated->patterns.push_back(keys.lang);
      all.push_back(members(std::move(keys), read(patterns->items[i], at("/patternProperties/" + pointer_escaped(patterns->keys[i])))));
    }
    std::sort(others.patterns.begin(), others.patterns.end());
    others.patterns.erase(std::unique(others.patterns.begin(), others.patterns.end()), others.patterns.end());
  }
  if (const Json* v = find("additionalProperties")) {
    all.push_back(members(std::move(others), read(*v, at("/additionalProperties"))));
    if (evaluated) evaluated->all_members = true;
  } else if (options.strict && listed_members && !patterns && !find("unevaluatedProperties")) {
    all.push_back(members(std::move(others), kFalseLiteral));
  }
  if (const Json* v = find("required"); v && !(v->boolean() && place.draft <= 4)) {
    if (v->kind != Json::kArray) malformed("required", place.pointer, "expected a list of strings");
    for (const Json& k : v->items) {
      if (k.kind != Json::kString) malformed("required", place.pointer, "expected a list of strings");
      all.push_back(required(name(k.text)));
    }
  } else if (v) {
    malformed("required", place.pointer, "expected a list of strings");
  }
  if (const Json* v = find("minProperties"))
    if (const int64_t n = count_of(*v, "minProperties", place.pointer)) all.push_back(counted(Atom::kMinMembers, JsonType::kObject, n));
  if (const Json* v = find("maxProperties")) all.push_back(counted(Atom::kMaxMembers, JsonType::kObject, count_of(*v, "maxProperties", place.pointer)));
  if (const Json* v = find("propertyNames"); v && place.draft >= 6) {
    const Literal l = read(*v, at("/propertyNames"));
    if (l != kTrueLiteral) {
      KeySet keys;
      keys.kind = KeySet::kByName;
      keys.key = l ^ 1;
      all.push_back(members(std::move(keys), kFalseLiteral));
    }
  }
  const auto requires_all = [&](const std::string& key, const Json& names_, const char* keyword) {
    std::vector<Literal> needed;
    for (const Json& k : names_.items) {
      if (k.kind != Json::kString) malformed(keyword, place.pointer, "expected lists of strings");
      needed.push_back(required(name(k.text)));
    }
    const Literal has = required(name(key));
    needed.push_back(has);
    // "has" holds of every value that is no object: there the needed names hold too.
    all.push_back(disjunction({conjunction({has ^ 1}), conjunction(std::move(needed))}));
  };
  if (const Json* v = find("dependentRequired"); v && place.draft >= 2019) {
    if (v->kind != Json::kObject) malformed("dependentRequired", place.pointer, "expected an object");
    for (size_t i = 0; i < v->items.size(); ++i) {
      if (v->items[i].kind != Json::kArray) malformed("dependentRequired", place.pointer, "expected lists of strings");
      requires_all(v->keys[i], v->items[i], "dependentRequired");
    }
  }
  if (const Json* v = find("dependencies")) {
    if (v->kind != Json::kObject) malformed("dependencies", place.pointer, "expected an object");
    if (place.draft >= 2019) warn("dependencies at " + (place.pointer.empty() ? "the root" : place.pointer) + ": read as up to draft 7");
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Json& d = v->items[i];
      if (d.kind == Json::kArray) {
        requires_all(v->keys[i], d, "dependencies");
      } else {
        const Literal has = required(name(v->keys[i]));
        const Literal then = read(d, at("/dependencies/" + pointer_escaped(v->keys[i])));
        all.push_back(disjunction({types(uint8_t(63 & ~type_bit(JsonType::kObject))),
                                   conjunction({types(type_bit(JsonType::kObject)), has ^ 1}),
                                   conjunction({types(type_bit(JsonType::kObject)), has, then})}));
      }
    }
  }
  if (const Json* v = find("not")) all.push_back(read(*v, at("/not")) ^ 1);
}

// All the ways to satisfy a schema that differ in what they evaluate (unevaluated* apart).
std::vector<Case> Schema::Impl::cases(const Json& j, const Place& outer, bool top, int32_t level) {
  tick();
  if (j.kind == Json::kTrue) return {{kTrueLiteral, {}}};
  if (j.kind == Json::kFalse) return {};
  if (j.kind != Json::kObject) malformed("schema", outer.pointer, "a schema is an object or a boolean");
  const auto own = places.find(&j);
  const Place place = own == places.end() ? outer : own->second;
  const char* word = j.find("unevaluatedProperties") ? "unevaluatedProperties" : "unevaluatedItems";
  if (level > 32) throw GrammarError(word, place.pointer, "a reference leads back to the schema whose members it evaluates");
  const auto at = [&](const std::string& tail) {
    Place p = place;
    p.pointer += tail;
    return p;
  };
  const auto bounded = [&](const std::vector<Case>& c) {
    if (c.size() > kMostCases) throw BudgetError(word, place.pointer, "there are more than " + std::to_string(kMostCases) + " ways to satisfy the schemas beside it");
  };
  Case base{kTrueLiteral, {}};
  std::vector<Literal> simple;
  read_simple(j, place, simple, &base.evaluated);
  base.formula = conjunction(std::move(simple));
  if (!top) {
    // A schema inside: its own unevaluated* has been taken into account where it is read.
    if (j.find("unevaluatedProperties")) base.evaluated.all_members = true;
    if (j.find("unevaluatedItems")) base.evaluated.all_items = true;
    if (j.find("unevaluatedProperties") || j.find("unevaluatedItems")) base.formula = conjunction({base.formula, read(j, outer)});
  }
  std::vector<Case> all{base};
  const auto product = [&](const std::vector<Case>& more) {
    std::vector<Case> out;
    for (const Case& a : all)
      for (const Case& b : more) {
        const Literal f = conjunction({a.formula, b.formula});
        if (f == kFalseLiteral) continue;
        Case c{f, a.evaluated};
        c.evaluated.add(b.evaluated);
        out.push_back(std::move(c));
      }
    bounded(out);
    all = std::move(out);
  };
  const auto plain = [](const std::vector<Case>& c) {
    for (const Case& x : c)
      if (!x.evaluated.nothing()) return false;
    return true;
  };
  for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"})
    if (const Json* v = j.find(keyword)) {
      if (v->kind != Json::kString) malformed(keyword, place.pointer, "expected a string");
      if (keyword[1] != 'r' || keyword[3] == 'c') {
        const auto known = dynamic_anchors.find(keyword[1] == 'd' ? v->text.substr(v->text.find('#') + 1) : "$recursive");
        if (known != dynamic_anchors.end() && known->second > 1)
          throw GrammarError(keyword, place.pointer, "several schemas have this dynamic anchor: which is meant depends on the way there, which is not supported");
      }
      const Resource to = resolve(v->text, place, keyword);
      product(cases(*to.json, to.place, false, level + 1));
    }
  if (const Json* v = j.find("allOf"))
    for (size_t i = 0; i < v->items.size(); ++i) product(cases(v->items[i], at("/allOf/" + std::to_string(i)), false, level + 1));
  if (const Json* v = j.find("anyOf")) {
    std::vector<std::vector<Case>> annotated;
    std::vector<Literal> negated, others;
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Place p = at("/anyOf/" + std::to_string(i));
      std::vector<Case> c = cases(v->items[i], p, false, level + 1);
      if (plain(c)) {
        others.push_back(read(v->items[i], p));
      } else {
        annotated.push_back(std::move(c));
        negated.push_back(read(v->items[i], p) ^ 1);
      }
    }
    std::vector<Case> ways{{kTrueLiteral, {}}};
    std::vector<bool> any{false};
    for (size_t i = 0; i < annotated.size(); ++i) {
      std::vector<Case> next;
      std::vector<bool> next_any;
      for (size_t w = 0; w < ways.size(); ++w) {
        next.push_back({conjunction({ways[w].formula, negated[i]}), ways[w].evaluated});
        next_any.push_back(any[w]);
        for (const Case& c : annotated[i]) {
          Case x{conjunction({ways[w].formula, c.formula}), ways[w].evaluated};
          x.evaluated.add(c.evaluated);
          next.push_back(std::move(x));
          next_any.push_back(true);
        }
      }
      ways = std::move(next);
      any = std::move(next_any);
      bounded(ways);
    }
    for (size_t w = 0; w < ways.size(); ++w)
      if (!any[w]) ways[w].formula = conjunction({ways[w].formula, disjunction(others)});
    product(ways);
  }
  if (const Json* v = j.find("oneOf")) {
    std::vector<Literal> whole;
    for (size_t i = 0; i < v->items.size(); ++i) whole.push_back(read(v->items[i], at("/oneOf/" + std::to_string(i))));
    std::vector<Case> ways;
    for (size_t i = 0; i < v->items.size(); ++i)
      for (const Case& c : cases(v->items[i], at("/oneOf/" + std::to_string(i)), false, level + 1)) {
        std::vector<Literal> f{c.formula};
        for (size_t k = 0; k < whole.size(); ++k)
          if (k != i) f.push_back(whole[k] ^ 1);
        ways.push_back({conjunction(std::move(f)), c.evaluated});
      }
    bounded(ways);
    product(ways);
  }
  if (const Json* v = j.find("if")) {
    std::vector<Case> ways;
    const std::vector<Case> then = j.find("then") ? cases(*j.find("then"), at("/then"), false, level + 1) : std::vector<Case>{{kTrueLiteral, {}}};
    const std::vector<Case> otherwise = j.find("else") ? cases(*j.find("else"), at("/else"), false, level + 1) : std::vector<Case>{{kTrueLiteral, {}}};
    for (const Case& c : cases(*v, at("/if"), false, level + 1))
      for (const Case& t : then) {
        Case x{conjunction({c.formula, t.formula}), c.evaluated};
        x.evaluated.add(t.evaluated);
        ways.push_back(std::move(x));
      }
    const Literal no = read(*v, at("/if")) ^ 1;
    for (const Case& e : otherwise) ways.push_back({conjunction({no, e.formula}), e.evaluated});
    product(ways);
  }
  if (const Json* v = j.find("dependentSchemas"))
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Literal has = required(name(v->keys[i]));
      std::vector<Case> ways{{conjunction({has ^ 1}), {}}, {types(uint8_t(63 & ~type_bit(JsonType::kObject))), {}}};
      for (const Case& c : cases(v->items[i], at("/dependentSchemas/" + pointer_escaped(v->keys[i])), false, level + 1))
        ways.push_back({conjunction({has, types(type_bit(JsonType::kObject)), c.formula}), c.evaluated});
      product(ways);
    }
  return all;
}

}  // namespace tokops::grammar
