"""Slow recognisers of context-free languages, as oracles for the front ends and the matcher."""

import json


def recognises(grammar, text: bytes) -> bool:
    """Whether a `RuleSet` derives the text: ends of every rule at every place, up to a fixed point."""
    rules = grammar.rules
    langs, table, asked = {}, {}, [(grammar.start, 0)]
    table[grammar.start, 0] = set()

    def ends(kind, index, at):
        if kind == "rule":
            if (index, at) not in table:
                table[index, at] = set()
                asked.append((index, at))
            return table[index, at]
        if (kind, index, at) not in langs:
            found = grammar.ends(index, text, at) if kind == "lang" else json_ends(text, at)
            langs[kind, index, at] = set(found)
        return langs[kind, index, at]

    changed = True
    while changed:
        changed = False
        count = len(asked)
        for rule, at in asked:
            found = set()
            for symbols in rules[rule][1]:
                places = {at}
                for kind, index in symbols:
                    places = set().union(*(ends(kind, index, place) for place in places))
                found |= places
            if found != table[rule, at]:
                table[rule, at] = found
                changed = True
        changed = changed or len(asked) > count
    return len(text) in table[grammar.start, 0]


def json_ends(text, at):
    """Where JSON values without blanks around them that start at `at` end."""
    for end in range(at + 1, len(text) + 1):
        part = text[at:end]
        if part.strip() == part:
            try:
                json.loads(part)
            except ValueError:
                continue
            yield end


class Expressions:
    """A grammar of plain tuples, written out as EBNF or Lark and recognised from the tuples themselves.

    ("text", word), ("class", characters), ("name", rule), ("seq", ..), ("either", ..), ("repeat", x, least, most)
    """

    def __init__(self, rules):
        self.rules = rules  # name -> expression; the first is the start

    def written(self, define="::=", end="\n", count="{{{},{}}}"):
        def write(x):
            kind = x[0]
            if kind == "text":
                return json.dumps(x[1])
            if kind == "class":
                if define == "::=":
                    return f"[{x[1]}]"
                return "(" + "|".join(json.dumps(c) for c in x[1]) + ")"
            if kind == "name":
                return x[1]
            if kind == "repeat":
                least, most = x[2], x[3]
                mark = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
                return f"({write(x[1])})" + (mark or count.format(least, "" if most is None else most))
            joined = (" " if kind == "seq" else " | ").join(write(y) for y in x[1:])
            return f"({joined})"

        return "".join(f"{name} {define} {write(x)}{end}" for name, x in self.rules.items())

    def recognises(self, text: str) -> bool:
        table = {}

        def ends(x, at):
            kind = x[0]
            if kind == "text":
                return {at + len(x[1])} if text.startswith(x[1], at) else set()
            if kind == "class":
                return {at + 1} if text[at : at + 1] and text[at] in x[1] else set()
            if kind == "name":
                return table.setdefault((x[1], at), set())
            if kind == "either":
                return set().union(*(ends(y, at) for y in x[1:]))
            if kind == "seq":
                places = {at}
                for y in x[1:]:
                    places = set().union(*(ends(y, place) for place in places))
                return places
            least, most = x[2], x[3]
            level, found = {at}, set()
            for times in range((least + len(text) + 2 if most is None else most) + 1):
                if times >= least:
                    found |= level
                level = set().union(*(ends(x[1], place) for place in level))
                if times >= least and level <= found:
                    break
            return found

        start = next(iter(self.rules))
        table[start, 0] = set()
        while True:
            before = {key: set(value) for key, value in table.items()}
            for name, at in list(table):
                table[name, at] = table[name, at] | ends(self.rules[name], at)
            if table == before:
                return len(text) in table[start, 0]
