"""Which tokens of a vocabulary end with given characters."""

import weakref

_FOUND: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def punctuation_ids(tokenizer, characters: str, punct: str = "suffix") -> frozenset[int]:
    """Tokens that end a phrase.

    Args:
        tokenizer: a transformers tokenizer.
        characters: what a phrase ends with.
        punct: ``suffix`` takes every token whose text ends with one of them, special tokens aside; ``first_id`` the
            first token that the tokenizer makes of each.

    Returns:
        Their ids. They are remembered as long as the tokenizer lives: decoding a vocabulary takes a moment.
    """
    known = _FOUND.setdefault(tokenizer, {})
    if (characters, punct) not in known:
        find = _by_suffix if punct == "suffix" else _by_first_id
        known[characters, punct] = frozenset(find(tokenizer, characters))
    return known[characters, punct]


def _by_suffix(tokenizer, characters):
    ids = range(len(tokenizer))
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return (
        i for i, text in zip(ids, texts, strict=True) if text.endswith(tuple(characters)) and i not in special
    )


def _by_first_id(tokenizer, characters):
    return (tokenizer(character, add_special_tokens=False).input_ids[0] for character in characters)
