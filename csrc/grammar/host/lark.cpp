// Lark grammar files, with the extensions of llguidance that are about text.
#include "lark.h"

#include <algorithm>

#include "lark_common.h"

namespace tokops::grammar {
namespace front {
namespace {

bool names_terminal(std::string_view name) {
  const size_t i = name.find_first_not_of('_');
  return i != std::string_view::npos && std::isupper(uint8_t(name[i]));
}

}  // namespace

// Blanks and comments; line breaks too where they mean nothing.
void LarkParser::skip(bool lines) {
  while (!source_.end()) {
    const char c = source_.peek();
    if (c == ' ' || c == '\t' || c == '\f' || c == '\r' || (lines && c == '\n')) {
      ++source_.at;
    } else if (c == '#' || source_.starts("//")) {
      source_.skip_line();
    } else if (c == '\\' &&
               (source_.peek(1) == '\n' || (source_.peek(1) == '\r' && source_.peek(2) == '\n'))) {
      source_.at += source_.peek(1) == '\n' ? 2 : 3;
    } else {
      return;
    }
  }
}

// To a '|' that goes on with the expansions, which may be on a later line.
bool LarkParser::skip_to_bar() {
  skip(depth_ > 0);
  const size_t before = source_.at;
  skip(true);
  if (source_.peek() == '|') return true;
  source_.at = before;
  return false;
}

void LarkParser::end_statement() {
  skip(false);
  if (!source_.end() && source_.peek() != '\n') {
    source_.fail("unexpected " + source_.shown());
  }
}

std::string LarkParser::read_name() {
  const size_t from = source_.at;
  if (!std::isalpha(uint8_t(source_.peek())) && source_.peek() != '_') {
    source_.fail("expected a name, found " + source_.shown());
  }
  while (in_name(source_.peek()) || (source_.peek() == '-' && in_name(source_.peek(1))))
    ++source_.at;
  return std::string(source_.slice(from, source_.at));
}

bool LarkParser::take_name(const char* word) {
  const size_t length = std::string_view(word).size();
  if (!source_.starts(word) || in_name(source_.peek(length))) return false;
  source_.at += length;
  return true;
}

void LarkParser::warn(const std::string& text) {
  if (std::find(warnings_.begin(), warnings_.end(), text) == warnings_.end())
    warnings_.push_back(text);
}

void LarkParser::statement() {
  if (source_.peek() == '%') return directive();
  if (std::isalpha(uint8_t(source_.peek())) ||
      std::string_view("_!?").find(source_.peek()) != std::string_view::npos) {
    return definition(false, false);
  }
  source_.fail("expected a rule, a terminal or a directive, found " + source_.shown() +
               "; a rule goes on in the next line only with '|' or inside brackets");
}

void LarkParser::directive() {
  const size_t at = source_.at++;
  if (take_name("import")) return import(at);
  if (take_name("ignore")) {
    skip(false);
    ignored_.push_back(expansions());
    return end_statement();
  }
  if (take_name("extend") || take_name("override")) {
    const bool extend = source_.slice(at, source_.at) == "%extend";
    skip(false);
    return definition(extend, !extend);
  }
  if (take_name("llguidance")) return options(at);
  const std::string name = read_name();
  if (name == "declare") {
    source_.fail(at, "%declare", "terminals that only a custom lexer knows have no text");
  }
  source_.fail(at, "%" + name, "there is no such directive here");
}

void LarkParser::import(size_t at) {
  skip(false);
  const size_t path_at = source_.at;
  while (source_.peek() == '.' || in_name(source_.peek())) ++source_.at;
  std::string module(source_.slice(path_at, source_.at));
  skip(false);
  std::vector<std::string> names;
  if (source_.take("(")) {
    do {
      skip(true);
      if (source_.peek() == ')') break;
      names.push_back(read_name());
      skip(true);
    } while (source_.take(","));
    if (!source_.take(")")) source_.fail("expected ')', found " + source_.shown());
  } else {
    const size_t dot = module.rfind('.');
    if (dot == std::string::npos) source_.fail(at, "%import", "expected module.NAME");
    names.push_back(module.substr(dot + 1));
    module.resize(dot);
  }
  if (module != "common") {
    source_.fail(at, "%import", "only the module common can be imported from, not " + module);
  }
  std::string alias;
  skip(false);
  if (source_.take("->")) {
    skip(false);
    if (names.size() != 1) source_.fail("a list of names has no alias");
    alias = read_name();
  }
  for (const std::string& name : names) {
    const std::string_view pattern = common_terminal(name);
    if (pattern.empty()) source_.fail(at, "%import", "common has no terminal " + name);
    RegexOptions options;
    options.search = false;
    const int32_t id = syntax_.name(alias.empty() ? name : alias);
    if (!names_terminal(syntax_.names[size_t(id)])) {
      source_.fail(at, "%import", "a terminal needs a name in upper case, not " + alias);
    }
    if (syntax_.definitions[size_t(id)].body >= 0) {
      source_.fail(at, "name", syntax_.names[size_t(id)] + " is defined twice");
    }
    const Lang lang = read_regex(langs_, source_, at, pattern, options);
    syntax_.definitions[size_t(id)] = {syntax_.lang(lang, at, 8), uint32_t(at), true, {}};
  }
  end_statement();
}

// llguidance's options: those that do not change the language here, or say what holds anyway.
void LarkParser::options(size_t at) {
  skip(true);
  if (source_.peek() != '{') source_.fail("expected '{', found " + source_.shown());
  std::string text = source_.json_object();
  std::erase_if(text, [](char c) { return std::isspace(uint8_t(c)); });
  for (const char* known :
       {"{}", "{\"no_forcing\":true}", "{\"no_forcing\":false}", "{\"allow_initial_skip\":true}"}) {
    if (text == known) return end_statement();
  }
  source_.fail(at, "%llguidance", "the options " + text + " are not supported");
}

std::vector<int32_t> LarkParser::parameters() {
  std::vector<int32_t> names;
  if (!source_.take("{")) return names;
  do {
    skip(true);
    names.push_back(syntax_.name(read_name()));
    skip(true);
  } while (source_.take(","));
  if (!source_.take("}")) source_.fail("expected '}', found " + source_.shown());
  return names;
}

LarkParser::Attributes LarkParser::attributes() {
  Attributes found;
  if (!source_.take("[")) return found;
  ++depth_;
  do {
    skip(true);
    const size_t at = source_.at;
    const std::string name = read_name();
    skip(true);
    if (name == "lazy") {
      found.lazy = true;
    } else if (name == "suffix" && source_.take("=")) {
      skip(true);
      found.suffix = atom();
    } else if (name == "capture" || name == "temperature") {
      if (name == "temperature")
        warn("the attribute temperature does not change the language and is not used");
      if (source_.take("=")) {
        skip(true);
        if (source_.peek() == '"') {
          source_.literal(Escapes::kAll);
        } else {
          while (std::isdigit(uint8_t(source_.peek())) || source_.peek() == '.') ++source_.at;
        }
      }
    } else {
      source_.fail(at, name, "the attribute " + name + " is not supported");
    }
    skip(true);
  } while (source_.take(","));
  --depth_;
  if (!source_.take("]")) source_.fail("expected ']', found " + source_.shown());
  return found;
}

void LarkParser::priority() {
  if (!source_.take(".")) return;
  if (source_.peek() == '-' || source_.peek() == '+') ++source_.at;
  source_.number();
  warn("priorities choose between parses of one text; the language is the same without them");
}

void LarkParser::definition(bool extend, bool replace) {
  const size_t at = source_.at;
  while (source_.peek() == '!' || source_.peek() == '?') ++source_.at;
  const std::string name = read_name();
  const bool terminal = names_terminal(name);
  std::vector<int32_t> names = parameters();
  const Attributes how = attributes();
  priority();
  skip(false);
  if (!source_.take(":"))
    source_.fail("expected ':' behind " + name + ", found " + source_.shown());
  skip(false);
  int32_t body = expansions();
  end_statement();
  if (how.suffix >= 0)
    body = syntax_.add({Part::kConcat, uint32_t(at), 0, 0, 0, {body, how.suffix}});
  if (how.lazy || how.suffix >= 0) body = syntax_.add({Part::kLazy, uint32_t(at), 0, 0, 0, {body}});
  Definition& d = syntax_.definitions[size_t(syntax_.name(name))];
  if (d.body >= 0 && !extend && !replace) source_.fail(at, "name", name + " is defined twice");
  if (d.body < 0 && (extend || replace)) source_.fail(at, "name", name + " is not defined before");
  if (extend) {
    if (d.parameters != names) source_.fail(at, "%extend", name + " has other parameters");
    body = syntax_.add({Part::kEither, uint32_t(at), 0, 0, 0, {d.body, body}});
  }
  d = {body, uint32_t(at), terminal, std::move(names)};
}

Rules LarkParser::parse(const std::string& start) {
  for (skip(true); !source_.end(); skip(true)) statement();
  int32_t skipped = -1;
  if (!ignored_.empty()) {
    skipped = syntax_.join(Part::kEither, std::move(ignored_), 0);
    syntax_.definitions[size_t(syntax_.name("%ignore"))] = {skipped, 0, true, {}};
  }
  expand_templates(syntax_, source_);
  const std::string chosen = start.empty() ? "start" : start;
  const auto it = syntax_.index.find(chosen);
  if (it == syntax_.index.end() || syntax_.definitions[size_t(it->second)].body < 0 ||
      !syntax_.definitions[size_t(it->second)].parameters.empty()) {
    source_.fail(0, "start", "there is no rule " + chosen);
  }
  Rules rules = lower(langs_, syntax_, it->second, skipped, source_);
  rules.places.resize(rules.schemas.size());
  for (const Part& p : syntax_.parts)
    if (p.kind == Part::kSchema) rules.places[size_t(p.id)] = source_.where(p.at);
  rules.warnings = std::move(warnings_);
  return rules;
}

}  // namespace front

// There is no lexer: a terminal is a regular language, and a text belongs to the grammar if any way
// to cut it into terminals does, as with Lark's Earley parser and its lexer "dynamic_complete". So
// no terminal goes before another: a name may be spelled as a keyword unless the grammar takes the
// keywords out (NAME: /[a-z]+/ & ~/if|else/), and two names may stand side by side without a
// separator. What %ignore names may come before the first terminal and after each one, any number
// of times. Priorities, aliases and the marks ? ! _ change parse trees only. Of llguidance's
// extensions there are %json, & and ~, {m,n}, and the attributes lazy, suffix and capture.
Rules parse_lark(Langs& langs, std::string_view source, const std::string& start) {
  return front::LarkParser(langs, source).parse(start);
}

}  // namespace tokops::grammar
