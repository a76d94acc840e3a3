"""EBNF, GBNF, Lark and tags: the language of what is read, against recognisers that know nothing of it."""

import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.grammar.recogniser import Expressions, recognises

front = pytest.importorskip("tokops.lib._grammar", reason="the grammar module is not built")


def refusal(action):
    """What the action raises where it refuses, or None."""
    try:
        action()
    except ValueError as error:
        return error
    return None


def error_of(parse, *arguments, **options):
    """The error that parsing, or simplifying what was parsed, raises."""
    error = refusal(lambda: parse(*arguments, **options).simplify())
    assert type(error).__name__ in ("GrammarError", "BudgetError"), error
    return error


def check(grammar, good, bad):
    """That the texts are in the language or not, before and after it is made simpler."""
    for _ in range(2):
        for text in good:
            assert recognises(grammar, text.encode()), (text, grammar.rules)
        for text in bad:
            assert not recognises(grammar, text.encode()), (text, grammar.rules)
        grammar.simplify()
    return grammar


# --- EBNF and its dialects

JSON_GBNF = r"""
root   ::= object   # comment
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
             string ":" ws value ("," ws string ":" ws value)*
           )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""

DIALECTS = {
    "classes": (
        r'root ::= [a-c\n-]+ [^a-z"\]]? "\x41\u00e9\U0001F600"',
        ["a\n-A\u00e9\U0001f600", "ab\U0001f601A\u00e9\U0001f600"],
        ["A\u00e9\U0001f600", 'a"A\u00e9\U0001f600', "a]A\u00e9\U0001f600", "azA\u00e9\U0001f600"],
    ),
    "negated": ("root ::= [^a-zc-d0]", ["{", "\u20ac"], ["e", "z", "0"]),
    "any": ('root ::= . "x"', ["ax", "\nx", "\u20acx"], ["x", "aax"]),
    "counts": (
        'root ::= "a"{2} "b"{1,} "c"{,2} "d"{1,3}',
        ["aabd", "aabbbccddd"],
        ["abd", "aad", "aabcccd", "aabdddd"],
    ),
    "colon": ("a := 'x' | b\nb := 'y' b | ''", ["x", "y", "yy", ""], ["xy"]),
    "W3C": ('S ::= #x41 Name /* c */\nName ::= [a-z]+ - "if"', ["Ax", "Aiff"], ["Aif", "A"]),
    "BNF": ('<s> ::= "a" <t b> | <t b>\n<t b> ::= "b"', ["ab", "b"], ["a"]),
    "braces": ('list ::= item { "," item }\nitem ::= "x"', ["x", "x,x,x"], ["", "x,"]),
    "ISO": (
        '(* (* nested *) *) s = "a", [ "b" ], { "c" | "d" }, 2 * "e" ; t = "x" ;',
        ["aee", "abee", "acdcee"],
        ["ae", "abbee", "eee"],
    ),
    "ISO names": ("digit = '0' | '1' . number = digit { digit } .", ["0", "1"], ["", "00"]),
    "ISO quotes": ('s = "\\" , "a" | "\\"" , "b" | "\\n";', ["\\a", '"b', "\n"], ["\\n", "a"]),
    "ISO exception": ("s = letter - 'b' ; letter = 'a' | 'b' | 'c' ;", ["a", "c"], ["b"]),
    "regex": ("root ::= /a[0-9]{2}/ | /hello/i", ["a12", "HeLLo"], ["a1", "xhello", "helloo"]),
    "comments": ("// one\nroot ::= # two\n 'a' (* three *) 'b' /* four */", ["ab"], ["a"]),
    "lines": ('root ::= "a"\n  | "b"\n  "c"\n\nx ::= "d"', ["a", "bc"], ["b", "d"]),
    "empty": ('root ::= "a" empty "b"\nempty ::=\n', ["ab"], ["a"]),
    "left": ('root ::= root "+" root | root "!" | "n"', ["n", "n+n!+n", "n!!"], ["+n", "n+", ""]),
    "hidden left": ('root ::= e root "x" | "y"\ne ::= "z" | ""', ["y", "yx", "zyx", "zyxx"], ["zy", "x"]),
    "cycle": ('root ::= root | a\na ::= root | "x"', ["x"], ["", "xx"]),
    "middle": ('root ::= "(" root ")" root | ""', ["", "()", "(())()"], [")(", "(("]),
    "nested counts": ('root ::= p{2,3}\np ::= "(" p? ")"', ["()()", "(())()()"], ["()", "()()()()"]),
    "odd counts": ('root ::= p{3,7}\np ::= "(" p? ")"', ["()" * n for n in range(3, 8)], ["()()", "()" * 8]),
    "big count": ('root ::= p{0,100000}\np ::= "<" p? ">"', ["", "<<>><>"], ["<"]),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_ebnf_dialect(name):
    source, good, bad = DIALECTS[name]
    start = {"ISO names": "digit"}.get(name, "")
    check(front.parse_ebnf(source, start), good, bad)


def test_gbnf_json():
    good = ["{}", '{"a":1}', '{ "a":[1,-2.5e+3, "x\\u00e9\\n"],"b":{"c":null }}', "{}\n\t"]
    bad = ["", "[]", "{", '{"a"}', '{"a":01}', '{"a":"\n"}', '{"a":1,}', "{}x"]
    grammar = check(front.parse_ebnf(JSON_GBNF, "root"), good, bad)
    assert len(grammar.rules) <= 6  # strings, numbers and blanks are languages


ERRORS = [
    ("root ::= (", "syntax", "1:10"),
    ("root ::= 'a", "syntax", "1:10"),
    ("root ::= a", "name", "1:10"),
    ("root ::= 'a'\nroot ::= 'b'", "name", "2:1"),
    ("root ::= [z-a]", "character class", "1:11"),
    ("root ::= []", "character class", "1:10"),
    ("root ::= [#x41]", "character class", "1:11"),
    ('root ::= "\\q"', "escape", "1:11"),
    ('root ::= "\\ud800"', "escape", "1:11"),
    ('root ::= "a"{3,2}', "repetition", "1:13"),
    ('root ::= "a"{99999999999}', "repetition", "1:14"),
    ("root ::= <|eot|>", "special token", "1:10"),
    ("root ::= 'a' (= 'b')", "lookahead", "1:14"),
    ("root ::= TagDispatch(('a', b))", "TagDispatch", "1:10"),
    ("root ::= /a/x", "regex flags", "1:13"),
    ("root ::= /(/", "regex", "1:10"),
    ("x = [0-9] ;", "syntax", "1:6"),
    ("x = ? any ? ;", "special sequence", "1:5"),
    ("x = 'a' ; y ::= 'b'", "syntax", "1:13"),
    ("root", "syntax", "1:5"),
    ("", "syntax", "1:1"),
    ("root ::= 'a' )", "syntax", "1:14"),
    ("root ::= root 'a'", "start", None),
    ("root ::= a - 'x'\na ::= '(' a ')' | 'x'", "regular", "1:10"),
    ("(* root ::= 'a'", "syntax", "1:1"),
    (b"root ::= '\xff'", "encoding", "1:11"),
    ("root ::= 'a'\n\n  \u00e9 ::= 'b'", "syntax", "3:3"),
]


@pytest.mark.parametrize(("source", "keyword", "where"), ERRORS, ids=[repr(e[0])[:40] for e in ERRORS])
def test_ebnf_error_says_where_and_why(source, keyword, where):
    error = error_of(front.parse_ebnf, source)
    assert error.keyword == keyword, error
    assert where is None or error.pointer == where, error
    assert len(error.reason) > 10


def test_start_is_chosen():
    source = "a ::= 'a'\nstart ::= 'b'\nroot ::= 'c'"
    check(front.parse_ebnf(source, ""), ["c"], ["a", "b"])
    check(front.parse_ebnf(source, "a"), ["a"], ["b", "c"])
    assert error_of(front.parse_ebnf, source, "z").keyword == "start"


# --- Random grammars

LETTERS = "ab"
COUNTS = [(0, None), (1, None), (0, 1), (2, 3), (0, 5), (3, None)]
TEXTS = ["".join(t) for n in range(6) for t in itertools.product(LETTERS, repeat=n)]


def expressions(names):
    leaves = st.one_of(
        st.sampled_from([("text", ""), ("text", "a"), ("text", "b"), ("text", "ab"), ("class", "ab")]),
        st.sampled_from([("name", name) for name in names]),
    )
    return st.recursive(
        leaves,
        lambda x: st.one_of(
            st.lists(x, min_size=1, max_size=3).map(lambda p: ("seq", *p)),
            st.lists(x, min_size=1, max_size=3).map(lambda p: ("either", *p)),
            st.tuples(x, st.sampled_from(COUNTS)).map(lambda t: ("repeat", t[0], *t[1])),
        ),
        max_leaves=5,
    )


def grammars():
    names = ["s", "t", "u"]
    bodies = st.tuples(*(expressions(names) for _ in names))
    return bodies.map(lambda chosen: Expressions(dict(zip(names, chosen, strict=True))))


@settings(max_examples=150, deadline=None)
@given(grammars())
def test_random_grammar_keeps_its_language(grammar):
    want = {text for text in TEXTS if grammar.recognises(text)}
    for read in (
        front.parse_ebnf(grammar.written(), "s"),
        front.parse_ebnf(grammar.written("=", " ;\n"), "s"),
        front.parse_lark(grammar.written(":"), "s"),
    ):
        for text in TEXTS[:: 1 if len(want) < 40 else 2]:
            assert recognises(read, text.encode()) == (text in want), (text, grammar.written())
        if error := refusal(read.simplify):
            assert error.keyword == "start"
            assert not want
            continue
        for text in TEXTS:
            assert recognises(read, text.encode()) == (text in want), (text, grammar.written(), read.rules)


REGULAR = [
    ('root ::= "a" root | "b"', "a*b"),
    ('root ::= root "a" | "b"', "ba*"),
    ('root ::= "a" root | root "b" | "c"', "a*cb*"),
    ('root ::= root root | "a" | "bc"', "(a|bc)+"),
    ('root ::= root "+" root | "-" root | "n"', r"(-*n)(\+-*n)*"),
    ('root ::= "a" x\nx ::= "b" root | "c"', "(ab)*ac"),
    ('root ::= x "a" | "q"\nx ::= y "b" | "c"\ny ::= root "d"', "(q|ca)(dba)*"),
    ('root ::= ws "x" ws\nws ::= [ ] ws | ""', " *x *"),
]


@pytest.mark.parametrize(("source", "pattern"), REGULAR, ids=[r[0][:30] for r in REGULAR])
def test_regular_rules_become_languages(source, pattern):
    grammar = front.parse_ebnf(source)
    grammar.simplify()
    [(_, [[(kind, lang)]])] = grammar.rules
    assert kind == "lang"
    letters = sorted(
        set(re.findall(r"[a-z+\- ]", source.split("::=", 1)[1].replace("root", ""))) & set("abcdqnx+- ")
    )
    for n in range(6):
        for text in map("".join, itertools.product(letters, repeat=n)):
            assert (len(text) in grammar.ends(lang, text)) == bool(re.fullmatch(pattern, text)), text


def test_folding_stops_before_it_grows_out_of_hand():
    rules = ["root ::= '(' root ')' | r0"]
    rules += [f"r{i} ::= r{i + 1} r{i + 1} r{i + 1} r{i + 1}" for i in range(14)]
    grammar = front.parse_ebnf("\n".join([*rules, "r14 ::= 'a' | 'b'"]))
    grammar.simplify()
    assert 2 <= len(grammar.rules) <= 14
    rules = [f"r{i} ::= r{i} '+' r{i} | r{i + 1}" for i in range(24)]
    grammar = front.parse_ebnf("\n".join([*rules, "r24 ::= 'a' | 'b'"]), "r0")
    check(grammar, ["a", "a+b+a"], ["", "+a", "ab"])
    assert 2 <= len(grammar.rules) <= 24


def test_right_recursion_is_turned():
    grammar = front.parse_ebnf('root ::= item "," root | item\nitem ::= "(" root ")" | "x"')
    check(grammar, ["x", "x,x", "(x,(x)),x"], ["", "x,", ",x", "(x"])
    for index, (_, alternatives) in enumerate(grammar.rules):
        assert all(symbols[-1:] != [("rule", index)] for symbols in alternatives)


# --- Lark

ARITHMETIC = r"""
?start: sum
      | NAME "=" sum    -> assign_var
