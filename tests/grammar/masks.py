"""Whole masks by the oracle: every token of a vocabulary, or as many as a budget pays for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .oracle import Point


class Node:
    """A node of a tree of tokens: the tokens that end here, and the range of those below in sorted order."""

    __slots__ = ("below", "first", "ids", "last")

    def __init__(self, first: int):
        self.below: dict[int, Node] = {}
        self.ids: list[int] = []
        self.first = self.last = first


class TokenTree:
    """Tokens by their bytes; tokens without bytes are in no tree."""

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens = tokens
        self.order = sorted((i for i, token in enumerate(tokens) if token), key=lambda i: tokens[i])
        self.root = Node(0)
        for place, i in enumerate(self.order):
            node = self.root
            node.last = place + 1
            for b in tokens[i]:
                if b not in node.below:
                    node.below[b] = Node(place)
                node = node.below[b]
                node.last = place + 1
            node.ids.append(i)

    def decide(self, point: Point, budget: int, seed: int = 0) -> dict[int, bool]:
        """Which tokens may come at a point: all of them, or some where more than ``budget`` bytes must be stepped."""
        draw = random.Random(seed)
        found: dict[int, bool] = {}
        level = [(self.root, point)]
        while level and budget > 0:
            # All first bytes come first; after that, branches are taken in any order.
            node, at = level.pop(draw.randrange(len(level)))
            for b, child in node.below.items():
                budget -= 1
                after = at.step(b)
                if after is None or not after.viable:
                    found.update(dict.fromkeys(self.order[child.first : child.last], False))
                    continue
                found.update(dict.fromkeys(child.ids, True))
                level.append((child, after))
        return found


#: Where JSON's tokens meet; words; and odd ones: escapes, broken characters, pieces of formats. Split at bars.
JOINTS = """",|":|,|":|"}|"]|{"|[{|}}|},|]}|"},|{"|[]|{}|""|}]|:[|:{|":{"|":["|\\|": "|", "|": |, | {"| ["|  |    """
WORDS = """name|age|id|type|value|items|the|and|of|to|a|in|object|string|number|integer|true|false|null|kind|email|date
|tags|street|city|zip|code|user|admin|red|green|blue|north|south|yes|no|on|off|x|y|z|foo|bar|baz|length|count"""
ESCAPES = r"\u00|\ud83d\ude00|\uD8|de00| $\|ab\|1\|\n\n|\"\|\uDE|0061|\u0061\u0062|2024-01-|T00:00|:00Z|.com|http://|://|127.0.0"
BROKEN = (b"\xc3x", b"\xe6\x97", b"\x9f\x98\x80", b"\xc0\x80")
LINES = (",\n", "\n\t", "\n\n", "\r\n", " " * 8, " " * 40)


def small_vocabulary() -> tuple[list[bytes], int]:
    """Tokens as tokenizers have them, and the id of the end."""
    texts = [
        *JOINTS.split("|"),
        '""',
        *ESCAPES.split("|"),
        *LINES,
        "é",
        "日本",
        "😀",
        *map(str, range(10, 1000)),
    ]
    for word in WORDS.replace("\n", "").split("|"):
        texts += [word, word.capitalize(), f" {word}", f'{word}"', f'"{word}', f'"{word}"', f'"{word}":']
    texts += [f"{lead}{n}" for lead in ("-", ".", "0.", "1.", "e", "E-", "+", " ", "-0") for n in range(10)]
    texts += [f"\\{c}" for c in 'nrtbf"\\/u'] + [f"\\u{n:04x}" for n in (0, 0x22, 0x61, 0xE9, 0xD83D)]
    tokens = [*(bytes((b,)) for b in range(256)), *map(str.encode, texts), *BROKEN]
    tokens = [*dict.fromkeys(tokens), b"", b""]
    return tokens, len(tokens) - 1
