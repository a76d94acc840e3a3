#include "matcher.h"

#include <cstring>
#include <map>

#include "compact.h"
#include "text.h"

namespace tokops::grammar {

namespace {

constexpr size_t kMostConfigs = 4096;
constexpr size_t kMostFrames = size_t(1) << 26;

const ObjectShape& object_of(const Frame& f) { return *static_cast<const ObjectShape*>(f.shape); }
const ArrayShape& array_of(const Frame& f) { return *static_cast<const ArrayShape*>(f.shape); }

// Reads one value from `at` on.
std::string canonical_value(std::string_view s, size_t& at) {
  const auto space = [&] {
    while (at < s.size() && (s[at] == ' ' || s[at] == '\t' || s[at] == '\n' || s[at] == '\r')) ++at;
  };
  const auto string = [&] {
    const size_t first = ++at;
    while (at < s.size() && s[at] != '"') at += s[at] == '\\' ? 2 : 1;
    const std::string text = decode_text(s.substr(first, std::min(at, s.size()) - first));
    ++at;
    return text;
  };
  const auto sized = [](const std::string& x) { return std::to_string(x.size()) + ":" + x; };
  space();
  if (at >= s.size()) return "";
  if (s[at] == '"') return "\"" + string();
  if (s[at] == '{' || s[at] == '[') {
    const char open = s[at++];
    std::map<std::string, std::string> members;
    std::string items;
    for (space(); at < s.size() && s[at] != '}' && s[at] != ']'; space()) {
      if (s[at] == ',') {
        ++at;
        continue;
      }
      if (open == '[') {
        items += sized(canonical_value(s, at));
        continue;
      }
      const std::string key = string();
      space();
      ++at;  // :
      members[key] = canonical_value(s, at);
    }
    ++at;
    for (const auto& [k, v] : members) items += sized(k) + sized(v);
    return open + items;
  }
  const size_t first = at;
  while (at < s.size() && std::string_view(",]} \t\n\r").find(s[at]) == std::string_view::npos) ++at;
  const std::string_view scalar = s.substr(first, at - first);
  return scalar[0] == '-' || (scalar[0] >= '0' && scalar[0] <= '9') ? Decimal::parse(scalar).text() : std::string(scalar);
}

}  // namespace

std::string canonical_text(std::string_view text) {
  size_t at = 0;
  return canonical_value(text, at);
}

bool steps_into(Langs& langs, Lang q, uint32_t low, uint32_t high) {
  const auto alive = [&](Lang l) { return l != kNothing && langs.alive(l); };
  for (uint32_t c = low; c <= high && c < 0x80; ++c)
    if (alive(langs.step(q, uint8_t(c)))) return true;
  // By lead bytes: the ranges of code points under each.
  for (uint32_t lead = 0xc2; lead <= 0xf4; ++lead) {
    const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    const uint32_t first = (lead & (0x3fu >> more)) << (6 * more), last = first + (1u << (6 * more)) - 1;
    if (last < low || first > high) continue;
    const Lang a = langs.step(q, uint8_t(lead));
    if (!alive(a)) continue;
    if (first >= low && last <= high) return true;
    for (uint32_t c = std::max(first, low); c <= std::min(last, high); ++c) {
      Lang x = a;
      for (int k = more; k-- > 0 && x != kNothing;) x = langs.step(x, uint8_t(0x80 | (c >> (6 * k) & 63)));
      if (alive(x)) return true;
    }
  }
  return false;
}

// --- grammars ---------------------------------------------------------------------------------------

void Grammar::options_of(const Schema& s) {
  const SchemaOptions& o = s.options();
  most_space_ = o.whitespace == "none" ? 0 : o.whitespace == "space" ? 1 : o.max_whitespace;
  all_space_ = o.whitespace == "any";
  schema_order_ = o.schema_order;
  ByteSet spaces;
  for (const uint8_t b : {' ', '\t', '\n'})
    if (space(b)) spaces.add(b);
  space_language_ = langs().star(langs().bytes(spaces));
  warnings_.insert(warnings_.end(), s.warnings().begin(), s.warnings().end());
}

Grammar::Grammar(std::shared_ptr<Vocabulary> v, std::shared_ptr<Lexemes> l, std::shared_ptr<Schema> s)
    : vocabulary_(std::move(v)), lexemes_(std::move(l)) {
  schemas_.push_back(std::move(s));
  options_of(*schemas_[0]);
}

Grammar::Grammar(std::shared_ptr<Vocabulary> v, std::shared_ptr<Lexemes> l, const Rules& rules, std::vector<std::shared_ptr<Schema>> schemas)
    : vocabulary_(std::move(v)), lexemes_(std::move(l)), schemas_(std::move(schemas)), warnings_(rules.warnings) {
  for (const auto& s : schemas_) options_of(*s);
  for (size_t r = 0; r < rules.rules.size(); ++r) {
    starts_.push_back(int32_t(states_.size()));
    states_.emplace_back();
  }
  for (size_t r = 0; r < rules.rules.size(); ++r)
    for (const auto& alternative : rules.rules[r].alternatives) {
      int32_t at = starts_[r];
      for (Symbol symbol : alternative) {
        if (symbol.kind == Symbol::kLang) symbol.id = compact(langs(), symbol.id, 2000);
        // Shared prefixes of alternatives are one path.
        int32_t next = -1;
        for (const Edge& e : states_[size_t(at)].edges)
          if (e.symbol.kind == symbol.kind && e.symbol.id == symbol.id && e.next != at) next = e.next;
        if (next < 0) {
          next = int32_t(states_.size());
          states_.emplace_back();
          states_[size_t(at)].edges.push_back({symbol, next});
        }
        at = next;
      }
      states_[size_t(at)].ends = true;
    }
  start_ = rules.start;
}

// --- states -----------------------------------------------------------------------------------------

Matcher::Matcher(std::shared_ptr<const Grammar> g, bool) : grammar_(std::move(g)) { start(); }

void Matcher::reset() {
  configs_.clear();
  frames_.clear();
  words_.clear();
  list_.clear();
  bytes_.clear();
  marks_.clear();
  history_.clear();
  done_ = false;
  start();
}

void Matcher::start() {
  marks_.push_back({0, 0, 0, 0, 0});
  entered_.clear();
  if (grammar_->has_rules()) {
    Frame call{};
    call.kind = Frame::kCall;
    call.rule = grammar_->start();
    const uint32_t f = add_frame(call);
    list_.push_back({0, 0, -1, ""});
    frames_[f].list = uint32_t(list_.size());
    enter(grammar_->start_of(grammar_->start()), f);
  } else {
    Frame root{};
    root.kind = Frame::kRoot;
    Config c{};
    c.phase = Phase::kValue;
    c.space = uint16_t(grammar_->most_space());  // none before the value
    c.id = grammar_->schema(0).root();
    c.frame = add_frame(root);
    add(c);
  }
}

Matcher::Mark Matcher::mark() const {
  return {uint32_t(configs_.size()), uint32_t(frames_.size()), uint32_t(words_.size()), uint32_t(list_.size()), uint32_t(bytes_.size())};
}

void Matcher::restore(const Mark& m) {
  configs_.resize(m.configs);
  frames_.resize(m.frames);
  words_.resize(m.words);
  if (list_.size() > m.list) list_.resize(m.list);
  bytes_.resize(m.bytes);
}

void Matcher::add(const Config& c) {
  const size_t first = marks_.back().configs, n = configs_.size();
  for (size_t i = first; i < n; ++i)
    if (configs_[i] == c) return;
  if (n - first >= kMostConfigs)
    throw BudgetError("configurations", "", "the text can be read in more than " + std::to_string(kMostConfigs) + " ways at once");
  configs_.push_back(c);
}

uint32_t Matcher::add_frame(const Frame& f) {
  if (frames_.size() >= kMostFrames) throw BudgetError("frames", "", "the text is too long");
  frames_.push_back(f);
  return uint32_t(frames_.size() - 1);
}

bool Matcher::push(uint8_t b) {
  const uint32_t first = marks_.back().configs, last = uint32_t(configs_.size());
  marks_.push_back(mark());
  bytes_.push_back(char(b));
  entered_.clear();
  for (uint32_t i = first; i < last; ++i) {
    const Config c = configs_[i];
    advance(c, b);
  }
  if (!expected_.empty()) begin_expected();
  if (configs_.size() > last) return true;
  pop(1);
  return false;
}

void Matcher::pop(size_t bytes) {
  if (bytes == 0) return;
  const Mark m = marks_[marks_.size() - bytes];
  marks_.resize(marks_.size() - bytes);
  restore(m);
}

// --- a byte -----------------------------------------------------------------------------------------

void Matcher::advance(const Config& c, uint8_t b) {
  Langs& langs = grammar_->langs();
  const auto spaced = [&] {
    if (!grammar_->space(b) || c.space >= grammar_->most_space()) return false;
    Config next = c;
    ++next.space;
    add(next);
    return true;
  };
  switch (c.phase) {
    case Phase::kValue:
      if (!spaced()) begin_value(c, b);
      break;
    case Phase::kString: string_byte(c, b); break;
    case Phase::kNumber: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing || !langs.alive(q)) break;
      Config next = c;
      next.lang = q;
      const uint32_t parent = c.frame;
      if (frames_[parent].kind == Frame::kArray && array_of(frames_[parent]).unique && !fresh(next, parent)) break;
      if (q != kEmptyWord) add(next);
      if (langs.accepts(q)) end_value(parent);
      break;
    }
    case Phase::kLiteral: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing) break;
      if (q == kEmptyWord) {
        end_value(c.frame);
      } else {
        Config next = c;
        next.lang = q;
        add(next);
      }
      break;
    }
    case Phase::kObjectOpen:
    case Phase::kObjectNext:
      if (spaced()) break;
      if (b == '"') begin_key(c.frame);
      else if (b == '}' && c.phase == Phase::kObjectOpen && object_closes(frames_[c.frame])) end_value(frames_[c.frame].parent);
      break;
    case Phase::kKey: {
      const Frame& f = frames_[c.frame];
      const ObjectShape& s = object_of(f);
      if (b == '"' && c.escape == 0) {
        const int32_t name = s.tree[size_t(c.id)].name;
        if (name >= 0 && name_allowed(f, s, name)) end_key(c, name);
        break;
      }
      Config next = c;
      char out[4];
      int n;
      if (!decode_byte(next.escape, b, out, n)) break;
      int32_t at = c.id;
      for (int i = 0; i < n && at >= 0; ++i) {
        int32_t child = s.tree[size_t(at)].first_child;
        while (child >= 0 && s.tree[size_t(child)].byte != uint8_t(out[i])) child = s.tree[size_t(child)].next;
        at = child;
      }
      if (at < 0) break;
      next.id = at;
      const auto& node = s.tree[size_t(at)];
      if (next.escape == 0) {
        if (any_allowed(f, s, node.low, node.high)) add(next);
        break;
      }
      // An open escape: some allowed name goes on with a code point it can become.
      size_t depth = 0;
      for (const char x : decode_text(std::string_view(bytes_).substr(size_t(c.start)))) {
        (void)x;
        ++depth;
      }
      for (int32_t k = node.low; k < node.high; ++k) {
        const std::string& name = s.names[size_t(k)].name;
        if (name.size() <= depth || !name_allowed(f, s, k)) continue;
        if (escape_viable(langs, langs.word(std::string_view(name).substr(depth)), next.escape)) {
          add(next);
          break;
        }
      }
      break;
    }
    case Phase::kOtherKey: {
      if (b == '"' && c.escape == 0) {
        if (!langs.accepts(c.lang)) break;
        const Frame f = frames_[c.frame];
        const ObjectShape& s = object_of(f);
        const std::string key = decode_text(std::string_view(bytes_).substr(size_t(c.start), bytes_.size() - 1 - size_t(c.start)));
        if (!is_other_key(f, s, key)) break;
        const KeyClass& k = s.classes[c.index];
        after_member(c.frame, -1, k.goal_if, k.goal, &key);
        break;
      }
      Config next = c;
      char out[4];
      int n;
      if (!decode_byte(next.escape, b, out, n)) break;
      for (int i = 0; i < n && next.lang != kNothing; ++i) next.lang = langs.step(next.lang, uint8_t(out[i]));
      if (next.lang == kNothing || !langs.alive(next.lang) || !escape_viable(langs, next.lang, next.escape)) break;
      if (next.escape == 0 && next.lang != langs.text() && !langs.infinite(next.lang) && !new_key(next)) break;
      add(next);
      break;
    }
    case Phase::kAfterKey:
      if (spaced()) break;
      if (b == ':') expect(c.id, c.frame, -1);
      break;
    case Phase::kArrayOpen:
      if (spaced()) break;
      if (b == ']') {
        if (array_closes(frames_[c.frame])) end_value(frames_[c.frame].parent);
      } else {
        begin_item(c.frame, b);
      }
      break;
    case Phase::kAfterValue: {
      if (spaced()) break;
      const Frame f = frames_[c.frame];
      if (f.kind == Frame::kObject) {
        if (b == '}' && object_closes(f)) {
          end_value(f.parent);
        } else if (b == ',') {
          const ObjectShape& s = object_of(f);
          bool more = any_allowed(f, s, 0, int32_t(s.names.size()));
          for (int32_t k = 0; k < int32_t(s.classes.size()) && !more; ++k) more = class_allowed(f, s, k);
          if (more) {
            Config next{};
            next.phase = Phase::kObjectNext;
            next.frame = c.frame;
            add(next);
          }
        }
      } else if (b == ']') {
        if (array_closes(f)) end_value(f.parent);
      } else if (b == ',') {
        begin_item(c.frame, -1);
      }
      break;
    }
    case Phase::kRule: {
      const Lang q = langs.step(c.lang, b);
      if (q == kNothing || !langs.alive(q)) break;
      if (q != kEmptyWord) {
        Config next = c;
        next.lang = q;
        add(next);
      }
      if (langs.accepts(q)) enter(c.id, c.frame);
      break;
    }
    case Phase::kDone: break;
  }
}

