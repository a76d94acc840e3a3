"""Double metaphone (Philips, 2000): two codes of how an English word may sound. Codes are not cut to four letters."""

import unicodedata
from collections.abc import Callable

_VOWELS = "AEIOUY"


class _Word:
    """A word in capitals, and the questions that rules ask of it."""

    def __init__(self, text: str):
        plain = unicodedata.normalize("NFC", text.upper())
        self.text = "".join(c if c in "ÇÑ" else unicodedata.normalize("NFKD", c)[0] for c in plain)
        self.last = len(self.text) - 1
        self.slavic = any(x in self.text for x in ("W", "K", "CZ", "WITZ"))
        self.germanic = self.text.startswith(("VAN ", "VON ", "SCH"))

    def has(self, place: int, *strings: str) -> bool:
        """Whether one of the strings stands at a place; what is beyond the end is blank."""
        if place < 0:
            return False
        return any((self.text + "     ").startswith(x, place) for x in strings)

    def vowel(self, place: int) -> bool:
        return 0 <= place <= self.last and self.text[place] in _VOWELS


#: What a rule gives: what is added to the first code, to the second, and how far to go on.
_Step = tuple[str, str, int]


def _same(code: str, step: int) -> _Step:
    return code, code, step


def _doubled(letter: str, code: str) -> Callable[[_Word, int], _Step]:
    """A letter with one code, said once where it is doubled."""

    def rule(w: _Word, i: int) -> _Step:
        return _same(code, 2 if w.has(i + 1, letter) else 1)

    return rule


def _c(w: _Word, i: int) -> _Step:
    if (
        i > 1
        and not w.vowel(i - 2)
        and w.has(i - 1, "ACH")
        and not w.has(i + 2, "I")
        and (not w.has(i + 2, "E") or w.has(i - 2, "BACHER", "MACHER"))
    ):
        return _same("K", 2)
    if i == 0 and w.has(i, "CAESAR"):
        return _same("S", 2)
    if w.has(i, "CHIA"):
        return _same("K", 2)
    if w.has(i, "CH"):
        return _ch(w, i)
    if w.has(i, "CZ") and not w.has(i - 2, "WICZ"):
        return "S", "X", 2
    if w.has(i + 1, "CIA"):
        return _same("X", 3)
    if w.has(i, "CC") and not (i == 1 and w.has(0, "M")):
        if w.has(i + 2, "I", "E", "H") and not w.has(i + 2, "HU"):
            hard = (i == 1 and w.has(0, "A")) or w.has(i - 1, "UCCEE", "UCCES")
            return _same("KS" if hard else "X", 3)
        return _same("K", 2)
    if w.has(i, "CK", "CG", "CQ"):
        return _same("K", 2)
    if w.has(i, "CI", "CE", "CY"):
        return "S", "X" if w.has(i, "CIO", "CIE", "CIA") else "S", 2
    if w.has(i + 1, " C", " Q", " G"):
        return _same("K", 3)
    return _same("K", 2 if w.has(i + 1, "C", "K", "Q") and not w.has(i + 1, "CE", "CI") else 1)


def _ch(w: _Word, i: int) -> _Step:
    if i > 0 and w.has(i, "CHAE"):
        return "K", "X", 2
    if i == 0 and w.has(1, "HARAC", "HARIS", "HOR", "HYM", "HIA", "HEM") and not w.has(0, "CHORE"):
        return _same("K", 2)
    if (
        w.germanic
        or w.has(i - 2, "ORCHES", "ARCHIT", "ORCHID")
        or w.has(i + 2, "T", "S")
        # The end of the word is no blank here, or "each" would sound like "ache".
        or ((i == 0 or w.has(i - 1, *"AOUE")) and i + 2 <= w.last and w.has(i + 2, *"LRNMBHFVW "))
    ):
        return _same("K", 2)
    if i == 0:
        return _same("X", 2)
    return ("K", "K", 2) if w.has(0, "MC") else ("X", "K", 2)


def _d(w: _Word, i: int) -> _Step:
    if w.has(i, "DG"):
        return _same("J", 3) if w.has(i + 2, "I", "E", "Y") else _same("TK", 2)
    return _same("T", 2 if w.has(i, "DT", "DD") else 1)


