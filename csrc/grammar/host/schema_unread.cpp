// What a schema says to no effect: unknown keywords, those of other drafts, those that need others.
#include "schema_impl.h"

namespace tokops::grammar {

namespace {

// Keywords that say nothing about which values are valid.
bool annotation(std::string_view k) {
  return one_of_words(
      k, {"$schema",          "$id",         "id",          "$anchor",         "$dynamicAnchor",
          "$recursiveAnchor", "$comment",    "$vocabulary", "title",           "description",
          "default",          "example",     "examples",    "deprecated",      "readOnly",
          "writeOnly",        "definitions", "$defs",       "contentEncoding", "contentMediaType",
          "contentSchema"});
}

bool assertion(std::string_view k) {
  return one_of_words(k, {"$ref",
                          "$dynamicRef",
                          "$recursiveRef",
                          "type",
                          "enum",
                          "const",
                          "multipleOf",
                          "maximum",
                          "exclusiveMaximum",
                          "minimum",
                          "exclusiveMinimum",
                          "maxLength",
                          "minLength",
                          "pattern",
                          "format",
                          "items",
                          "additionalItems",
                          "prefixItems",
                          "maxItems",
                          "minItems",
                          "uniqueItems",
                          "contains",
                          "maxContains",
                          "minContains",
                          "maxProperties",
                          "minProperties",
                          "required",
                          "properties",
                          "patternProperties",
                          "additionalProperties",
                          "dependencies",
                          "dependentRequired",
                          "dependentSchemas",
                          "propertyNames",
                          "if",
                          "then",
                          "else",
                          "allOf",
                          "anyOf",
                          "oneOf",
                          "not",
                          "unevaluatedItems",
                          "unevaluatedProperties"});
}

// The drafts that have a keyword, first and last.
std::pair<int32_t, int32_t> drafts_of(std::string_view k) {
  constexpr int32_t kNewest = 2020;
  if (one_of_words(k, {"const", "contains", "propertyNames"})) return {6, kNewest};
  if (one_of_words(k, {"if", "then", "else"})) return {7, kNewest};
  if (one_of_words(k, {"dependentRequired", "dependentSchemas", "minContains", "maxContains",
                       "unevaluatedItems", "unevaluatedProperties"}))
    return {2019, kNewest};
  if (k == "$recursiveRef") return {2019, 2019};
  if (one_of_words(k, {"prefixItems", "$dynamicRef"})) return {2020, kNewest};
  return {0, kNewest};
}

std::string draft_name(int32_t draft) {
  return draft == 2019 ? "2019-09" : draft == 2020 ? "2020-12" : std::to_string(draft);
}

}  // namespace

void Schema::Impl::warn(const std::string& keyword, const std::string& pointer,
                        const std::string& what) {
  constexpr size_t kMost = 200;
  if (warnings.size() > kMost) return;
  const std::string w = keyword + " at " + (pointer.empty() ? "the root" : pointer) + ": " + what;
  if (std::find(warnings.begin(), warnings.end(), w) != warnings.end()) return;
  warnings.push_back(warnings.size() < kMost ? w : "there are more warnings than are listed");
}

// Warns of what says nothing where it stands.
void Schema::Impl::tell_unread(const Json& j, const Place& place) {
  if (!told.insert(&j).second) return;
  const std::string draft = draft_name(place.draft);
  if (const Json* s = j.find("$schema")) {
    const int32_t said = s->kind == Json::kString ? draft_of(s->text, 0) : 0;
    if (s->kind != Json::kString)
      warn("$schema", place.pointer, "it is not a string: read as draft " + draft);
    else if (!said && !options.registry.count(s->text.substr(0, s->text.find_last_not_of('#') + 1)))
      warn("$schema", place.pointer, "\"" + s->text + "\" is not known: read as draft " + draft);
    else if (said && said != place.draft)
      warn("$schema", place.pointer,
           "not read, as it stands inside of another schema: here the draft is " + draft);
  }
  const bool reference = place.draft <= 7 && j.find("$ref");
  for (size_t i = 0; i < j.keys.size(); ++i) {
    const std::string& k = j.keys[i];
    if (annotation(k)) continue;
    const auto needs = [&](const char* other) {
      if (!j.find(other))
        warn(k, place.pointer, std::string("not checked: it says nothing without ") + other);
    };
    if (reference) {
      if (k != "$ref")
        warn(k, place.pointer, "not checked: beside $ref draft " + draft + " reads nothing");
    } else if (!assertion(k)) {
      warn("unknown keyword \"" + k + "\"", place.pointer,
           "not checked, as the specification says");
    } else if (const auto [first, last] = drafts_of(k); place.draft < first || place.draft > last) {
      warn(k, place.pointer, "not checked: it is no keyword of draft " + draft);
    } else if (k == "additionalItems") {
      const Json* items = j.find("items");
      if (!items || items->kind != Json::kArray)
        warn(k, place.pointer, "not checked: it says nothing without a list in items");
    } else if (one_of_words(k, {"then", "else"})) {
      needs("if");
    } else if (one_of_words(k, {"minContains", "maxContains"})) {
      needs("contains");
    } else if (one_of_words(k, {"exclusiveMinimum", "exclusiveMaximum"})) {
      if (j.items[i].boolean()) needs(k == "exclusiveMinimum" ? "minimum" : "maximum");
      if (j.items[i].boolean() != (place.draft <= 4))
        warn(k, place.pointer,
             place.draft <= 4 ? "a number is read as from draft 6 on"
                              : "true and false are read as in draft 4");
    }
  }
}

}  // namespace tokops::grammar