void Matcher::string_byte(Config c, uint8_t b) {
  Langs& langs = grammar_->langs();
  const Strings& s = grammar_->schema(frames_[c.frame].schema).value(c.id).strings[c.index];
  if (b == '"' && c.escape == 0) {
    if (langs.accepts(c.lang) && c.count >= s.shortest) end_value(c.frame);
    return;
  }
  char out[4];
  int n;
  if (!decode_byte(c.escape, b, out, n)) return;
  for (int i = 0; i < n && c.lang != kNothing; ++i) c.lang = langs.step(c.lang, uint8_t(out[i]));
  if (c.lang == kNothing || !langs.alive(c.lang) || !escape_viable(langs, c.lang, c.escape)) return;
  if (s.shortest > 0 || s.longest >= 0) {
    c.count += n > 0 && (uint8_t(out[0]) & 0xc0) != 0x80;
    if (s.longest >= 0) {
      const int32_t open = c.escape != 0;  // a code point that has begun
      const int32_t needs = open ? 1 : c.lang == langs.text() ? 0 : fewest_chars(langs, c.lang);
      if (c.count + needs > s.longest) return;
    }
  }
  const uint32_t parent = c.frame;
  if (frames_[parent].kind == Frame::kArray && array_of(frames_[parent]).unique && !fresh(c, parent)) return;
  add(c);
}

