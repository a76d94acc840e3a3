"""Two long public-domain texts, for demonstrations, calibration and quality measurements (see NOTICE.md)."""

from importlib.resources import files

__all__ = ["held_out_text", "long_text"]


def long_text() -> str:
    """The document that the demo reads: Northanger Abbey, chapters 1 to 9, about 102,000 characters of prose.

    Returns:
        The text, one paragraph a line, paragraphs apart by an empty line.
    """
    return _read("northanger_abbey.txt")


def held_out_text() -> str:
    """A second text by the same author, for what must not be seen before: Persuasion, chapters 1 to 7.

    Returns:
        The text, about 110,000 characters, in the same form as :func:`long_text`.
    """
    return _read("persuasion.txt")


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