?sum: product
    | sum "+" product   -> add
    | sum "-" product   -> sub
?product: atom
    | product "*" atom  -> mul
    | product "/" atom  -> div
?atom: NUMBER           -> number
     | "-" atom         -> neg
     | NAME             -> var
     | "(" sum ")"
%import common.CNAME -> NAME
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""

JSON_LARK = r"""
?start: value
?value: object | array | string
      | SIGNED_NUMBER      -> number
      | "true"             -> true
      | "false"            -> false
      | "null"             -> null
array  : "[" [value ("," value)*] "]"
object : "{" [pair ("," pair)*] "}"
pair   : string ":" value
string : ESCAPED_STRING
%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""

SQL = r"""
start: select ";"?
select: "SELECT"i ("*" | _list{column, ","}) "FROM"i NAME [where] [limit]
column: NAME ("." NAME)? ["AS"i NAME]
where: "WHERE"i condition
?condition: condition "OR"i term | term
?term: term "AND"i test | test
test: column OP (NUMBER | STRING) | "NOT"i test | "(" condition ")"
limit: "LIMIT"i INT
OP: "=" | "<>" | "<" | ">" | "<="
_list{item, separator}: item (separator item)*
NAME: /[a-z_][a-z0-9_]*/i
STRING: /'[^']*'/
%import common (INT, NUMBER, WS, SQL_COMMENT)
%ignore WS
%ignore SQL_COMMENT
"""

MISCELLANY = r"""
start: (a | b | C ~ 2..3 | "x".."z" ~ 2)+
!a.2: "if" NAME?
_b_{x}: "<" x ">"
b: _b_{NAME} | _b_{"1"} | _b_{_b_{C}}
C: D+ "!"
D.3: /[0-9]/ | "\x41" | "\u00e9"
NAME: ("a".."c")+
%ignore /#[^#]*#/
"""

LARK = {
    "arithmetic": (ARITHMETIC, ["1 + 2*(3-x)", "a = -4 / b", "x", "((1))", " 1.5e3 "], "1+-*/()=ax. "),
    "json": (
        JSON_LARK,
        ['{"a": [1, true, null], "b": "x\\"y"}', " [ ] ", "-1.5", '{"a":{}}'],
        '{}[]",:1ae\\- ',
    ),
    "sql": (
        SQL,
        [
            "select * from t",
            "SELECT a.b AS c, d FROM t WHERE not (x = 1 OR y <> 'q') AND z > 2.5 LIMIT 10;",
            "selectafromt -- c",
            "select a from t where b=1 --",
        ],
        "abt1.,*<>=()'; -",
    ),
    "miscellany": (
        MISCELLANY,
        ["if", "ifab", "<abc>", "<1>", "<<1A!>>", "1!2!", "xyz", "x#c#y", "#a##b#if"],
        "ifab<>12!xyzA\u00e9#",
    ),
}


def mutated(texts, letters, count, rng):
    yield from texts
    for _ in range(count):
        text = list(rng.choice(texts))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(text) + 1)
            if rng.random() < 0.5:
                text.insert(at, rng.choice(letters))
            elif at < len(text):
                text[at : at + 1] = rng.choice(["", rng.choice(letters)])
        yield "".join(text)


@pytest.mark.parametrize("name", LARK)
def test_lark_package_agrees(name):
    lark = pytest.importorskip("lark")
    source, texts, letters = LARK[name]
    peer = lark.Lark(source, parser="earley", lexer="dynamic_complete", ambiguity="resolve")
    grammar = front.parse_lark(source)
    grammar.simplify()
    verdicts = set()
    for text in mutated(texts, letters, 150, random.Random(7)):
        try:
            peer.parse(text)
            want = True
        except lark.exceptions.LarkError:
            want = False
        verdicts.add(want)
        assert recognises(grammar, text.encode()) == want, text
    assert verdicts == {True, False}


COMMON = {
    "INT": (r"[0-9]+", "0-1."),
    "NUMBER": (r"[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+", "1.e+-"),
    "SIGNED_INT": (r"[+-]?[0-9]+", "1+-"),
    "ESCAPED_STRING": (r'"([^"\\\n]|\\[^\n])*"', '"a\\\n'),
    "WS": (r"[ \t\f\r\n]+", " \t\f\r\na"),
    "WS_INLINE": (r"[ \t]+", " \t\n"),
    "NEWLINE": (r"(\r?\n)+", "\r\n "),
    "CNAME": (r"[A-Za-z_][A-Za-z0-9_]*", "aZ_0"),
    "WORD": (r"[A-Za-z]+", "aZ0"),
    "LETTER": (r"[A-Za-z]", "aZ0"),
    "DIGIT": (r"[0-9]", "09a"),
    "HEXDIGIT": (r"[0-9a-fA-F]", "0aFg"),
    "LCASE_LETTER": (r"[a-z]", "aZ"),
    "UCASE_LETTER": (r"[A-Z]", "aZ"),
    "FLOAT": (r"([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+", "1.e+"),
    "SH_COMMENT": (r"#[^\n]*", "#a\n"),
    "CPP_COMMENT": (r"//[^\n]*", "/a\n"),
    "C_COMMENT": (r"/\*([^*]|\*(?!/))*\*/", "/*a"),
    "SQL_COMMENT": (r"--[^\n]*", "-a\n"),
}


@pytest.mark.parametrize("name", COMMON)
def test_common_terminal(name):
    pattern, letters = COMMON[name]
    grammar = front.parse_lark(f"start: {name}\n%import common.{name}")
    grammar.simplify()
    [(_, [[(_, lang)]])] = grammar.rules
    for n in range(7 if len(letters) < 4 else 6):
        for text in map("".join, itertools.product(letters, repeat=n)):
            assert (len(text) in grammar.ends(lang, text)) == bool(re.fullmatch(pattern, text)), text


EXTENSIONS = {
    "both": (r"start: NAME" "\n" r"NAME: /[a-z]+/ & ~/if|else/", ["i", "iff", "x"], ["if", "else", "", "If"]),
    "complement": ('start: T\nT: "<" ~/a*/ ">"', ["<ab>", "<\u00e9>", "<a>>"], ["<>", "<aa>"]),
    "arguments": (
        'start: w{"a" "b"} w{"b" "a"} w{("a" | "c")}\nw{x}: "<" x ">"',
        ["<ab><ba><c>"],
        ["<ab><ab><c>"],
    ),
    "counts": ('start: "a"{2} (b){1,2} C{,1}\nb: "b"\nC: "c"', ["aab", "aabbc"], ["aa", "aabbb", "aabcc"]),
    "lazy": (
        'start: hd "x" | t\nhd[lazy]: TEXT "<f"\nTEXT: /[^!]*/\nt[capture="t", suffix="!"]: TEXT',
        ["<fx", "a<<fx", "abc!"],
        ["<f<fx", "<f", "abc", "a!b!"],
    ),
    "name": ('start: a-b -> c-d\na-b: "x" # c\n // c\n', ["x"], [""]),
    "json": (
        'start: "f(" arguments ")"\narguments: %json {\n "type": "object", "a}": "{\\""\n}',
        ["f({})", 'f([1, "x"])'],
        ["f()", "f( {})"],
    ),
    "json ignored": ('start: "f" %json {} "g"\n%ignore " "', ["f 1 g", "f{}g"], ["f g"]),
    "extend": ('start: a\na: "x"\n%extend a: "y"\n%override start: a a\n', ["xy", "yy"], ["x"]),
    "empty first": ('start: "<" a ">"\na:\n | "x"\n', ["<>", "<x>"], ["<xx>"]),
    "options": ('%llguidance {}\nstart: "x"', ["x"], [""]),
    "flags": (r'start: /a.b/s /C/i "d"i', ["a\nbcD", "axbCd"], ["a\nbcE"]),
    "ignore": (
        'start: "a" B\nB: "b" "c"\n%ignore " "\n%ignore /#./',
        [" a #xbc ", "abc"],
        ["ab c", "#", "a#bc"],
    ),
    "terminal start": ('START: "x"+', ["x", "xx"], [""]),
    "long lines": ('start: ("a"\n  | "b"\n)+ \\\n "c"\n', ["abc"], ["ab"]),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_lark_extension(name):
    source, good, bad = EXTENSIONS[name]
    check(front.parse_lark(source, "START" if name == "terminal start" else "start"), good, bad)


def test_schemas_are_kept_as_they_are_written():
    grammar = front.parse_lark('start: %json {"type": "string"} | %json { "a": [1] }\nunused: %json {"b": 1}')
    grammar.simplify()
    assert grammar.schemas == ['{"type": "string"}', '{ "a": [1] }']


def test_priorities_warn():
    grammar = front.parse_lark('start.2: A\nA.3: "a"')
    assert len(grammar.warnings) == 1
    assert "priorities" in grammar.warnings[0]


LARK_ERRORS = [
    ("start: a", "name", "1:8"),
    ("start: (", "syntax", "1:8"),
    ('start: "a', "syntax", "1:8"),
    ('start: "a"\n  "b"', "syntax", "2:3"),
    ('start: "a" )', "syntax", "1:12"),
    ('start: A\nA: b\nb: "x"', "terminal", "2:4"),
    ('start: A\nA: "x" A', "terminal", "2:1"),
    ("start: A\n%declare A", "%declare", "2:1"),
    ("%import common.NOPE\nstart: NOPE", "%import", "1:1"),
    ("%import python.NAME\nstart: NAME", "%import", "1:1"),
    ("%nonsense\nstart: ", "%nonsense", "1:1"),
    ("start: /a/x", "regex flags", "1:11"),
    ("start: /^a$/m", "regex flags", "1:13"),
    ("start: <|eot|>", "special token", "1:8"),
    ("start: @other", "subgrammar", "1:8"),
    ('start: %regex {"substring_chars": "a"}', "%regex", "1:8"),
    ("start[max_tokens=5]: /a/", "max_tokens", "1:7"),
    ('start: "ab".."c"', "range", "1:8"),
    ('start: "c".."a"', "range", "1:8"),
    ('start: "a" ~ 3..2', "repetition", "1:11"),
    ('start: _l{"a"}\n_l{x, y}: x y', "template", "1:8"),
    ("start: _l\n_l{x}: x", "template", "1:8"),
    ('start: "a"\nstart: "b"', "name", "2:1"),
    ('a: "a"', "start", "1:1"),
    ('start: ~a\na: "(" a ")" | "x"', "regular", "1:9"),
    ("start: A & %json {}\nA: /x/", "regular", "1:12"),
    ('start: %json {"a": "', "syntax", None),
    ('%llguidance {"x": 1}\nstart: "a"', "%llguidance", "1:1"),
]


@pytest.mark.parametrize(
    ("source", "keyword", "where"), LARK_ERRORS, ids=[repr(e[0])[:40] for e in LARK_ERRORS]
)
def test_lark_error_says_where_and_why(source, keyword, where):
    error = error_of(front.parse_lark, source)
    assert error.keyword == keyword, error
    assert where is None or error.pointer == where, error
    assert len(error.reason) > 10


# --- Bounds

HUGE = {
    "brackets": (front.parse_ebnf, "root ::= " + "(" * 100000, "nesting"),
    "lark brackets": (front.parse_lark, "start: " + "(" * 100000, "nesting"),
    "arguments": (front.parse_lark, "start: " + "a{" * 100000, "nesting"),
    "complements": (front.parse_lark, "start: " + "~" * 100000 + '"a"', "nesting"),
    "marks": (front.parse_ebnf, "root ::= 'a'" + "*" * 100000, "nesting"),
    "exceptions": (front.parse_ebnf, "root ::= 'a'" + "- 'b'" * 100000, "nesting"),
    "factors": (front.parse_ebnf, "root ::= " + "2 * " * 100000 + "'a'", "nesting"),
    "templates": (front.parse_lark, "start: a{B}\na{x}: a{_b{x}} | x\n_b{x}: x\nB: /b/", "templates"),
    "terminals": (
        front.parse_lark,
        "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(60)) + "A60: /[ab]/",
        "size",
    ),
    "counts": (front.parse_ebnf, "root ::= " + "(" * 50 + "'a'" + "){16777216}" * 50, "repeat"),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_grammar_is_refused_in_time(name):
    parse, source, keyword = HUGE[name]
    error = error_of(parse, source)
    assert (type(error).__name__, error.keyword) == ("BudgetError", keyword)


def test_long_grammars_are_read():
    def chain(n):
        return "".join(f"r{i} ::= '(' r{i + 1} ')' | r{i + 1}\n" for i in range(n)) + f"r{n} ::= 'x'"

    check(front.parse_ebnf(chain(50), "r0"), ["x", "(((x)))"], ["", "(x"])
    front.parse_ebnf(chain(20000), "r0").simplify()
    words = [f"w{i}x" for i in range(20000)]
    grammar = front.parse_ebnf("root ::= '[' root ']' | " + " | ".join(map(json.dumps, words)))
    check(grammar, ["w7x", "[w19999x]"], ["w20000x", "w7"])
    assert len(grammar.rules) == 1


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='ab:=|()[]{}*+?~"/\\,;.#<>%&-123 \n', max_size=60).map(str.encode),
    )
)
def test_any_bytes_are_read_or_refused(source):
    for parse in (front.parse_ebnf, front.parse_lark, front.regex_rules):
        for prefix in (b"", b"start: ", b"root ::= "):
            error = refusal(lambda parse=parse, text=prefix + source: parse(text).simplify())
            if error:
                assert type(error).__name__ in ("GrammarError", "BudgetError"), error
                assert error.keyword
                assert error.reason


# --- Tags


def tagged(text, tags, triggers, least, first_only):
    """Whether a text is free text with tags, by the definition."""
    seen = set()
    open_ = [(0, 0)]
    while open_:
        at, count = open_.pop()
        if (at, count) in seen:
            continue
        seen.add((at, count))
        if first_only and count:
            if at == len(text):
                return True
            continue
        end = next(
            (e for e in range(at + 1, len(text) + 1) if any(text[at:e].endswith(t) for t in triggers)), None
        )
        if end is None:
            if count >= least:
                return True
            continue
        for trigger in triggers:
            if not text[at:end].endswith(trigger):
                continue
            for begin, pattern, close, _ in tags:
                if min((t for t in triggers if begin.startswith(t)), key=len, default=None) != trigger:
                    continue
                rest = begin[len(trigger) :]
                if not text.startswith(rest, end):
                    continue
                inner = end + len(rest)
                for stop in range(inner, len(text) + 1):
                    if re.fullmatch(pattern, text[inner:stop]) and text.startswith(close, stop):
                        open_.append((stop + len(close), min(count + 1, max(1, least))))
    return False


TAGS = {
    "one": ([("<a>", "[01]+", "</a>", True)], ["<a"], "<a>/01"),
    "two": ([("<a>", "0", ";", True), ("<b>", "1*", ";", True)], ["<"], "<ab>01;"),
    "own": ([("<a>", "0", "", True), ("<b>", "1*", ";", True), ("<ab", "0?", ";", True)], [], "<ab>01;"),
    "overlap": ([("aba", "0", ";", True), ("baa", "1", ";", True)], [], "ab01;"),
    "self": ([("aab", "0", ";", True), ("aac", "1", "", True)], ["aa"], "abc01;"),
    "inside": ([("xaay", "0", ";", True), ("aa0", "1", ";", True)], ["xaay", "aa"], "xay01;"),
    "longer": ([("<a", "0", ";", True), ("<ab", "1", ";", True)], ["<", "<a"], "<ab01;"),
    "suffix": ([("ab", "0", ";", True), ("b", "1", ";", True)], [], "ab01;"),
}


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("first_only", [False, True])
def test_tags(name, least, first_only):
    tags, triggers, letters = TAGS[name]
    effective = triggers or [tag[0] for tag in tags]
    grammar = front.tag_rules(tags, triggers, bool(least), first_only)
    rng = random.Random(3)
    texts = [""] + ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(300)]
    calls = [tag[0] + re.sub(r"\W", "", tag[1])[:1] + tag[2] for tag in tags]
    parts = [x for tag in tags for x in (tag[0], tag[0][:-1], tag[2])] + list(letters) + 3 * calls
    texts += ["".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(500)]
    verdicts = []
    for _ in range(2):
        for text in texts:
            want = tagged(text, tags, effective, least, first_only)
            verdicts.append(want)
            assert recognises(grammar, text.encode()) == want, text
        grammar.simplify()
    assert 10 < sum(verdicts) < len(verdicts) - 10


def test_free_text_is_utf8():
    grammar = front.tag_rules([("\u00e9<", "x", "", True)])
    check(grammar, ["\u00e9", "\u00e8\U0001f600", "a\u00e9<x\u00e9"], ["\u00e9<"])
    for broken in (b"\xc3", b"\xed\xa0\x80", b"\xff", b"\xc3<", b"\xf4\x90\x80\x80"):
        assert not recognises(grammar, broken)


def test_tags_with_schemas():
    tags = [(f"<function=tool_{i}>", json.dumps({"const": i % 3}), "</function>", False) for i in range(128)]
    grammar = front.tag_rules(tags, ["<function="])
    grammar.simplify()
    assert len(grammar.schemas) == 3
    good = ["", "hello <function", "x<function=tool_12>{}</function> y <function=tool_127>1</function>"]
    bad = ["<function=", "<function=tool_128>{}</function>", "<function=tool_1>{}</functio>"]
    for text in good:
        assert recognises(grammar, text.encode()), text
    for text in bad:
        assert not recognises(grammar, text.encode()), text
    assert max(len(alternatives) for _, alternatives in grammar.rules) <= 12  # a tree, not 128 ways at once


@pytest.mark.parametrize(
    ("tags", "triggers", "keyword", "pointer"),
    [
        ([], [], "tags", ""),
        ([("", "{}", "", False)], [], "begin", "/0/begin"),
        ([("<a>", "{}", "", False)], [""], "triggers", "/triggers/0"),
        ([("<a>", "{}", "", False), ("b", "{}", "", False)], ["<"], "begin", "/1/begin"),
        ([("<a>", "{}", "", False)], ["<", "["], "triggers", ""),
        ([("<a>", "", "", False)], [], "schema", "/0/schema"),
        ([("<a>", "(", "", True)], [], "pattern", "/0/schema"),
    ],
)
def test_bad_tags(tags, triggers, keyword, pointer):
    error = error_of(front.tag_rules, tags, triggers)
    assert (error.keyword, error.pointer) == (keyword, pointer)


def test_regex_matches_the_whole_text():
    check(front.regex_rules("a+|b"), ["a", "aa", "b"], ["", "ab", "xa"])