def _g(w: _Word, i: int) -> _Step:
    if w.has(i + 1, "H"):
        return _gh(w, i)
    if w.has(i + 1, "N"):
        if i == 1 and w.vowel(0) and not w.slavic:
            return "KN", "N", 2
        plain = not w.has(i + 2, "EY") and not w.slavic
        return ("N", "KN", 2) if plain else _same("KN", 2)
    if w.has(i + 1, "LI") and not w.slavic:
        return "KL", "L", 2
    if i == 0 and w.has(1, "Y", "ES", "EP", "EB", "EL", "EY", "IB", "IL", "IN", "IE", "EI", "ER"):
        return "K", "J", 2
    if (
        w.has(i + 1, "ER", "Y")
        and not w.has(0, "DANGER", "RANGER", "MANGER")
        and not w.has(i - 1, "E", "I", "RGY", "OGY")
    ):
        return "K", "J", 2
    if w.has(i + 1, "E", "I", "Y") or w.has(i - 1, "AGGI", "OGGI"):
        if w.germanic or w.has(i + 1, "ET"):
            return _same("K", 2)
        return ("J", "J", 2) if w.has(i + 1, "IER ") else ("J", "K", 2)
    return _same("K", 2 if w.has(i + 1, "G") else 1)


def _gh(w: _Word, i: int) -> _Step:
    if i > 0 and not w.vowel(i - 1):
        return _same("K", 2)
    if i == 0:
        return _same("J" if w.has(2, "I") else "K", 2)
    if w.has(i - 2, "B", "H", "D") or w.has(i - 3, "B", "H", "D") or w.has(i - 4, "B", "H"):
        return _same("", 2)
    if i > 2 and w.has(i - 1, "U") and w.has(i - 3, "C", "G", "L", "R", "T"):
        return _same("F", 2)
    return _same("" if w.has(i - 1, "I") else "K", 2)


def _h(w: _Word, i: int) -> _Step:
    return _same("H", 2) if (i == 0 or w.vowel(i - 1)) and w.vowel(i + 1) else _same("", 1)


def _j(w: _Word, i: int) -> _Step:
    if w.has(i, "JOSE") or w.has(0, "SAN "):
        spanish = (i == 0 and w.has(4, " ")) or w.has(0, "SAN ")
        return "H" if spanish else "J", "H", 1
    step = 2 if w.has(i + 1, "J") else 1
    if i == 0:
        return "J", "A", step
    if w.vowel(i - 1) and not w.slavic and w.has(i + 1, "A", "O"):
        return "J", "H", step
    if i == w.last:
        return "J", "", step
    silent = w.has(i + 1, *"LTKSNMBZ") or w.has(i - 1, "S", "K", "L")
    return _same("" if silent else "J", step)


def _l(w: _Word, i: int) -> _Step:
    if not w.has(i + 1, "L"):
        return _same("L", 1)
    spanish = (i == w.last - 2 and w.has(i - 1, "ILLO", "ILLA", "ALLE")) or (
        (w.has(w.last - 1, "AS", "OS") or w.has(w.last, "A", "O")) and w.has(i - 1, "ALLE")
    )
    return "L", "" if spanish else "L", 2


def _m(w: _Word, i: int) -> _Step:
    silent_b = w.has(i - 1, "UMB") and (i + 1 == w.last or w.has(i + 2, "ER"))
    return _same("M", 2 if silent_b or w.has(i + 1, "M") else 1)


def _p(w: _Word, i: int) -> _Step:
    if w.has(i + 1, "H"):
        return _same("F", 2)
    return _same("P", 2 if w.has(i + 1, "P", "B") else 1)


def _r(w: _Word, i: int) -> _Step:
    french = i == w.last and not w.slavic and w.has(i - 2, "IE") and not w.has(i - 4, "ME", "MA")
    return "" if french else "R", "R", 2 if w.has(i + 1, "R") else 1


