// From a JSON Schema document to nodes: references, keywords of all drafts from 4 on.
#include <cstring>

#include "schema_impl.h"
#include "uri.h"

namespace tokops::grammar {

namespace {

constexpr int32_t kDeepest = 400;  // schemas within schemas

}  // namespace

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

void Schema::Impl::tick() {
  if ((++steps & 1023) == 0) {
    if (options.interrupt) options.interrupt();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (spent.count() > options.timeout)
      throw BudgetError("timeout", "",
                        "compiling took longer than " + std::to_string(options.timeout) + " s");
  }
  if (steps > options.max_steps)
    throw BudgetError("max_steps", "",
                      "the search for the shapes of values took more than " +
                          std::to_string(options.max_steps) + " steps");
}

void Schema::Impl::add_document(const Json& j, const Place& place) {
  index(j, place, 0);
  // Under the name it was asked for too, with the draft that it says it has.
  const auto own = places.find(&j);
  resources.try_emplace(place.base, Resource{&j, own == places.end() ? place : own->second});
}

// Notes where the document names its parts.
void Schema::Impl::index(const Json& j, Place place, int32_t level) {
  if (level > kDeepest)
    throw BudgetError(
        "nesting", place.pointer,
        "the schema is nested more than " + std::to_string(kDeepest) + " levels deep");
  if (j.kind == Json::kObject) {
    if (const Json* s = j.find("$schema"); s && s->kind == Json::kString)
      place.draft = draft_of(s->text, place.draft);
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
    if (const Json* a = j.find("$recursiveAnchor"); a && a->kind == Json::kTrue)
      ++dynamic_anchors["$recursive"];
    if (opens || level == 0) places[&j] = place;
    for (size_t i = 0; i < j.items.size(); ++i) {
      const Json& v = j.items[i];
      if (v.kind != Json::kObject && v.kind != Json::kArray) continue;
      const std::string& k = j.keys[i];
      const bool maps = one_of_words(k, {"properties", "patternProperties", "definitions", "$defs",
                                         "dependentSchemas", "dependencies"});
      const bool list = v.kind == Json::kArray;
      if (!maps && !one_of_words(k, {"allOf", "anyOf", "oneOf", "items", "prefixItems",
                                     "additionalItems", "additionalProperties", "not", "if", "then",
                                     "else", "contains", "propertyNames", "unevaluatedItems",
                                     "unevaluatedProperties", "contentSchema"}))
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

Schema::Impl::Resource Schema::Impl::resolve(const std::string& reference, const Place& from,
                                             const char* keyword) {
  const size_t hash = reference.find('#');
  const std::string uri = resolve_uri(from.base, reference.substr(0, hash));
  const std::string fragment =
      hash == std::string::npos ? "" : percent_decoded(reference.substr(hash + 1));
  auto found = resources.find(uri);
  if (found == resources.end()) {
    auto known = options.registry.find(uri);
    if (known == options.registry.end()) known = options.registry.find(uri + "#");
    if (known == options.registry.end())
      throw GrammarError(keyword, from.pointer,
                         "can't resolve " + reference + ": there is no document " + uri +
                             " (pass it in registry={uri: schema})");
    kept.push_back(known->second);
    add_document(kept.back(), Place{uri, uri + "#", from.draft});
    found = resources.find(uri);
  }
  if (fragment.empty()) return found->second;
  if (fragment[0] != '/') {
    const auto a = anchors.find(uri + "#" + fragment);
    if (a == anchors.end())
      throw GrammarError(keyword, from.pointer,
                         "can't resolve " + reference + ": there is no such anchor");
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
    } else if (at.json->kind == Json::kArray && !token.empty() && token.size() < 9 &&
               token.find_first_not_of("0123456789") == token.npos) {
      const size_t i = std::stoul(token);
      if (i < at.json->items.size()) next = &at.json->items[i];
    }
    if (!next)
      throw GrammarError(keyword, from.pointer,
                         "can't resolve " + reference + ": there is nothing at this place");
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
  if (j.kind != Json::kObject)
    malformed("schema", outer.pointer, "a schema is an object or a boolean");
  if (j.items.empty()) return kTrueLiteral;
  if (const auto at = read_schemas.find(&j); at != read_schemas.end()) return at->second;
  const auto own = places.find(&j);
  const Place place = own == places.end() ? outer : own->second;
  if (const Json* meta = j.find("$schema"); meta && meta->kind == Json::kString) {
    std::string uri = meta->text;
    if (!uri.empty() && uri.back() == '#') uri.pop_back();
    if (const auto known = options.registry.find(uri); known != options.registry.end())
      if (const Json* words = known->second.find("$vocabulary");
          words && words->kind == Json::kObject) {
        bool validates = false;
        for (const std::string& w : words->keys) validates |= w.find("/vocab/validation") != w.npos;
        if (!validates)
          throw GrammarError("$schema", place.pointer,
                             "a meta-schema without the validation vocabulary is not supported");
      }
  }
  if (place.draft == 3)
    malformed("$schema", place.pointer, "draft 3 and earlier are not supported");
  if (++depth > kDeepest)
    throw BudgetError(
        "nesting", place.pointer,
        "the schema is nested more than " + std::to_string(kDeepest) + " levels deep");
  // A reference to a schema that is still being read ends at its link.
  const Literal link = Literal(2 * nodes.size());
  Node n{};
  n.kind = Node::kLink;
  n.pointer = place.pointer;
  nodes.push_back(std::move(n));
  read_schemas.emplace(&j, link);
  tell_unread(j, place);
  const Literal l = placed([&] { return place.pointer; }, [&] { return read_keywords(j, place); });
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

// The schemas that a keyword lists.
std::vector<const Json*> Schema::Impl::schemas_in(const Json& v, const char* keyword,
                                                  const Place& place) {
  if (v.kind != Json::kArray || v.items.empty())
    malformed(keyword, place.pointer, "expected a list of schemas that is not empty");
  std::vector<const Json*> all;
  for (const Json& x : v.items) all.push_back(&x);
  return all;
}

Literal Schema::Impl::read_keywords(const Json& j, const Place& place) {
  const Here held(here, place.pointer);
  if (place.draft <= 7 && j.find("$ref")) {
    const Json& r = *j.find("$ref");
    if (r.kind != Json::kString) malformed("$ref", place.pointer, "expected a string");
    const Resource to = resolve(r.text, place, "$ref");
    return read(*to.json, to.place);
  }
  const bool members_left = j.find("unevaluatedProperties"),
             items_left = j.find("unevaluatedItems");
  if ((members_left || items_left) && place.draft >= 2019) {
    // Also where all is evaluated.
    for (const char* keyword : {"unevaluatedProperties", "unevaluatedItems"})
      if (const Json* u = j.find(keyword))
        read(*u, {place.base, place.pointer + "/" + keyword, place.draft});
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
          throw GrammarError(
              "unevaluatedItems", place.pointer,
              "beside contains it depends on which items match, which is not supported");
        Place inner = place;
        inner.pointer += "/unevaluatedItems";
        const Literal item = read(*u, inner);
        if (item != kTrueLiteral)
          all.push_back(counted(Atom::kItemsFrom, JsonType::kArray, 0, item, c.evaluated.items));
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
      for (const Json* x : schemas_in(*v, keyword, place))
        out.push_back(
            read(*x, inner_place("/" + std::string(keyword) + "/" + std::to_string(out.size()))));
    }
    return out;
  };
  for (const Literal l : list("allOf")) all.push_back(l);
  if (j.find("anyOf")) all.push_back(disjunction(list("anyOf")));
  if (j.find("oneOf")) all.push_back(one_of(list("oneOf"), place));
  if (const Json* v = j.find("if"); v && place.draft >= 7) {
    const Literal condition = read(*v, inner_place("/if"));
    const Literal then =
        j.find("then") ? read(*j.find("then"), inner_place("/then")) : kTrueLiteral;
    const Literal otherwise =
        j.find("else") ? read(*j.find("else"), inner_place("/else")) : kTrueLiteral;
    if (then != otherwise)
      all.push_back(
          disjunction({conjunction({condition, then}), conjunction({condition ^ 1, otherwise})}));
    else
      all.push_back(then);
  }
  if (const Json* v = j.find("dependentSchemas"); v && place.draft >= 2019) {
    if (v->kind != Json::kObject)
      malformed("dependentSchemas", place.pointer, "expected an object");
    for (size_t i = 0; i < v->items.size(); ++i) {
      const Literal has = required(name(v->keys[i]));
      const Literal then =
          read(v->items[i], inner_place("/dependentSchemas/" + pointer_escaped(v->keys[i])));
      all.push_back(disjunction({types(uint8_t(63 & ~type_bit(JsonType::kObject))),
                                 conjunction({has ^ 1, types(type_bit(JsonType::kObject))}),
                                 conjunction({has, then})}));
    }
  }
  for (const char* keyword : {"$ref", "$dynamicRef", "$recursiveRef"}) {
    const Json* v = j.find(keyword);
    if (!v || !reads_reference(keyword, place.draft)) continue;
    if (v->kind != Json::kString) malformed(keyword, place.pointer, "expected a string");
    const Resource to = resolve(v->text, place, keyword);
    if (keyword[1] == 'd') {
      const size_t hash = v->text.find('#');
      const std::string anchor = hash == std::string::npos ? "" : v->text.substr(hash + 1);
      const auto known = dynamic_anchors.find(anchor);
      if (to.json->find("$dynamicAnchor") && known != dynamic_anchors.end() && known->second > 1)
        throw GrammarError(keyword, place.pointer,
                           "several schemas have the dynamic anchor " + anchor +
                               ": which is meant depends on the way there, which is not supported");
    }
    if (keyword[1] == 'r' && keyword[3] == 'c')
      if (const auto known = dynamic_anchors.find("$recursive");
          known != dynamic_anchors.end() && known->second > 1)
        throw GrammarError(keyword, place.pointer,
                           "several schemas have $recursiveAnchor: which is meant depends on the "
                           "way there, which is not supported");
    all.push_back(read(*to.json, to.place));
  }
  return conjunction(std::move(all));
}

}  // namespace tokops::grammar