// Whether an item of a unique array that has begun can still become one that isn't there yet.
bool Matcher::fresh(const Config& c, uint32_t frame) {
  const Frame& f = frames_[frame];
  if (f.list == 0) return true;
  Langs& langs = grammar_->langs();
  const auto taken = [&](const std::string& item) {
    for (uint32_t i = f.list; i; i = list_[i - 1].next)
      if (list_[i - 1].text == item) return true;
    return false;
  };
  if (c.escape != 0) return true;
  if (langs.infinite(c.lang)) {
    if (c.phase == Phase::kString) return true;
    // Endless spellings may still be of few numbers: 1.0, 1.00. Those in one spelling are counted, and the number that
    // nothing but zeros would make.
    const std::string so_far = bytes_.substr(size_t(f.start));
    if (so_far.find_first_of("eE") != so_far.npos) return true;
    const bool fraction = so_far.find('.') != so_far.npos;
    const Lang rest = regex(langs, fraction ? "^([0-9]*[1-9])?$" : "^[0-9]*(\\.[0-9]*[1-9])?$");
    const Lang once = langs.both({c.lang, rest});
    if (langs.infinite(once) || langs.count(once, 301) > 300) return true;
    if (langs.alive(langs.both({c.lang, regex(langs, "[eE]")}))) return true;
    std::vector<std::string> words = langs.list(once, 301);
    if (langs.accepts(langs.step(c.lang, '0'))) words.push_back("0");
    for (const std::string& w : words)
      if (!taken(canonical_text(so_far + w))) return true;
    return false;
  }
  const std::string so_far = bytes_.substr(size_t(f.start));
  const Strings* bounds = nullptr;
  if (c.phase == Phase::kString) bounds = &grammar_->schema(f.schema).value(c.id).strings[c.index];
  for (const std::string& rest : langs.list(c.lang, 1000)) {
    if (bounds && bounds->shortest > 0) {
      int32_t n = c.count;
      for (const char x : rest) n += (uint8_t(x) & 0xc0) != 0x80;
      if (n < bounds->shortest) continue;
    }
    const std::string item = c.phase == Phase::kString ? "\"" + decode_text(std::string_view(so_far).substr(1)) + rest : canonical_text(so_far + rest);
    if (!taken(item)) return true;
  }
  return false;
}

