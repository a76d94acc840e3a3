#include "syntax.h"

#include <algorithm>
#include <unordered_set>

namespace tokops::grammar::front {
namespace {

constexpr size_t kMostInstances = 10000;  // of templates
constexpr size_t kMostParts = size_t(1) << 22;

// Makes one definition of each template and list of arguments that is used.
class Templates {
 public:
  Templates(Syntax& syntax, const Source& source) : syntax_(syntax), source_(source) {}

  void run() {
    for (size_t i = 0; i < syntax_.definitions.size(); ++i) {
      const Definition& d = syntax_.definitions[i];
      if (d.body >= 0 && d.parameters.empty()) resolve(d.body);
    }
  }
  void resolve(int32_t index) {
    if (!seen_.insert(index).second) return;
    for (size_t i = 0; i < syntax_.parts[size_t(index)].parts.size(); ++i) {
      resolve(syntax_.parts[size_t(index)].parts[i]);
    }
    if (syntax_.parts[size_t(index)].kind == Part::kCall) instantiate(index);
  }

 private:
  [[noreturn]] void too_many(size_t at) const {
    throw BudgetError("templates", source_.where(at), "the templates expand to too much");
  }

  void instantiate(int32_t index) {
    const Part call = syntax_.parts[size_t(index)];
    const Definition made_from = syntax_.definitions[size_t(call.id)];
    const std::string& shown = syntax_.names[size_t(call.id)];
    if (made_from.body < 0) source_.fail(call.at, "template", shown + " is not defined");
    if (made_from.parameters.size() != call.parts.size()) {
      source_.fail(call.at, "template",
                   shown + " takes " + std::to_string(made_from.parameters.size()) +
                       " arguments, not " + std::to_string(call.parts.size()));
    }
    std::string key = shown + "{";
    for (const int32_t argument : call.parts) write(argument, key, call.at);
    auto [it, added] = instances_.try_emplace(std::move(key), int32_t(syntax_.names.size()));
    if (added) {
      if (instances_.size() > kMostInstances) too_many(call.at);
      syntax_.names.push_back(shown + "{" + std::to_string(instances_.size()) + "}");
      syntax_.definitions.emplace_back();
      const int32_t body = copy(made_from.body, made_from.parameters, call.parts);
      syntax_.definitions[size_t(it->second)] = {body, made_from.at, made_from.terminal, {}};
    }
    Part& part = syntax_.parts[size_t(index)];
    part.kind = Part::kName;
    part.id = it->second;
    part.parts.clear();
  }

  void write(int32_t index, std::string& key, size_t at) const {
    const Part& p = syntax_.parts[size_t(index)];
    key += "(" + std::to_string(p.kind) + "," + std::to_string(p.id) + "," +
           std::to_string(p.least) + "," + std::to_string(p.most);
    if (key.size() > (size_t(1) << 16)) too_many(at);
    for (const int32_t inner : p.parts) write(inner, key, at);
    key += ")";
  }

  int32_t copy(int32_t index, const std::vector<int32_t>& parameters,
               const std::vector<int32_t>& arguments) {
    Part p = syntax_.parts[size_t(index)];
    if (p.kind == Part::kName) {
      const auto found = std::find(parameters.begin(), parameters.end(), p.id);
      if (found != parameters.end()) return arguments[size_t(found - parameters.begin())];
    }
    for (int32_t& inner : p.parts) inner = copy(inner, parameters, arguments);
    if (syntax_.parts.size() > kMostParts) too_many(p.at);
    return syntax_.add(std::move(p));
  }

  Syntax& syntax_;
  const Source& source_;
  std::unordered_map<std::string, int32_t> instances_;
  std::unordered_set<int32_t> seen_;
};

}  // namespace

int32_t Syntax::name(std::string_view text) {
  const auto [it, added] = index.try_emplace(std::string(text), int32_t(names.size()));
  if (added) {
    names.emplace_back(text);
    definitions.emplace_back();
  }
  return it->second;
}

int32_t Syntax::word(std::string word, size_t at) {
  words.push_back(std::move(word));
  return add({Part::kWord, uint32_t(at), int32_t(words.size()) - 1, 0, 0, {}});
}

int32_t Syntax::join(Part::Kind kind, std::vector<int32_t> joined, size_t at) {
  if (joined.size() == 1) return joined[0];
  return add({kind, uint32_t(at), 0, 0, 0, std::move(joined)});
}

void expand_templates(Syntax& syntax, const Source& source) { Templates(syntax, source).run(); }

}  // namespace tokops::grammar::front
