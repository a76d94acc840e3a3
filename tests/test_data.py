"""The shipped texts: long enough for the demo, plain, and different."""

import pytest

from tokops.data import held_out_text, long_text


@pytest.mark.parametrize("read", [long_text, held_out_text])
def test_plain_and_long(read):
    text = read()
    assert len(text) > 60_000
    assert text.isascii()
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
    assert "\n\n\n" not in text
    assert "Gutenberg" not in text, "the words alone, without another's trademark"


def test_nothing_is_shared():
    first, second = (set(read().split("\n\n")) for read in (long_text, held_out_text))
    assert not {p for p in first & second if not p.lower().startswith("chapter") and len(p) > 40}
