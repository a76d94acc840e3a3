// References between schemas: URIs, resolved as RFC 3986 has it, and JSON pointers.
#pragma once
#include <string>
#include <string_view>

namespace tokops::grammar {

struct UriParts {
  std::string scheme, authority, path, query;
  bool has_authority = false, has_query = false;
};

inline UriParts split_uri(std::string_view u) {
  UriParts p;
  if (const size_t colon = u.find(':');
      colon != u.npos && u.substr(0, colon).find_first_of("/?#") == u.npos) {
    p.scheme = u.substr(0, colon);
    u.remove_prefix(colon + 1);
  }
  if (u.substr(0, 2) == "//") {
    u.remove_prefix(2);
    const size_t end = std::min(u.find_first_of("/?"), u.size());
    p.authority = u.substr(0, end);
    p.has_authority = true;
    u.remove_prefix(end);
  }
  const size_t q = u.find('?');
  p.path = u.substr(0, q);
  if (q != u.npos) {
    p.query = u.substr(q + 1);
    p.has_query = true;
  }
  return p;
}

inline std::string without_dots(std::string_view path) {
  std::string out;
  while (!path.empty()) {
    if (path.substr(0, 3) == "../")
      path.remove_prefix(3);
    else if (path.substr(0, 2) == "./")
      path.remove_prefix(2);
    else if (path.substr(0, 3) == "/./")
      path.remove_prefix(2);
    else if (path == "/.")
      path = "/";
    else if (path.substr(0, 4) == "/../" || path == "/..") {
      path = path == "/.." ? "/" : path.substr(3);
      const size_t slash = out.rfind('/');
      out.resize(slash == out.npos ? 0 : slash);
    } else if (path == "." || path == "..")
      break;
    else {
      const size_t end = std::min(path.find('/', path[0] == '/' ? 1 : 0), path.size());
      out += path.substr(0, end);
      path.remove_prefix(end);
    }
  }
  return out;
}

// `reference` without its fragment, seen from `base` (which has none).
inline std::string resolve_uri(std::string_view base, std::string_view reference) {
  if (reference.empty()) return std::string(base);
  const UriParts r = split_uri(reference), b = split_uri(base);
  UriParts t;
  if (!r.scheme.empty()) {
    t = r;
    t.path = b.scheme.empty() && r.path.empty() ? r.path : without_dots(r.path);
    if (r.scheme == "urn" || r.scheme == "tag") t.path = r.path;
  } else {
    t = b;
    if (r.has_authority) {
      t.authority = r.authority;
      t.has_authority = true;
      t.path = without_dots(r.path);
      t.query = r.query;
      t.has_query = r.has_query;
    } else if (r.path.empty()) {
      if (r.has_query) {
        t.query = r.query;
        t.has_query = true;
      }
    } else {
      if (r.path[0] == '/') {
        t.path = without_dots(r.path);
      } else {
        const size_t slash = b.path.rfind('/');
        const std::string folder =
            slash == b.path.npos ? (b.has_authority ? "/" : "") : b.path.substr(0, slash + 1);
        t.path = without_dots(folder + r.path);
      }
      t.query = r.query;
      t.has_query = r.has_query;
    }
  }
  std::string out;
  if (!t.scheme.empty()) out += t.scheme + ":";
  if (t.has_authority) out += "//" + t.authority;
  out += t.path;
  if (t.has_query) out += "?" + t.query;
  return out;
}

inline std::string percent_decoded(std::string_view s) {
  std::string out;
  const auto hex = [](char c) {
    return c >= '0' && c <= '9'                 ? c - '0'
           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                : -1;
  };
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] == '%' && i + 2 < s.size() && hex(s[i + 1]) >= 0 && hex(s[i + 2]) >= 0) {
      out += char(hex(s[i + 1]) * 16 + hex(s[i + 2]));
      i += 2;
    } else {
      out += s[i];
    }
  }
  return out;
}

inline std::string pointer_escaped(std::string_view s) {
  std::string out;
  for (const char c : s) {
    if (c == '~')
      out += "~0";
    else if (c == '/')
      out += "~1";
    else
      out += c;
  }
  return out;
}

}  // namespace tokops::grammar