// --- values -----------------------------------------------------------------------------------------

void Matcher::begin_value(const Config& c, uint8_t b) {
  uint32_t frame = c.frame;
  const Value& v = grammar_->schema(frames_[frame].schema).value(c.id);
  Langs& langs = grammar_->langs();
  const bool unique = frames_[frame].kind == Frame::kArray && array_of(frames_[frame]).unique;
  if (unique) {
    Frame f = frames_[frame];
    f.start = int32_t(bytes_.size() - 1);
    frame = add_frame(f);
  }
  const auto taken = [&](const char* literal) {
    for (uint32_t i = unique ? frames_[frame].list : 0; i; i = list_[i - 1].next)
      if (list_[i - 1].text == literal) return true;
    return false;
  };
  Config next{};
  next.frame = frame;
  switch (b) {
    case '"':
      for (size_t i = 0; i < v.strings.size(); ++i) {
        next.phase = Phase::kString;
        next.id = c.id;
        next.index = uint8_t(i);
        next.lang = v.strings[i].lang;
        next.start = 0;
        if (unique && !fresh(next, frame)) continue;
        add(next);
      }
      break;
    case '{':
      for (const auto& s : v.objects) {
        Frame f{};
        f.kind = Frame::kObject;
        f.schema = frames_[frame].schema;
        f.parent = frame;
        f.shape = s.get();
        f.missing = s->required;
        f.words = uint32_t(words_.size());
        words_.resize(words_.size() + (s->names.size() + 63) / 64);
        Config open{};
        open.phase = Phase::kObjectOpen;
        open.frame = add_frame(f);
        add(open);
      }
      break;
    case '[':
      for (const auto& s : v.arrays) {
        Frame f{};
        f.kind = Frame::kArray;
        f.schema = frames_[frame].schema;
        f.parent = frame;
        f.shape = s.get();
        f.words = uint32_t(words_.size());
        words_.resize(words_.size() + s->counts.size());
        Config open{};
        open.phase = Phase::kArrayOpen;
        open.frame = add_frame(f);
        add(open);
      }
      break;
    case 'n':
    case 't':
    case 'f':
      if (b == 'n' ? v.null && !taken("null") : b == 't' ? v.yes && !taken("true") : v.no && !taken("false")) {
        next.phase = Phase::kLiteral;
        next.lang = langs.word(b == 'n' ? "ull" : b == 't' ? "rue" : "alse");
        add(next);
      }
      break;
    default:
      if (v.number != kNothing && (b == '-' || (b >= '0' && b <= '9'))) {
        next.phase = Phase::kNumber;
        next.lang = v.number;
        advance(next, b);
      }
  }
}

void Matcher::end_value(uint32_t frame) {
  const Frame f = frames_[frame];
  switch (f.kind) {
    case Frame::kRoot: {
      Config c{};
      c.phase = Phase::kDone;
      add(c);
      break;
    }
    case Frame::kSchema: enter(f.missing, f.parent); break;
    case Frame::kJoin:
      for (uint32_t i = f.list; i; i = list_[i - 1].next) end_value(list_[i - 1].frame);
      break;
    case Frame::kArray:
      if (array_of(f).unique && unknown_item_) ++unchecked_;
      if (array_of(f).unique && !unknown_item_) {
        const std::string item = canonical_text(std::string_view(bytes_).substr(size_t(f.start)));
        for (uint32_t i = f.list; i; i = list_[i - 1].next)
          if (list_[i - 1].text == item) return;
        list_.push_back({f.list, 0, 0, item});
        Frame with = f;
        with.list = uint32_t(list_.size());
        frame = add_frame(with);
      }
      [[fallthrough]];
    case Frame::kObject: {
      Config c{};
      c.phase = Phase::kAfterValue;
      c.frame = frame;
      add(c);
      break;
    }
    case Frame::kCall: break;
  }
}

