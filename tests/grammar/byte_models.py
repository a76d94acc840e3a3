"""Small tokenizers and models of tokens for tests of byte-level laws."""

import json
import math

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "the theatre of the thing is that they'll think it's theirs; we've 12 or 123 or 2024 ways, isn't it?\n\n"
    "  if (x == 10):\n\treturn  'a''s'  \n    else:   pass\r\n naïve café 日本語 日本 🙂🙃 don't   DON'T  \n"
) * 3


#: Without traps: what a text begins with is encoded alike alone and in it.
PLAIN = (
    "it is, if the theatre of the thing returns; they think there is a way to word this and that, the other "
    * 4
)


def byte_bpe(*pre, size=340, text=TEXT, ignore_merges=False, drop=()) -> Tokenizer:
    """A byte-level tokenizer; without pre-tokenizers texts are one piece, and some tokens reach across words.

    Args:
        text: what it is trained on.
        drop: tokens that stay in the vocabulary while the merges that make them are left out; a space is Ġ.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pre, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<end>"])
    tokenizer.train_from_iterator([text], trainer)
    if ignore_merges or drop:
        spec = json.loads(tokenizer.to_str())
        spec["model"]["ignore_merges"] = ignore_merges
        spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "".join(m) not in drop]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    return tokenizer


def gpt2(**options) -> Tokenizer:
    """Cut as GPT-2 cuts."""
    tokenizer = byte_bpe(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def digits(**options) -> Tokenizer:
    """Cut as SmolLM2 cuts."""
    tokenizer = byte_bpe(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def llama3(**options) -> Tokenizer:
    """Cut as Llama 3 cuts."""
    return byte_bpe(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), **options)


def deepseek(**options) -> Tokenizer:
    """Cut as DeepSeek V3 cuts: by three patterns in turn, the last of which leaves gaps."""
    patterns = (
        r"\p{N}{1,3}",
        r"[一-龥\u3040-ゟ\u30a0-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
    return byte_bpe(*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns), **options)


def sentencepiece(metaspace: bool) -> Tokenizer:
    """Characters with byte fallback and a space in front, as Llama 2 has it or with pieces cut at spaces."""
    chars = sorted({*TEXT.replace(" ", "▁"), "▁"} - {"日", "🙂"})
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    for char in chars:
        vocab[char] = len(vocab)
    merges = []
    for a, b in [("t", "h"), ("▁", "th"), ("th", "e"), ("▁th", "e"), ("▁", "t"), ("▁t", "h"), ("▁", "▁"), ("▁▁", "▁▁"),
                 ("i", "n"), ("in", "g"), ("e", "▁"), ("s", "e"), ("▁the", "y"), ("本", "語"), ("1", "2")]:  # fmt: skip
        vocab.setdefault(a + b, len(vocab))
        merges.append((a, b))
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
        )
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def letters(merges, extra=(), alphabet="abc") -> Tokenizer:
    """A tokenizer of letters without pre-tokenizer: id 0 ends texts, then the alphabet, then what is merged."""
    vocab = {"<end>": 0} | {char: i + 1 for i, char in enumerate(alphabet)}
    for token in (*(a + b for a, b in merges), *extra):
        vocab.setdefault(token, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def spec_of(tokenizer: Tokenizer) -> dict:
    """Its description."""
    return json.loads(tokenizer.to_str())


class Markov:
    """A model whose next token's law depends on the last two tokens, and on how many there are.

    Args:
        size: tokens; 0 ends texts.
        limit: tokens after which nothing but the end comes; None is none.
        seed: of the laws.
    """

    def __init__(self, size: int, limit: int | None = None, seed: int = 0, scale: float = 1.5):
        self.size = size
        self.limit = limit
        self.table = (
            np.random.default_rng(seed).normal(0, scale, (size + 1, size + 1, size)).astype(np.float32)
        )
        self.asked = 0

    def __call__(self, sequences) -> np.ndarray:
        self.asked += 1
        return np.stack([self.row(sequence) for sequence in sequences])

    def row(self, sequence) -> np.ndarray:
        if self.limit is not None and len(sequence) >= self.limit:
            row = np.full(self.size, -math.inf, np.float32)
            row[0] = 0
            return row
        last = (self.size, self.size, *sequence)[-2:]
        return self.table[last]

    def law(self, sequence) -> np.ndarray:
        """Probabilities in float64."""
        row = self.row(sequence).astype(np.float64)
        p = np.exp(row - row.max())
        return p / p.sum()
