// What schema_read.cpp writes and schema_solve.cpp works out.
#pragma once
#include <algorithm>
#include <set>
#include <unordered_map>

#include "schema.h"

namespace tokops::grammar {

enum class JsonType : uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };
inline constexpr int kTypes = 6;
constexpr uint8_t type_bit(JsonType t) { return uint8_t(1u << int(t)); }

// Keys of an object that a member constraint is about.
struct KeySet {
  enum Kind : uint8_t { kLanguage, kAdditional, kByName } kind = kLanguage;
  Lang lang = kNothing;        // kLanguage
  std::vector<int32_t> names;  // kAdditional: all keys but these ..
  std::vector<Lang> patterns;  // .. and those of these languages
  Literal key = kTrueLiteral;  // kByName: keys that, as strings, satisfy this
};

struct Atom {
  enum Kind : uint8_t {
    kTypeIn,  // the value's type is in `types`
    kBoolIn,  // bits of {false, true}
    kInteger,
    kBound,
    kMultiple,
    kEqual,  // numbers
    kText,
    kMinLength,
    kMaxLength,  // strings
    kItem,
    kItemsFrom,
    kMinItems,
    kMaxItems,
    kSomeItems,
    kManyItems,
    kUnique,  // arrays
    kMember,
    kMembers,
    kRequired,
    kMinMembers,
    kMaxMembers,  // objects
  } kind;
  JsonType type;      // of the values it constrains; kTypeIn: of none
  uint8_t types = 0;  // kTypeIn, kBoolIn
  bool exclusive = false, upper = false;
  Decimal number;
  std::vector<Decimal> numbers;  // kEqual: any of these
  Lang lang = kNothing;
  int64_t count = 0;  // lengths, indices; of kSomeItems: at least, of kManyItems: at most
  int64_t from = 0;
  int32_t name = -1;
  int32_t order = 0;  // of a kMember: where the schema lists it
  Literal inner = kTrueLiteral;
  KeySet keys;
};

struct Node {
  enum Kind : uint8_t { kTrue, kAnd, kAtom, kLink, kOneOf } kind;
  std::vector<Literal> kids;  // kLink: one, or none while its schema is being read
  int32_t atom = -1;
  Literal resolved = -1;  // kOneOf: the same without it
  int8_t known[kTypes] = {-1, -1, -1, -1,
                          -1, -1};  // -1 not asked, 0 false, 1 true, 2 it depends, 3 being asked
  std::string pointer;              // where it was first read
};

inline int32_t clipped(int64_t n) { return int32_t(std::min<int64_t>(n, kUnbounded)); }

enum class Truth : uint8_t { kFalse, kTrue, kOpen };

// The evaluated members and items of one way to satisfy a schema.
struct Evaluated {
  std::set<int32_t> names;
  std::vector<Lang> patterns;
  bool all_members = false, all_items = false;
  bool contains = false;  // which items it evaluates depends on the items
  int64_t items = 0;
  bool nothing() const {
    return names.empty() && patterns.empty() && !all_members && !all_items && !contains &&
           items == 0;
  }
  void add(const Evaluated& o) {
    names.insert(o.names.begin(), o.names.end());
    patterns.insert(patterns.end(), o.patterns.begin(), o.patterns.end());
    all_members |= o.all_members;
    all_items |= o.all_items;
    contains |= o.contains;
    items = std::max(items, o.items);
  }
};
// Whether a draft has $ref, $dynamicRef or $recursiveRef.
inline bool reads_reference(const std::string& keyword, int32_t draft) {
  return keyword == "$ref" || draft == (keyword == "$dynamicRef" ? 2020 : 2019);
}
struct Case {
  Literal formula;
  Evaluated evaluated;
};

[[noreturn]] inline void malformed(const std::string& keyword, const std::string& pointer,
                                   const std::string& reason) {
  throw GrammarError(keyword, pointer, reason);
}

// Holds what is being read until it has been.
class Here {
 public:
  Here(std::string& at, const std::string& now) : at_(at), before_(std::move(at)) { at_ = now; }
  ~Here() { at_ = std::move(before_); }
  Here(const Here&) = delete;

 private:
  std::string &at_, before_;
};

inline bool one_of_words(std::string_view s, std::initializer_list<std::string_view> words) {
  for (const std::string_view w : words)
    if (s == w) return true;
  return false;
}

// The draft that a URI names; `otherwise` where it names none.
int32_t draft_of(std::string_view uri, int32_t otherwise);

struct Schema::Impl {
  Langs* langs = nullptr;
  SchemaOptions options;
  std::vector<std::string> warnings;
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  int64_t steps = 0;

  // nodes
  std::deque<Node> nodes;
  std::deque<Atom> atoms;
  std::unordered_map<std::string, Literal> interned;
  std::vector<std::string> names;
  std::unordered_map<std::string, int32_t> name_ids;

  Literal conjunction(std::vector<Literal>);
  Literal disjunction(std::vector<Literal>);
  Literal atom(Atom, const std::string& key);
  Literal types(uint8_t mask);
  Literal text(Lang);
  Literal member(int32_t name, Literal inner, int32_t order = 0);
  Literal members(KeySet, Literal inner);
  Literal required(int32_t name);
  Literal number_atom(Atom::Kind, const Decimal&, bool upper, bool exclusive);
  Literal counted(Atom::Kind, JsonType, int64_t count, Literal inner = kTrueLiteral,
                  int64_t from = 0);
  Literal constant(const Json&);
  Literal one_of_values(const std::vector<const Json*>&);
  int32_t name(const std::string&);