// --- objects ----------------------------------------------------------------------------------------

bool Matcher::object_closes(const Frame& f) const {
  const ObjectShape& s = object_of(f);
  return f.missing == 0 && f.count >= s.fewest && f.served == (1u << s.some) - 1;
}

// Whether the object can be ended once one more member is there: the name with this index (or another key, -1), and
// with it these of `some` served.
bool Matcher::members_can_end(const Frame& f, const ObjectShape& s, int32_t name, uint32_t served) const {
  const int32_t count = f.count + 1, missing = f.missing - (name >= 0 && s.names[size_t(name)].required);
  const uint32_t open = ((1u << s.some) - 1) & ~served;
  if (count > s.most) return false;
  if (open == 0 && s.most == kUnbounded && (s.open || s.fewest <= count + missing)) return true;
  const auto unseen = [&](int32_t k) { return k != name && s.names[size_t(k)].allowed && !(words_[f.words + size_t(k >> 6)] >> (k & 63) & 1); };
  int64_t extra = 0;
  for (int32_t e = 0; e < s.some; ++e) {
    if (!(open >> e & 1)) continue;
    const size_t at = (size_t(1) << e) - 1;
    bool by_missing = false, by_other = false;
    for (const KeyClass& k : s.classes) by_other |= k.goal_if[at] >= 0;
    for (int32_t k = 0; k < int32_t(s.names.size()); ++k)
      if (s.names[size_t(k)].goal_if[at] >= 0 && unseen(k)) (s.names[size_t(k)].required ? by_missing : by_other) = true;
    if (!by_missing && !by_other) return false;
    extra += !by_missing;
  }
  if (int64_t(count) + missing + extra > s.most) return false;
  if (s.open || s.fewest <= count) return true;
  int32_t left = 0;
  for (int32_t k = 0; k < int32_t(s.names.size()); ++k) left += unseen(k);
  return count + left >= s.fewest;
}

bool Matcher::name_allowed(const Frame& f, const ObjectShape& s, int32_t name) const {
  const NamedKey& k = s.names[size_t(name)];
  if (!k.allowed || (words_[f.words + size_t(name >> 6)] >> (name & 63) & 1)) return false;
  if (grammar_->schema_order()) {
    if (k.order < f.order) return false;
    for (size_t j = 0; j < s.names.size(); ++j)
      if (s.names[j].required && s.names[j].order < k.order && !(words_[f.words + (j >> 6)] >> (j & 63) & 1)) return false;
  }
  if (members_can_end(f, s, name, f.served)) return true;
  for (uint32_t mask = 1; mask < 1u << s.some; ++mask)
    if (k.goal_if[mask - 1] >= 0 && members_can_end(f, s, name, f.served | mask)) return true;
  return false;
}

bool Matcher::any_allowed(const Frame& f, const ObjectShape& s, int32_t low, int32_t high) const {
  for (int32_t k = low; k < high; ++k)
    if (name_allowed(f, s, k)) return true;
  return false;
}

bool Matcher::class_allowed(const Frame& f, const ObjectShape& s, int32_t index) const {
  if (grammar_->schema_order())
    for (size_t j = 0; j < s.names.size(); ++j)
      if (s.names[j].required && s.names[j].order != INT32_MAX && !(words_[f.words + (j >> 6)] >> (j & 63) & 1)) return false;
  if (members_can_end(f, s, -1, f.served)) return true;
  for (uint32_t mask = 1; mask < 1u << s.some; ++mask)
    if (s.classes[size_t(index)].goal_if[mask - 1] >= 0 && members_can_end(f, s, -1, f.served | mask)) return true;
  return false;
}

bool Matcher::is_other_key(const Frame& f, const ObjectShape& s, const std::string& key) const {
  const auto at = std::lower_bound(s.names.begin(), s.names.end(), key, [](const NamedKey& k, const std::string& x) { return k.name < x; });
  if (at != s.names.end() && at->name == key) return false;
  for (uint32_t i = f.list; i; i = list_[i - 1].next)
    if (list_[i - 1].text == key) return false;
  return true;
}

// Of a key that has begun and can only become one of finitely many: whether one of them is not named or there already.
bool Matcher::new_key(const Config& c) {
  const Frame& f = frames_[c.frame];
  const ObjectShape& s = object_of(f);
  Langs& langs = grammar_->langs();
  const std::string prefix = decode_text(std::string_view(bytes_).substr(size_t(c.start)));
  int64_t taken = 0;
  const auto take = [&](const std::string& key) {
    if (key.compare(0, prefix.size(), prefix) == 0 && langs.accepts(langs.steps(c.lang, std::string_view(key).substr(prefix.size())))) ++taken;
  };
  auto at = std::lower_bound(s.names.begin(), s.names.end(), prefix, [](const NamedKey& k, const std::string& x) { return k.name < x; });
  for (; at != s.names.end() && at->name.compare(0, prefix.size(), prefix) == 0; ++at) take(at->name);
  for (uint32_t i = f.list; i; i = list_[i - 1].next) take(list_[i - 1].text);
  return taken == 0 || langs.count(c.lang, taken + 1) > taken;
}

