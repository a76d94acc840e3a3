// Keywords that say something of the value itself, and of its items and members.
#include "schema_impl.h"
#include "uri.h"

namespace tokops::grammar {

namespace {

int64_t count_of(const Json& v, const char* keyword, const std::string& pointer) {
  if (v.kind != Json::kNumber) malformed(keyword, pointer, "expected a number");
  const Decimal d = Decimal::parse(v.text);
  if (!d.integer() || d.negative)
    malformed(keyword, pointer, "expected an integer of at least 0, got " + v.text);
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

Literal Schema::Impl::read_format(const Json& v, const Place& place) {
  if (v.kind != Json::kString) malformed("format", place.pointer, "expected a string");
  if (!options.assert_formats) return kTrueLiteral;
  if (const auto lang = format(*langs, v.text)) return text(*lang);
  warn("format", place.pointer, "\"" + v.text + "\" is not known and not checked");
  return kTrueLiteral;
}

// The keywords that apply no schema to the value itself. With `evaluated`, also what they evaluate.
void Schema::Impl::read_simple(const Json& j, const Place& place, std::vector<Literal>& all,
                               Evaluated* evaluated) {
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
      if (t.kind != Json::kString)
        malformed("type", place.pointer, "expected a name of a type, or a list of names");
      if (t.text == "null")
        mask |= type_bit(JsonType::kNull);
      else if (t.text == "boolean")
        mask |= type_bit(JsonType::kBool);
      else if (t.text == "number")
        number = true;
      else if (t.text == "integer")
        integer = true;
      else if (t.text == "string")
        mask |= type_bit(JsonType::kString);
      else if (t.text == "array")
        mask |= type_bit(JsonType::kArray);
      else if (t.text == "object")
        mask |= type_bit(JsonType::kObject);
      else
        malformed("type", place.pointer, "\"" + t.text + "\" is not a type");
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
    if (d.negative || d.digits.empty())
      malformed("multipleOf", place.pointer, "expected a number above 0");
    all.push_back(number_atom(Atom::kMultiple, d, false, false));
  }
  for (const bool upper : {false, true}) {
    const char* plain = upper ? "maximum" : "minimum";
    const char* strict = upper ? "exclusiveMaximum" : "exclusiveMinimum";
    const Json *p = find(plain), *s = find(strict);
    const bool modifies = s && s->boolean();
    if (p)
      all.push_back(number_atom(Atom::kBound, number_of(*p, plain, place.pointer), upper,
                                modifies && s->kind == Json::kTrue));
    if (s && !modifies)
      all.push_back(number_atom(Atom::kBound, number_of(*s, strict, place.pointer), upper, true));
  }

  // strings
  if (const Json* v = find("minLength"))
    if (const int64_t n = count_of(*v, "minLength", place.pointer))
      all.push_back(counted(Atom::kMinLength, JsonType::kString, n));
  if (const Json* v = find("maxLength"))
    all.push_back(
        counted(Atom::kMaxLength, JsonType::kString, count_of(*v, "maxLength", place.pointer)));
  if (const Json* v = find("pattern")) {
    if (v->kind != Json::kString) malformed("pattern", place.pointer, "expected a string");
    const Lang strings =
        langs->both({langs->text(), regex(*langs, v->text, {}, "pattern", place.pointer)});
    note_count(strings, v->text);
    all.push_back(text(strings));
  }
  if (const Json* v = find("format")) all.push_back(read_format(*v, place));
  if (place.draft == 7 && options.assert_formats) {
    // Draft 7 lets a validator assert these; later drafts don't.
    if (const Json* v = find("contentMediaType");
        v && v->kind == Json::kString && v->text == "application/json")
      throw GrammarError("contentMediaType", place.pointer,
                         "strings that hold JSON are not supported (formats=\"annotate\" reads it "
                         "as an annotation)");
    if (const Json* v = find("contentEncoding");
        v && v->kind == Json::kString && v->text == "base64")
      all.push_back(
          text(regex(*langs, "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$", {},
                     "contentEncoding", place.pointer)));
  }

  // arrays
  const bool legacy_items = find("items") && find("items")->kind == Json::kArray;
  int64_t prefix = 0;
  const Json* listed = legacy_items          ? find("items")
                       : place.draft >= 2020 ? find("prefixItems")
                                             : nullptr;
  if (listed) {
    if (legacy_items && place.draft >= 2020 && find("prefixItems"))
      malformed("items", place.pointer, "expected a schema: beside prefixItems it is no list");
    if (listed->kind != Json::kArray)
      malformed("prefixItems", place.pointer, "expected a list of schemas");
    if (legacy_items && place.draft >= 2020)
      warn("items", place.pointer, "a list is read as prefixItems");
    for (const Json& item : listed->items) {
      const Literal l = read(item, at(std::string(legacy_items ? "/items/" : "/prefixItems/") +
                                      std::to_string(prefix)));
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
    if (const int64_t n = count_of(*v, "minItems", place.pointer))
      all.push_back(counted(Atom::kMinItems, JsonType::kArray, n));
  if (const Json* v = find("maxItems"))
    all.push_back(
        counted(Atom::kMaxItems, JsonType::kArray, count_of(*v, "maxItems", place.pointer)));
  if (const Json* v = find("uniqueItems")) {
    if (!v->boolean()) malformed("uniqueItems", place.pointer, "expected true or false");
    if (v->kind == Json::kTrue) all.push_back(counted(Atom::kUnique, JsonType::kArray, 0));
  }
  if (const Json* v = find("contains"); v && place.draft >= 6) {
    const Literal l = read(*v, at("/contains"));
    int64_t fewest = 1;
    if (const Json* m = find("minContains"); m && place.draft >= 2019)
      fewest = count_of(*m, "minContains", place.pointer);
    if (fewest) all.push_back(counted(Atom::kSomeItems, JsonType::kArray, fewest, l));
    if (const Json* m = find("maxContains"); m && place.draft >= 2019)
      all.push_back(counted(Atom::kManyItems, JsonType::kArray,
                            count_of(*m, "maxContains", place.pointer), l));
    if (evaluated && place.draft >= 2020) evaluated->contains = true;
  }

  // objects
  const Json* listed_members = find("properties");
  const Json* patterns = find("patternProperties");
  KeySet others;
  others.kind = KeySet::kAdditional;
  if (listed_members) {
    if (listed_members->kind != Json::kObject)
      malformed("properties", place.pointer, "expected an object");
    for (size_t i = 0; i < listed_members->items.size(); ++i) {
      const int32_t n = name(listed_members->keys[i]);
      const int32_t place_in_order = ++order;
      others.names.push_back(n);
      // Kept also where it says nothing, for the order.
      all.push_back(member(n,
                           read(listed_members->items[i],
                                at("/properties/" + pointer_escaped(listed_members->keys[i]))),
                           place_in_order));
      if (evaluated) evaluated->names.insert(n);
    }
    std::sort(others.names.begin(), others.names.end());
  }
  if (patterns) {
    if (patterns->kind != Json::kObject)
      malformed("patternProperties", place.pointer, "expected an object");
    for (size_t i = 0; i < patterns->items.size(); ++i) {
      const std::string pointer =
          place.pointer + "/patternProperties/" + pointer_escaped(patterns->keys[i]);
      KeySet keys;
      keys.lang = langs->both(
          {langs->text(), regex(*langs, patterns->keys[i], {}, "patternProperties", pointer)});
      others.patterns.push_back(keys.lang);
      if (evaluated) evaluated->patterns.push_back(keys.lang);
      all.push_back(members(std::move(keys),
                            read(patterns->items[i],
                                 at("/patternProperties/" + pointer_escaped(patterns->keys[i])))));
    }
    std::sort(others.patterns.begin(), others.patterns.end());
    others.patterns.erase(std::unique(others.patterns.begin(), others.patterns.end()),
                          others.patterns.end());
  }
  if (const Json* v = find("additionalProperties")) {
    all.push_back(members(std::move(others), read(*v, at("/additionalProperties"))));
    if (evaluated) evaluated->all_members = true;
  } else if (options.strict && listed_members && !patterns && !find("unevaluatedProperties")) {
    all.push_back(members(std::move(others), kFalseLiteral));
  }
  if (const Json* v = find("required")) {
    if (v->kind != Json::kArray) malformed("required", place.pointer, "expected a list of strings");
    for (const Json& k : v->items) {
      if (k.kind != Json::kString)
        malformed("required", place.pointer, "expected a list of strings");
      all.push_back(required(name(k.text)));
    }
  }
  if (const Json* v = find("minProperties"))
    if (const int64_t n = count_of(*v, "minProperties", place.pointer))
      all.push_back(counted(Atom::kMinMembers, JsonType::kObject, n));
  if (const Json* v = find("maxProperties"))
    all.push_back(counted(Atom::kMaxMembers, JsonType::kObject,
                          count_of(*v, "maxProperties", place.pointer)));
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
    if (v->kind != Json::kObject)
      malformed("dependentRequired", place.pointer, "expected an object");
    for (size_t i = 0; i < v->items.size(); ++i) {
      if (v->items[i].kind != Json::kArray)
        malformed("dependentRequired", place.pointer, "expected lists of strings");
      requires_all(v->keys[i], v->items[i], "dependentRequired");
    }
  }
  if (const Json* v = find("dependencies")) {
    if (v->kind != Json::kObject) malformed("dependencies", place.pointer, "expected an object");
    if (place.draft >= 2019) warn("dependencies", place.pointer, "read as up to draft 7");
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

}  // namespace tokops::grammar
