"""Writes csrc/grammar/host/unicode_tables.inc: what \\p{..} and the flag i of regular expressions need.

Categories and folds come from Python's unicodedata, scripts and other properties from the package
`regex`. Run it again when either knows a newer version of Unicode:

    python tools/unicode_tables.py
"""

import pathlib
import sys
import unicodedata

import regex

OUT = pathlib.Path(__file__).parent.parent / "csrc/grammar/host/unicode_tables.inc"
CATEGORIES = """Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So
Zs Zl Zp Cc Cf Cs Co Cn""".split()  # noqa: SIM905
SCRIPTS = """Common Inherited Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Nko Samaritan Mandaic Devanagari
Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul
Ethiopic Cherokee Canadian_Aboriginal Ogham Runic Tagalog Hanunoo Buhid Tagbanwa Khmer Mongolian Limbu Tai_Le
New_Tai_Lue Buginese Tai_Tham Balinese Sundanese Batak Lepcha Ol_Chiki Braille Glagolitic Coptic Tifinagh Han
Hiragana Katakana Bopomofo Yi Lisu Vai Bamum Syloti_Nagri Phags_Pa Saurashtra Kayah_Li Rejang Javanese Cham
Tai_Viet Meetei_Mayek Gothic Deseret Shavian Osmanya Linear_B Cypriot Phoenician Lydian Avestan Brahmi Kaithi
Cuneiform Egyptian_Hieroglyphs Adlam""".split()  # noqa: SIM905
PROPERTIES = {  # a set of categories that is close, and what the differences are taken from
    "Alphabetic": {"Lu", "Ll", "Lt", "Lm", "Lo", "Nl"},
    "Lowercase": {"Ll"},
    "Uppercase": {"Lu"},
    "White_Space": {"Zs", "Zl", "Zp"},
    "ID_Start": {"Lu", "Ll", "Lt", "Lm", "Lo", "Nl"},
    "ID_Continue": {"Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Mn", "Mc", "Nd", "Pc"},
}
ALL = range(0x110000)


def runs(values):
    """(first code point, value) wherever the value changes."""
    last = object()
    for point, value in enumerate(values):
        if value != last:
            yield point, value
            last = value


def matching(pattern):
    text = "".join(map(chr, ALL))
    member = bytearray(0x110000)
    for match in regex.finditer(pattern + "+", text):
        member[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return member


def fold(point):
    """Simple case folding: one code point to one."""
    char = chr(point)
    folded = char.casefold()
    if len(folded) != 1:
        folded = char.lower()
    return ord(folded) if len(folded) == 1 else point


def fold_runs():
    """[first, last, step, target of first] of code points that fold to others, alike apart."""
    pairs = [(p, fold(p)) for p in ALL if fold(p) != p]
    done = []
    for point, target in pairs:
        if done:
            first, last, step, start = done[-1]
            gap = point - last
            if target - start == point - first and gap <= 2 and step in (0, gap):
                done[-1] = [first, point, gap, start]
                continue
        done.append([point, point, 0, target])
    return [[first, last, step or 1, start] for first, last, step, start in done]


def array(name, kind, numbers):
    lines, line = [], " "
    for number in numbers:
        text = f" {number},"
        if len(line) + len(text) > 99:
            lines.append(line)
            line = " "
        line += text
    lines.append(line)
    return f"constexpr {kind} {name}[] = {{\n" + "\n".join(lines) + "\n};\n"


def names(name, values):
    return array(name, "const char*", [f'"{value}"' for value in values])


def main():
    categories = [unicodedata.category(chr(p)) for p in ALL]
    out = [
        f"// Written by tools/unicode_tables.py from Unicode {unicodedata.unidata_version} (categories) and regex "
        f"{regex.__version__} (scripts).\n",
        "// Sorted by code point; a value holds until the next entry.\n\n",
        names("kCategoryNames", CATEGORIES),
        "\n// code point << 5 | category\n",
        array("kCategoryRuns", "uint32_t", [p << 5 | CATEGORIES.index(c) for p, c in runs(categories)]),
    ]

    scripts = [0] * 0x110000
    for i, script in enumerate(SCRIPTS):
        for point, member in enumerate(matching(rf"\p{{Script={script}}}")):
            if member:
                scripts[point] = i + 1
    out += [
        "\n// From 1 on; 0 is any other script.\n",
        names("kScriptNames", SCRIPTS),
        "\n// code point << 8 | script\n",
        array("kScriptRuns", "uint32_t", [p << 8 | s for p, s in runs(scripts)]),
    ]

    out.append(
        "\n// Where a property differs from a set of categories: pairs of first and last code points.\n"
    )
    for name, near in PROPERTIES.items():
        member = matching(rf"\p{{{name}}}")
        differs = [bool(m) != (c in near) for m, c in zip(member, categories, strict=True)]
        bounds = [p for p, _ in runs([False, *differs, False])][1:]
        pairs = [b - 1 - (i % 2) for i, b in enumerate(bounds)]
        bits = sum(1 << CATEGORIES.index(c) for c in near)
        out.append(f"constexpr uint32_t k{name.replace('_', '')}Categories = {bits};\n")
        out.append(array(f"k{name.replace('_', '')}Differs", "uint32_t", pairs))

    out += [
        "\n// Simple case folding: first and last code point, step, and what the first one folds to.\n",
        array("kFolds", "uint32_t", [n for run in fold_runs() for n in run]),
    ]
    OUT.write_text("".join(out))
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
