"""A toy vocabulary of 97 tokens, for the tiny models: letters, pieces of words, words, marks, parts of characters."""

import string

SPECIAL = [b"", b"", b""]  # 0 padding, 1 begin, 2 end
LETTERS = [c.encode() for c in string.ascii_lowercase]
SPACED = [b" " + c.encode() for c in "abcdefghijklmnoprstuw"]
PIECES = [
    b"th", b"he", b"ing", b"at", b"og", b"E", b"Te", b"\xc3\xa9", b"e\xcc\x81", b"noon", b"mam",
    b" the", b" cat", b"cat", b" dog", b" sun", b"it's", b"'s", b"'", b"s dog", b"at, c", b"level",
]  # fmt: skip
MARKS = [b" ", b"  ", b".", b",", b"!", b" ,", b"\n", b"1", b"22", b"a1", b"\xe2\x80\x94"]
PARTS = [b"\xc3", b"\xa9", b"\xa8", b"a\xc3", b"\xe2\x80", b"\x94"]
TOKENS = [*SPECIAL, *LETTERS, *SPACED, *PIECES, *MARKS, *PARTS]
TOKENS += [b"q%d" % i for i in range(97 - len(TOKENS))]
END = 2


def text_of(ids) -> str:
    """The text of generated ids, up to the end token."""
    ids = [int(i) for i in ids]
    ids = ids[: ids.index(END)] if END in ids else ids
    return b"".join(TOKENS[i] for i in ids).decode(errors="replace")