  // reading
  struct Place {
    std::string base;     // URI of the resource
    std::string pointer;  // from the document's root, for messages
    int32_t draft;
  };
  struct Resource {
    const Json* json;
    Place place;
  };
  std::map<std::string, Resource> resources;       // URI without fragment
  std::map<std::string, Resource> anchors;         // URI#anchor
  std::map<std::string, int32_t> dynamic_anchors;  // name -> how many resources have it
  std::unordered_map<const Json*, Place> places;   // of schemas that open a resource
  std::unordered_map<const Json*, Literal> read_schemas;
  std::deque<Json> kept;  // documents from the registry
  int32_t depth = 0;
  int32_t order = 0;
  std::string here;            // pointer of the schema that is being read
  std::set<const Json*> told;  // whose unread keywords have been warned of
  Literal root = kTrueLiteral;

  void index(const Json&, Place, int32_t depth);
  void add_document(const Json&, const Place&);
  Literal read(const Json&, const Place&);
  Literal read_keywords(const Json&, const Place&);
  std::vector<Case> cases(const Json&, const Place&, bool items, int32_t depth);
  void read_simple(const Json&, const Place&, std::vector<Literal>& out, Evaluated* evaluated);
  Literal read_format(const Json&, const Place&);
  Literal one_of(std::vector<Literal>, const Place&);
  Resource resolve(const std::string& reference, const Place&, const char* keyword);
  std::vector<const Json*> schemas_in(const Json&, const char* keyword, const Place&);
  void warn(const std::string& keyword, const std::string& pointer, const std::string& what);
  void tell_unread(const Json&, const Place&);

  // goals
  struct GoalData {
    std::vector<Literal> literals;
    Value value;
    bool worked_out = false;
    bool possible = false;
    // Answers while compiling: each type's part is worked out when first asked for.
    uint8_t parts = 0;
    int8_t maybe = -1;    // 0 impossible, 1 possible, 2 being asked
    bool listed = false;  // `value.few` has been asked for
    std::vector<std::shared_ptr<ObjectShape>> objects;
    std::vector<std::shared_ptr<ArrayShape>> arrays;
  };
  std::deque<GoalData> goals;
  std::map<std::vector<Literal>, Goal> goal_ids;
  Goal root_goal = 0;

  struct Conjunction;
  Goal goal(std::vector<Literal>);
  std::string pointer_of(Goal) const;
  Goal join(Goal, Literal);
  Truth known(Literal, JsonType);
  Truth possible_yet(Goal, bool* certain);
  void part(Goal, JsonType);
  void scalar_parts(Goal);
  void read_scalars(Goal);
  void find_shapes(Goal, JsonType);
  void number_part(GoalData&);
  void string_part(GoalData&);
  Lang number_language(Literal, std::set<int32_t>& open);
  int point(Literal, int type, int which, std::set<int32_t>& open);
  bool search(std::vector<Literal> todo, Conjunction now, JsonType, std::vector<Conjunction>& out);
  Truth status(Literal, const Conjunction&, JsonType, int32_t depth);
  bool add_atom(Conjunction&, Literal, JsonType);
  Literal resolved(int32_t node);
  std::shared_ptr<ObjectShape> object_shape(const Conjunction&);
  std::shared_ptr<ArrayShape> array_shape(const Conjunction&);
  Lang strings_of(Literal);
  Lang fold(const Strings&);
  void note_count(Lang, const std::string& pattern);
  std::unordered_map<Lang, Strings> counts;  // patterns ^[..]{m,n}$, without their bounds
  void work_out_all();
  void find_possible(const std::vector<Goal>&);
  std::set<const ArrayShape*> impossible;  // unique, with too few values
  bool shape_possible(const ObjectShape&) const;
  bool shape_possible(const ArrayShape&);
  bool counts_possible(const ArrayShape&, std::vector<uint8_t>& viable);
  void finish(ObjectShape&);
  void finish(ArrayShape&);
  void list_values(Goal);  // schema_items.cpp
  std::optional<std::vector<std::string>> few_scalars(const Value&);
  bool always_grows(const Value&) const;
  Lang spelled_once();
  int64_t most_values(Goal, int64_t cap);
  bool distinct_possible(const ArrayShape&);
  bool watched = false;
  void tick();
};

// What is required of one value of one type at once.
struct Schema::Impl::Conjunction {
  std::vector<Literal> atoms;
  std::vector<Literal> open;                         // disjunctions
  std::vector<int32_t> required, forbidden;          // names
  std::vector<std::pair<int32_t, Literal>> members;  // name -> what its value satisfies
  std::set<Literal> links;                           // that have been followed

  bool has(Literal l) const { return std::find(atoms.begin(), atoms.end(), l) != atoms.end(); }
  bool requires_name(int32_t n) const {
    return std::find(required.begin(), required.end(), n) != required.end();
  }
  bool forbids_name(int32_t n) const {
    return std::find(forbidden.begin(), forbidden.end(), n) != forbidden.end();
  }
  std::vector<Literal> of(int32_t n) const {
    std::vector<Literal> out;
    for (const auto& [name, l] : members)
      if (name == n) out.push_back(l);
    return out;
  }
};

}  // namespace tokops::grammar
