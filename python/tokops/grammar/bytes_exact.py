"""What exact validity needs of a tokenizer."""

from .bytes_vocabulary import Spelling, parts_of


class NotExact(ValueError):
    """A tokenizer whose token sequences cannot be told exactly; the message says why."""


def without_idle_splits(spelling: Spelling) -> dict | None:
    """The pre-tokenizer without a split at a space that the normalizer has replaced."""
    spec = spelling.spec.get("pre_tokenizer")
    if spec is None or spec["type"] != "Split" or spec["pattern"].get("String") != " ":
        return spec
    return None if _replaces_spaces(spelling.spec) else spec


def _replaces_spaces(spec: dict) -> bool:
    parts = parts_of(spec.get("normalizer"), "normalizers")
    return any(p["type"] == "Replace" and p["pattern"].get("String") == " " for p in parts)


def check_exact(spelling: Spelling) -> None:
    model = spelling.spec["model"]
    if spelling.kind != "BPE":
        raise NotExact(f"the model is {spelling.kind}, not BPE")
    if model.get("dropout"):
        raise NotExact(f"the model has dropout={model['dropout']}: its encodings are random")
    if model.get("end_of_word_suffix"):
        raise NotExact(f"the model has end_of_word_suffix={model['end_of_word_suffix']!r}")
    for part in parts_of(spelling.spec.get("normalizer"), "normalizers"):
        spaces = part["type"] == "Replace" and part["pattern"].get("String") == " "
        if not spaces and not (part["type"] == "Prepend" and part["prepend"] in spelling.spaces):
            raise NotExact(f"the normalizer {part['type']} maps different texts to one")
    for token in spelling.spec.get("added_tokens", ()):
        text = token["content"]
        bracketed = len(text) > 2 and text[0] in "<[" and text[-1] in ">]"
        if not token["special"] and not bracketed:
            raise NotExact(f"the added token {text!r} is no special token: ordinary text is spelled with it")
