// Items of arrays that hold none twice: which values an item that has begun can still become.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "schema.h"

namespace tokops::grammar {

// Values of a goal, or completions of a text, that are listed; more are as good as endlessly many.
inline constexpr int64_t kMostListed = 256;

// An object or an array that has begun: what is complete in it, in canonical form.
struct BegunLevel {
  bool object = false;
  std::map<std::string, std::string> members;
  std::vector<std::string> items;
  std::string key;  // of the member that is being read
};

// A text that has begun: the objects and arrays that are open, outermost first, and what is being
// read inside of the innermost, a key or a value without members, as it is written.
// A number or literal at the end of the text is being read, or with `ended` complete.
struct BegunText {
  std::vector<BegunLevel> levels;
  std::string_view leaf;
};
BegunText begun_text(std::string_view, bool ended);

// What stands in a complete value, in canonical form, where the innermost level has begun; empty
// where there is no such place.
std::string_view part_of(std::string_view canonical, const std::vector<BegunLevel>&);

// Whether what is complete in a text that has begun stands in a complete value too.
bool is_like(std::string_view canonical, const std::vector<BegunLevel>&);

struct ObjectSoFar {
  std::map<std::string, std::string> members;
  std::vector<uint8_t> seen;  // by name
  int32_t count = 0, missing = 0;
  uint32_t served = 0;
  bool ordered = false;  // members come in the order of the schema:
  int32_t order = -1;    // names of a lower order don't come any more
};

struct ArraySoFar {
  std::vector<std::string> items;
  std::vector<int32_t> counts;
};

class Completions {
 public:
  // Gets every complete value, in canonical form, some more than once; nullptr where there are more
  // than can be listed. True: that is enough.
  using Visit = std::function<bool(const std::string*)>;

  explicit Completions(std::function<const Value&(Goal)> value) : value_(std::move(value)) {}
  // Whether `visit` had enough.
  bool object(const ObjectShape&, const ObjectSoFar&, const Visit& visit);
  // The same with at least one member more: a name in [low, high), or where that is all of them
  // another key.
  bool object_goes_on(const ObjectShape&, const ObjectSoFar&, int32_t low, int32_t high,
                      const Visit& visit);
  bool array(const ArrayShape&, const ArraySoFar&, const Visit& visit);

 private:
  bool more_names(const ObjectShape&, const ObjectSoFar&, int32_t from, const Visit&);
  bool with_name(const ObjectShape&, const ObjectSoFar&, int32_t name, const Visit&,
                 const std::function<bool(const ObjectSoFar&)>& then);
  std::function<const Value&(Goal)> value_;
  int32_t steps_ = 0;
};

// Whether some class of keys can have one member more, whatever its value is.
bool takes_other_key(const ObjectShape&, int32_t count, int32_t missing);

}  // namespace tokops::grammar
