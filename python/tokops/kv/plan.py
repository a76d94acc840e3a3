"""How much `tokops kv` measures, and the rows that come out of it."""

from dataclasses import asdict, dataclass, replace

from tokops.hf.quality import Quality
from tokops.kvcache.scaling import PairedDifference

from .needles import Found, SizeError

#: Tokens before the first one that is scored: more than the residual windows of the stores' defaults and a page.
LEAST_PROMPT = 256


@dataclass(frozen=True)
class Plan:
    """Sizes of one run.

    Attributes:
        tokens: of the text, prompt and scored stretch together.
        stretch: tokens at its end that are decoded teacher-forced and scored.
        chunk: of them, tokens per forward.
        needles: facts that are planted into a second text, each asked for once; 0 leaves this out.
        needle_tokens: length of the second text.
        rounds: timed decode steps of every store, in turn.
    """

    tokens: int = 4096
    stretch: int = 1024
    chunk: int = 64
    needles: int = 16
    needle_tokens: int = 2048
    rounds: int = 8

    @property
    def prompt(self) -> int:
        """Tokens that are read at once."""
        return self.tokens - self.stretch

    @property
    def room(self) -> int:
        """Tokens that the model must have positions for."""
        return max(self.tokens + self.rounds + 2, self.needle_tokens + 64 if self.needles else 0)

    def resized(self, tokens: int) -> "Plan":
        """The same plan for texts of another length: at most a quarter is scored, and needles lie in as many tokens.

        Raises:
            SizeError: so short that residual windows are not full where scoring begins.
        """
        stretch = min(tokens // 4, self.stretch)
        plan = replace(self, tokens=tokens, stretch=stretch, needle_tokens=tokens)
        if plan.prompt < LEAST_PROMPT:
            least = (4 * LEAST_PROMPT - 1) // 3
            raise SizeError(
                f"at least {least} tokens are needed, so that residual windows are full; got {tokens}"
            )
        return plan


FULL = Plan()
QUICK = Plan(tokens=1280, stretch=256, needles=8, needle_tokens=1024, rounds=5)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: the store as it was asked for.
        methods: what was in force, with everything resolved.
        refused: why it could not run; all else is None then.
        tokens: length at which bytes and speed were measured.
        kv_bytes: bytes of the cache at that length with all metadata, scales, zeros and tables.
        kv_bytes_allocated: bytes of its pools.
        kv_bytes_full: bytes of the same tokens in the model's precision.
        kv_bytes_read: bytes of cache that one decode step reads.
        tokens_read: cached tokens that one decode step reads, summed over the layers.
        quality: agreement with Dense over the scored stretch.
        loss: cross-entropy minus Dense's, nats per token, with a bootstrap interval.
        needle: facts that were found.
        tokens_per_second: from the median decode step; None for a store that is simulated.
        ratio: of it to Dense.
        predicted_kl: KL that the scaling curve predicts, None where the curve does not speak of such a store.
    """

    label: str
    methods: tuple[str, ...] = ()
    refused: str | None = None
    tokens: int = 0
    kv_bytes: float | None = None
    kv_bytes_allocated: float | None = None
    kv_bytes_full: float | None = None
    kv_bytes_read: float | None = None
    tokens_read: float | None = None
    quality: Quality | None = None
    loss: PairedDifference | None = None
    needle: Found | None = None
    tokens_per_second: float | None = None
    ratio: float | None = None
    predicted_kl: float | None = None

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of the cache over its tokens."""
        return None if self.kv_bytes is None else self.kv_bytes / self.tokens

    def to_dict(self) -> dict:
        """The row as plain data."""
        return {**asdict(self), "bytes_per_token": self.bytes_per_token}