void Matcher::begin_key(uint32_t frame) {
  const ObjectShape& s = object_of(frames_[frame]);
  Config c{};
  c.frame = frame;
  c.start = int32_t(bytes_.size());
  if (any_allowed(frames_[frame], s, 0, int32_t(s.names.size()))) {
    c.phase = Phase::kKey;
    add(c);
  }
  for (int32_t k = 0; k < int32_t(s.classes.size()); ++k)
    if (class_allowed(frames_[frame], s, k)) {
      c.phase = Phase::kOtherKey;
      c.index = uint8_t(k);
      c.lang = s.classes[size_t(k)].lang;
      add(c);
    }
}

void Matcher::end_key(const Config& c, int32_t name) {
  const NamedKey& k = object_of(frames_[c.frame]).names[size_t(name)];
  after_member(c.frame, name, k.goal_if, k.goal, nullptr);
}

void Matcher::after_member(uint32_t frame, int32_t name, const std::vector<Goal>& goal_if, Goal goal, const std::string* other) {
  const Frame f = frames_[frame];
  const ObjectShape& s = object_of(f);
  for (uint32_t mask = 0; mask < 1u << s.some; ++mask) {
    if (mask & f.served) continue;
    const Goal g = mask ? goal_if[mask - 1] : goal;
    if (g < 0 || !members_can_end(f, s, name, f.served | mask)) continue;
    Frame next = f;
    ++next.count;
    next.served |= mask;
    if (name >= 0) {
      const size_t n = (s.names.size() + 63) / 64;
      next.words = uint32_t(words_.size());
      words_.resize(words_.size() + n);
      std::copy_n(words_.begin() + f.words, n, words_.begin() + next.words);
      words_[next.words + size_t(name >> 6)] |= uint64_t(1) << (name & 63);
      next.missing -= s.names[size_t(name)].required;
      next.order = s.names[size_t(name)].order;
    } else {
      list_.push_back({f.list, 0, 0, *other});
      next.list = uint32_t(list_.size());
      next.order = INT32_MAX;
    }
    Config c{};
    c.phase = Phase::kAfterKey;
    c.id = g;
    c.frame = add_frame(next);
    add(c);
  }
}

// --- arrays -----------------------------------------------------------------------------------------

bool Matcher::array_closes(const Frame& f) const {
  const ArrayShape& s = array_of(f);
  if (f.count < s.fewest) return false;
  for (size_t k = 0; k < s.counts.size(); ++k)
    if (int64_t(words_[f.words + k]) < s.counts[k].fewest) return false;
  return true;
}

void Matcher::begin_item(uint32_t frame, int32_t b) {
  const Frame f = frames_[frame];
  const ArrayShape& s = array_of(f);
  if (f.count >= s.most) return;
  const int32_t at = s.position(f.count);
  for (uint32_t sub = 0; sub < s.goals[size_t(at)].size(); ++sub) {
    const Goal g = s.goals[size_t(at)][sub];
    if (g < 0) continue;
    if (s.unique && f.list && s.finite[size_t(at)][sub]) {
      // Some item that isn't there yet.
      bool left = false;
      for (const std::string& item : *s.finite[size_t(at)][sub]) {
        bool taken = false;
        for (uint32_t i = f.list; i && !taken; i = list_[i - 1].next) taken = list_[i - 1].text == item;
        left |= !taken;
      }
      if (!left) continue;
    }
    uint32_t owner = frame;
    const bool endless = s.most == kUnbounded && f.count >= std::max<int32_t>(s.fewest, int32_t(s.goals.size()) - 1);
    if (!endless || s.unique || !s.counts.empty()) {
      Frame next = f;
      ++next.count;
      if (!s.counts.empty()) {
        int32_t counts[8];
        bool over = false;
        for (size_t k = 0; k < s.counts.size(); ++k) {
          counts[k] = int32_t(words_[f.words + k]) + int32_t(sub >> k & 1);
          over |= counts[k] > s.counts[k].most;
          if (s.counts[k].most == kUnbounded) counts[k] = std::min(counts[k], s.counts[k].fewest);
        }
        if (over || !s.viable[size_t(array_state(s, next.count, counts))]) continue;
        next.words = uint32_t(words_.size());
        for (size_t k = 0; k < s.counts.size(); ++k) words_.push_back(uint64_t(counts[k]));
      }
      owner = add_frame(next);
    }
    expect(g, owner, b);
  }
}

void Matcher::expect(Goal goal, uint32_t frame, int32_t b) { expected_.push_back({goal, frame, b}); }

// Values of one goal are read once, whichever frames they belong to: otherwise two ways to read an object would be
// four ways to read one inside another, and so on.
void Matcher::begin_expected() {
  std::vector<Expected> all;
  all.swap(expected_);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].byte == -2) continue;
    uint32_t frame = all[i].frame;
    const auto separate = [&](uint32_t f) { return frames_[f].kind == Frame::kArray && array_of(frames_[f]).unique; };
    uint32_t list = 0;
    if (!separate(frame))
      for (size_t j = i + 1; j < all.size(); ++j)
        if (all[j].goal == all[i].goal && all[j].byte == all[i].byte && frames_[all[j].frame].schema == frames_[frame].schema &&
            !separate(all[j].frame)) {
          if (all[j].frame != frame) {
            list_.push_back({list, all[j].frame, 0, ""});
            list = uint32_t(list_.size());
          }
          all[j].byte = -2;
        }
    if (list) {
      list_.push_back({list, frame, 0, ""});
      Frame join{};
      join.kind = Frame::kJoin;
      join.schema = frames_[frame].schema;
      join.list = uint32_t(list_.size());
      frame = add_frame(join);
    }
    Config c{};
    c.phase = Phase::kValue;
    c.id = all[i].goal;
    c.frame = frame;
    if (all[i].byte >= 0) begin_value(c, uint8_t(all[i].byte));
    else add(c);
  }
}

