// JSON values as schemas hold them: members in their order, numbers as their text.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tokops::grammar {

struct Json {
  enum Kind : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };
  Kind kind = kNull;
  std::string text;         // of a number, as it is written; of a string, its content in UTF-8
  std::vector<Json> items;  // of an array; the values of an object
  std::vector<std::string> keys;  // of an object, beside items

  const Json* find(std::string_view key) const {
    if (kind != kObject) return nullptr;
    for (size_t i = 0; i < keys.size(); ++i)
      if (keys[i] == key) return &items[i];
    return nullptr;
  }
  bool boolean() const { return kind == kTrue || kind == kFalse; }
};

}  // namespace tokops::grammar
