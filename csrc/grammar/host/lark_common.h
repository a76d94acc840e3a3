#pragma once
#include <string_view>

namespace tokops::grammar::front {

// The pattern (ECMA-262) of a terminal of Lark's module "common", or nothing. C_COMMENT and
// ESCAPED_STRING end at the first place where they can.
std::string_view common_terminal(std::string_view name);

}  // namespace tokops::grammar::front