// --- rules ------------------------------------------------------------------------------------------

void Matcher::enter(int32_t state, uint32_t call) {
  for (const auto& [s, c] : entered_)
    if (s == state && c == call) return;
  entered_.emplace_back(state, call);
  const Grammar::State& st = grammar_->state(state);
  for (const Grammar::Edge& e : st.edges) {
    switch (e.symbol.kind) {
      case Symbol::kLang: {
        if (e.symbol.id != kEmptyWord && e.symbol.id != kNothing) {
          Config c{};
          c.phase = Phase::kRule;
          c.lang = e.symbol.id;
          c.id = e.next;
          c.frame = call;
          add(c);
        }
        if (grammar_->langs().accepts(e.symbol.id)) enter(e.next, call);
        break;
      }
      case Symbol::kSchema: {
        Frame f{};
        f.kind = Frame::kSchema;
        f.schema = uint16_t(e.symbol.id);
        f.parent = call;
        f.missing = e.next;
        Config c{};
        c.phase = Phase::kValue;
        c.space = uint16_t(grammar_->most_space());
        c.id = grammar_->schema(e.symbol.id).root();
        c.frame = add_frame(f);
        add(c);
        break;
      }
      case Symbol::kRule: {
        uint32_t node = 0;
        bool known = false;
        for (size_t i = frames_.size(); i-- > marks_.back().frames && !known;)
          if (frames_[i].kind == Frame::kCall && frames_[i].rule == e.symbol.id && frames_[i].start == int32_t(bytes_.size())) {
            node = uint32_t(i);
            known = true;
          }
        if (known) {
          bool have = false;
          for (uint32_t i = frames_[node].list; i && !have; i = list_[i - 1].next) have = list_[i - 1].frame == call && list_[i - 1].state == e.next;
          if (have) break;
        } else {
          Frame f{};
          f.kind = Frame::kCall;
          f.rule = e.symbol.id;
          f.start = int32_t(bytes_.size());
          node = add_frame(f);
        }
        list_.push_back({frames_[node].list, call, e.next, ""});
        frames_[node].list = uint32_t(list_.size());
        if (!known) enter(grammar_->start_of(e.symbol.id), node);
        else if (frames_[node].returned) enter(e.next, call);
        break;
      }
    }
  }
  if (st.ends) return_from(call);
}

void Matcher::return_from(uint32_t call) {
  if (frames_[call].start == int32_t(bytes_.size())) frames_[call].returned = true;
  for (uint32_t i = frames_[call].list; i; i = list_[i - 1].next) {
    const int32_t state = list_[i - 1].state;
    if (state < 0) {
      Config c{};
      c.phase = Phase::kDone;
      add(c);
    } else {
      enter(state, list_[i - 1].frame);
    }
  }
}

// --- tokens -----------------------------------------------------------------------------------------

bool Matcher::complete() const {
  for (const Config* c = begin(); c != end(); ++c)
    if (c->phase == Phase::kDone) return true;
  return false;
}

bool Matcher::accept(int32_t token) {
  const Vocabulary& v = *grammar_->vocabulary();
  if (token < 0 || token >= v.width()) throw std::out_of_range("token " + std::to_string(token) + " is not below the vocabulary's width " + std::to_string(v.width()));
  if (done_) return false;
  const uint32_t before = uint32_t(marks_.size());
  if (v.is_eos(token)) {
    if (!complete()) return false;
    done_ = true;
    history_.push_back({before, true});
    return true;
  }
  if (token >= v.size() || v.token(token).empty()) return false;
  size_t n = 0;
  for (const char b : v.token(token)) {
    if (!push(uint8_t(b))) {
      pop(n);
      return false;
    }
    ++n;
  }
  history_.push_back({before, false});
  return true;
}

bool Matcher::allows(int32_t token) {
  if (!accept(token)) return false;
  rollback(1);
  return true;
}

bool Matcher::accept_bytes(std::string_view text, size_t* taken) {
  const uint32_t before = uint32_t(marks_.size());
  size_t n = 0;
  if (!done_)
    for (const char b : text) {
      if (!push(uint8_t(b))) break;
      ++n;
    }
  if (taken) *taken = n;
  if (n < text.size() || done_) {
    pop(n);
    return false;
  }
  history_.push_back({before, false});
  return true;
}

void Matcher::rollback(int32_t tokens) {
  if (tokens < 0 || size_t(tokens) > history_.size())
    throw std::out_of_range("can't take back " + std::to_string(tokens) + " tokens: " + std::to_string(history_.size()) + " were accepted");
  for (int32_t i = 0; i < tokens; ++i) {
    if (history_.back().eos) done_ = false;
    pop(marks_.size() - history_.back().mark);
    history_.pop_back();
  }
}

