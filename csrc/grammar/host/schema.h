// JSON Schema as a formula over constraints of one type each, and the values that satisfy it.
//
// A schema is read into nodes: and, or, and atoms, each atom a constraint on values of one type
// (those of other types satisfy it). A literal is a node or its negation, a goal a set of literals
// that hold of one value at once. `Schema::value` works out which values reach a goal: a language
// for numbers, a few for strings, and for arrays and objects a union of shapes, in which nothing is
// negated any more: the opposite of "all items are in S" is "some item is in not S", and so on for
// every keyword.
#pragma once
#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.h"
#include "lang.h"
#include "regex.h"

namespace tokops::grammar {

using Literal = int32_t;  // 2 * node + 1 where negated
using Goal = int32_t;     // index of a set of literals
inline constexpr Literal kTrueLiteral = 0, kFalseLiteral = 1;

struct SchemaOptions {
  std::string whitespace = "any";  // any | space | none
  int32_t max_whitespace = 64;
  bool schema_order = false;  // members in the order of the schema
  bool assert_formats = true;
  std::string one_of = "exact";  // exact | any_of
  bool strict = false;           // objects that list properties and say nothing else hold no others
  int64_t max_alternatives = 1024;       // shapes of one value
  int64_t max_steps = 4000000;           // of the search for shapes, in all
  double timeout = 2.0;                  // seconds
  int32_t draft = 0;                     // 4, 6, 7, 2019, 2020; 0: by $schema, else 2020
  std::string base;                      // URI of the schema
  std::string place;                     // of the schema in what holds it, before its pointers
  std::map<std::string, Json> registry;  // URI -> document, for references outside the schema
  std::function<void()> interrupt;       // called now and then; may throw
};

// --- what the matcher runs
// --------------------------------------------------------------------------

// Strings of a language with a number of code points in [shortest, longest] (longest -1: no bound).
// `counted` only where every number of code points from the fewest is possible at every state.
struct Strings {
  Lang lang;
  int32_t shortest = 0, longest = -1;
};

inline constexpr int32_t kUnbounded = INT32_MAX;

// Keys that an object's shape tells apart only by languages: every key in `lang` that isn't named.
struct KeyClass {
  Lang lang;
  Goal goal;
  std::vector<Goal>
      goal_if;  // [mask - 1]: the goal where the member also serves those of `some` in mask, or -1
  bool allowed;
};

struct NamedKey {
  std::string name;
  Goal goal;
  std::vector<Goal> goal_if;
  bool required, allowed;
  int32_t order;  // place in the schema
};

struct ObjectShape {
  std::vector<NamedKey> names;    // sorted by name
  std::vector<KeyClass> classes;  // disjoint
  int32_t some = 0;               // constraints "some member is ..": each is served by some member
  int32_t fewest = 0, most = kUnbounded;
  int32_t required = 0;  // how many names are
  bool open = false;     // some class is allowed
  // The names as a tree: node 0 is the root; children of a node are sorted by byte.
  struct TreeNode {
    int32_t first_child = -1, next = -1;  // next sibling
    int32_t name = -1;                    // that ends here
    int32_t low = 0, high = 0;            // names below
    uint8_t byte = 0;
  };
  std::vector<TreeNode> tree;
};

struct ArrayShape {
  // Goal of the item at a position (the last entry: at all further ones) that serves a subset of
  // `counts` (index: its bits) and none of the others that are bounded from above; -1: there is no
  // such item.
  std::vector<std::vector<Goal>> goals;
  int32_t fewest = 0, most = kUnbounded;
  struct Count {
    int32_t from;  // only items from this index on count
    int32_t fewest, most;
  };
  std::vector<Count> counts;
  std::vector<uint8_t>
      viable;  // with counts: states from which the array can be ended: see array_state
  bool unique = false;
  // With unique: some items are objects or arrays that can't always grow, so that one which has
  // begun may only become what is there already.
  bool watched = false;
  int32_t position(int32_t index) const {
    return std::min<int32_t>(index, int32_t(goals.size()) - 1);
  }
};

struct Value {
  bool null = false, yes = false, no = false;
  Lang number = kNothing;
  std::vector<Strings> strings;
  std::vector<std::shared_ptr<const ObjectShape>> objects;
  std::vector<std::shared_ptr<const ArrayShape>> arrays;
  // All of them in canonical form, where they are few; told only of goals that items of unique
  // arrays are made of.
  std::optional<std::vector<std::string>> few;
};

class Schema {
 public:
  Schema(Langs& langs, const Json& document, SchemaOptions options);
  ~Schema();
  Goal root() const;
  const Value& value(Goal) const;  // every goal that can be reached has been worked out
  const std::vector<std::string>& warnings() const;
  const SchemaOptions& options() const;
  size_t goals() const;
  bool watched() const;  // some array is

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// How many members, beside names that are required, must come for the constraints `open` (bits of
// `some`) to be served, each by a member that serves no other of them or by one that serves
// several; -1: they can't be. Names come at most once, and where `may_come` says so.
int32_t members_to_serve(const ObjectShape&, uint32_t open,
                         const std::function<bool(int32_t name)>& may_come,
                         const std::function<bool(Goal)>& possible);

// Index into ArrayShape::viable of an array that has `index` items, counts[k] of them for counts k.
int32_t array_state(const ArrayShape&, int32_t index, const int32_t* counts);

// The text that equal values share: members sorted, numbers canonical, strings escaped in one way.
std::string canonical(const Json&);

}  // namespace tokops::grammar