def _s(w: _Word, i: int) -> _Step:
    if w.has(i - 1, "ISL", "YSL"):
        return _same("", 1)
    if i == 0 and w.has(0, "SUGAR"):
        return "X", "S", 1
    if w.has(i, "SH"):
        return _same("S" if w.has(i + 1, "HEIM", "HOEK", "HOLM", "HOLZ") else "X", 2)
    if w.has(i, "SIO", "SIA"):
        return "S", "S" if w.slavic else "X", 3
    if (i == 0 and w.has(1, "M", "N", "L", "W")) or w.has(i + 1, "Z"):
        return "S", "X", 2 if w.has(i + 1, "Z") else 1
    if w.has(i, "SC"):
        return _sc(w, i)
    french = i == w.last and w.has(i - 2, "AI", "OI")
    return "" if french else "S", "S", 2 if w.has(i + 1, "S", "Z") else 1


def _sc(w: _Word, i: int) -> _Step:
    if w.has(i + 2, "H"):
        if w.has(i + 3, "OO", "ER", "EN", "UY", "ED", "EM"):
            return "X" if w.has(i + 3, "ER", "EN") else "SK", "SK", 3
        return "X", "S" if i == 0 and not w.vowel(3) and not w.has(3, "W") else "X", 3
    return _same("S" if w.has(i + 2, "I", "E", "Y") else "SK", 3)


def _t(w: _Word, i: int) -> _Step:
    if w.has(i, "TION", "TIA", "TCH"):
        return _same("X", 3)
    if w.has(i, "TH", "TTH"):
        return "T" if w.has(i + 2, "OM", "AM") or w.germanic else "0", "T", 2
    return _same("T", 2 if w.has(i + 1, "T", "D") else 1)


def _w(w: _Word, i: int) -> _Step:
    if w.has(i, "WR"):
        return _same("R", 2)
    if i == 0 and (w.vowel(1) or w.has(0, "WH")):
        return "A", "F" if w.vowel(1) else "A", 1
    if (
        (i == w.last and w.vowel(i - 1))
        or w.has(i - 1, "EWSKI", "EWSKY", "OWSKI", "OWSKY")
        or w.has(0, "SCH")
    ):
        return "", "F", 1
    return ("TS", "FX", 4) if w.has(i, "WICZ", "WITZ") else _same("", 1)


def _x(w: _Word, i: int) -> _Step:
    if i == 0:
        return _same("S", 1)
    french = i == w.last and (w.has(i - 3, "IAU", "EAU") or w.has(i - 2, "AU", "OU"))
    return _same("" if french else "KS", 2 if w.has(i + 1, "C", "X") else 1)


def _z(w: _Word, i: int) -> _Step:
    if w.has(i + 1, "H"):
        return _same("J", 2)
    other = w.has(i + 1, "ZO", "ZI", "ZA") or (w.slavic and i > 0 and not w.has(i - 1, "T"))
    return "S", "TS" if other else "S", 2 if w.has(i + 1, "Z") else 1


_RULES: dict[str, Callable[[_Word, int], _Step]] = {
    "B": _doubled("B", "P"), "C": _c, "Ç": lambda w, i: _same("S", 1), "D": _d, "F": _doubled("F", "F"), "G": _g,
    "H": _h, "J": _j, "K": _doubled("K", "K"), "L": _l, "M": _m, "N": _doubled("N", "N"), 
    "Ñ": lambda w, i: _same("N", 1), "P": _p, "Q": _doubled("Q", "K"), "R": _r, "S": _s, "T": _t, 
    "V": _doubled("V", "F"), "W": _w, "X": _x, "Z": _z,
}  # fmt: skip


def double_metaphone(text: str) -> tuple[str, str]:
    """The first and the second code of a word; equal where it sounds one way only. What is no letter has no code."""
    word = _Word(text)
    first = second = ""
    i = 1 if word.has(0, "GN", "KN", "PN", "WR", "PS") else 0
    while i <= word.last:
        letter = word.text[i]
        if letter in _VOWELS:
            a, b, step = ("A", "A", 1) if i == 0 else ("", "", 1)
        elif letter in _RULES:
            a, b, step = _RULES[letter](word, i)
        else:
            a, b, step = "", "", 1
        first, second, i = first + a, second + b, i + step
    return first, second