std::string Matcher::allowed_bytes() {
  std::string out;
  for (int b = 0; b < 256; ++b)
    if (push(uint8_t(b))) {
      out.push_back(char(b));
      pop(1);
    }
  return out;
}

std::string Matcher::jump_forward() {
  std::string out;
  while (out.size() < 4096 && !done_ && !complete()) {
    // Spelling a character as an escape is no choice of text.
    const auto in_string = [&] {
      for (const Config* c = begin(); c != end(); ++c)
        if (c->phase != Phase::kString && c->phase != Phase::kKey && c->phase != Phase::kOtherKey) return false;
      return true;
    };
    const bool plain = in_string();
    int only = -1;
    bool escape = false;
    for (int b = 0; b < 256; ++b)
      if (push(uint8_t(b))) {
        pop(1);
        if (plain && b == '\\') {
          escape = true;
          continue;
        }
        if (only >= 0) {
          only = -2;
          break;
        }
        only = b;
      }
    if (only == -1 && escape) only = '\\';
    if (only < 0) break;
    push(uint8_t(only));
    out.push_back(char(only));
  }
  pop(out.size());
  return out;
}

std::string Matcher::expected() {
  if (done_) return "nothing: the end was accepted";
  std::string out;
  const auto say = [&](const std::string& s) {
    if (out.find(s) != out.npos) return;
    if (!out.empty()) out += ", ";
    out += s;
  };
  for (const Config* c = begin(); c != end(); ++c) {
    const Frame& f = frames_[c->frame];
    switch (c->phase) {
      case Phase::kValue: {
        const Value& v = grammar_->schema(f.schema).value(c->id);
        if (v.null) say("null");
        if (v.no) say("false");
        if (v.yes) say("true");
        if (v.number != kNothing) say("a number");
        if (!v.strings.empty()) say("a string");
        if (!v.arrays.empty()) say("an array");
        if (!v.objects.empty()) say("an object");
        break;
      }
      case Phase::kString: say("the rest of a string"); break;
      case Phase::kNumber: say("the rest of a number"); break;
      case Phase::kLiteral: say("the rest of null, true or false"); break;
      case Phase::kObjectOpen:
      case Phase::kObjectNext:
      case Phase::kKey: {
        const ObjectShape& s = object_of(f);
        int shown = 0;
        const auto& node = s.tree[size_t(c->phase == Phase::kKey ? c->id : 0)];
        for (int32_t k = node.low; k < node.high && shown < 8; ++k)
          if (name_allowed(f, s, k)) {
            say("the key \"" + s.names[size_t(k)].name + "\"");
            ++shown;
          }
        if (c->phase != Phase::kKey && !s.classes.empty()) say("another key");
        if (c->phase == Phase::kObjectOpen && object_closes(f)) say("}");
        break;
      }
      case Phase::kOtherKey: say("the rest of a key"); break;
      case Phase::kAfterKey: say(":"); break;
      case Phase::kArrayOpen: say("an item"); if (array_closes(f)) say("]"); break;
      case Phase::kAfterValue:
        if (f.kind == Frame::kObject) {
          if (object_closes(f)) say("}");
          const ObjectShape& s = object_of(f);
          if (any_allowed(f, s, 0, int32_t(s.names.size())) || (s.open && class_allowed(f, s, 0))) say(",");
          if (f.missing) {
            for (size_t k = 0; k < s.names.size(); ++k)
              if (s.names[k].required && !(words_[f.words + (k >> 6)] >> (k & 63) & 1)) say("the key \"" + s.names[k].name + "\" (required)");
          }
        } else {
          if (array_closes(f)) say("]");
          if (f.count < array_of(f).most) say(",");
        }
        break;
      case Phase::kRule: {
        std::string some;
        for (int b = 0; b < 256 && some.size() < 40; ++b)
          if (grammar_->langs().step(c->lang, uint8_t(b)) != kNothing) some += b > 32 && b < 127 ? std::string(1, char(b)) + " " : "\\x" + std::string(1, "0123456789abcdef"[b >> 4]) + "0123456789abcdef"[b & 15] + " ";
        say("one of " + some);
        break;
      }
      case Phase::kDone: say("the end"); break;
    }
  }
  return out;
}

void fill_tree(Matcher& m, const int32_t* parents, const int32_t* tokens, int32_t n, uint32_t* mask) {
  const int32_t words = m.grammar().vocabulary()->words();
  std::vector<int32_t> path;   // nodes that are accepted now
  std::vector<bool> dead(size_t(n), false);
  const auto back = [&](size_t keep) {
    m.rollback(int32_t(path.size() - keep));
    path.resize(keep);
  };
  for (int32_t i = 0; i < n; ++i) {
    uint32_t* row = mask + size_t(i) * size_t(words);
    std::vector<int32_t> want;
    for (int32_t k = i; k >= 0; k = parents[k]) want.insert(want.begin(), k);
    size_t same = 0;
    while (same < path.size() && same < want.size() && path[same] == want[same]) ++same;
    back(same);
    bool ok = true;
    for (size_t k = same; k < want.size() && ok; ++k) {
      ok = !dead[size_t(want[k])] && m.accept(tokens[want[k]]);
      if (ok) path.push_back(want[k]);
      else dead[size_t(i)] = true;
    }
    if (ok) m.fill(row);
    else std::memset(row, 0, size_t(words) * 4);
  }
  back(0);
}

}  // namespace tokops::grammar
