"""What a patched model read and held."""

from dataclasses import asdict, dataclass, field

from torch import Tensor

from ..methods import Method, Step


@dataclass(frozen=True)
class Report:
    """What decoding read and what the last cache holds.

    Args:
        methods: the methods in force, with everything resolved.
        slots: slot -> name of the method that fills it; of several constraining ones, all names in order.
        layers: layers of the model.
        steps: forwards that decoded.
        tokens: tokens those forwards decoded, per sequence.
        tokens_read_per_step: cached tokens read per step and sequence, summed over the layers. Dense decoding of
            N layers at length L reads N * L; a token whose keys alone are read counts half. Lists per query head
            count as read one by one, at most the whole context per KV head.
        read_ratio: ``tokens_read_per_step`` over what dense decoding would have read.
        kv_bytes: bytes of the cached tokens with all that is needed to read them (scales, zeros, and tables of packed
            pages); shared pages count once.
        kv_bytes_allocated: bytes of the pools.
        kv_bytes_full: bytes of all sequences' tokens in the model's dtype, nothing shared and nothing dropped.
        kv_bytes_read_per_token: cached bytes read per decoded token and sequence; what layers share counts in each.
        tokens_per_call: under speculation, tokens that a sequence got per verifying forward; else 1.
        notes: what the store of the last cache has found out and decided, a line each.
    """

    methods: list[str]
    slots: dict[str, str]
    layers: int
    steps: int
    tokens: int
    tokens_read_per_step: float
    read_ratio: float
    kv_bytes: int
    kv_bytes_allocated: int
    kv_bytes_full: int
    kv_bytes_read_per_token: float
    tokens_per_call: float
    notes: list[str]

    def to_dict(self) -> dict:
        """The fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                "methods                " + "; ".join(self.methods),
                f"decoded                {self.tokens:,} tokens per sequence in {self.steps:,} steps",
                f"tokens read per step   {self.tokens_read_per_step:,.0f} over {self.layers} layers, "
                f"{self.read_ratio:.1%} of dense",
                f"bytes read per token   {self.kv_bytes_read_per_token:,.0f}",
                f"bytes held             {self.kv_bytes:,} ({self.kv_bytes_allocated:,} allocated, "
                f"{self.kv_bytes_full:,} if every sequence kept every token)",
                *(
                    [f"tokens per call        {self.tokens_per_call:.2f}"]
                    if self.tokens_per_call != 1
                    else []
                ),
                *self.notes,
            ]
        )


@dataclass
class Counters:
    """Running sums of a patched model. Everything is a host number: counting must not wait for a device."""

    windows: tuple[int | None, ...] = ()
    steps: int = 0
    tokens: int = 0
    dense: float = 0.0
    keys_saved: float = 0.0
    values_saved: float = 0.0
    books: list = field(default_factory=list)
    calls: int = 0
    given: int = 0

    def speculated(self, sequences: int, tokens: int) -> None:
        """Count a verifying forward of so many unfinished sequences, and the tokens they got from it."""
        self.calls += sequences
        self.given += tokens

    def begin(self, state) -> None:
        """Count one forward of a cache as if it were dense."""
        step: Step = state.step
        self.books = state.books
        if step.prompt_rows == step.rows:
            return
        length = state.mean_length
        rows = step.rows - step.prompt_rows
        self.steps += 1
        self.tokens += rows
        self.dense += sum(self._visible(window, length, rows, 0.0) for window in self.windows)

    @staticmethod
    def _visible(window, length, rows, padding):
        return length - padding if window is None else min(length - padding, window + rows - 1)

    def padding(self, state, starts: Tensor) -> None:
        """Take back what padding made :meth:`begin` count too much, once a forward."""
        step: Step = state.step
        if "padding" in step.memo or step.prompt_rows == step.rows:
            return
        step.memo["padding"] = mean = float(starts.float().mean())
        length, rows = state.mean_length, step.rows - step.prompt_rows
        for window in self.windows:
            self.dense -= self._visible(window, length, rows, 0.0) - self._visible(window, length, rows, mean)

    def decoded(self, state, reader, selection) -> None:
        """Count what one layer read beyond or below its dense share."""
        visible = state.mean_length - state.step.memo.get("padding", 0.0)
        self.keys_saved -= reader.keys_scanned * visible
        if selection is None:
            return
        _, lists, heads, k = selection.positions.shape
        group = heads // reader.kv_heads if heads > reader.kv_heads else 1
        saved = max(0.0, visible - k * lists * group) - (visible if reader.out is not None else 0.0)
        self.keys_saved += saved
        self.values_saved += saved

    def report(self, methods: tuple[Method, ...]) -> Report:
        """The sums so far, and what the last cache holds."""
        read = self.dense - (self.keys_saved + self.values_saved) / 2
        steps, tokens = max(self.steps, 1), max(self.tokens, 1)
        live = sum(book.live_bytes() for book in self.books)
        passed = live + sum(book.reread_bytes() for book in self.books)
        cells = sum(book.live_tokens() * book.layers for book in self.books)  # a token in a layer
        return Report(
            methods=[m.describe() for m in methods],
            slots={
                slot: ", ".join(type(m).__name__ for m in methods if slot in m.slots)
                for slot in dict.fromkeys(slot for m in methods for slot in m.slots)
            },
            layers=len(self.windows),
            steps=self.steps,
            tokens=self.tokens,
            tokens_read_per_step=read / steps,
            read_ratio=read / self.dense if self.dense else 1.0,
            kv_bytes=live,
            kv_bytes_allocated=sum(book.allocated_bytes() for book in self.books),
            kv_bytes_full=sum(book.full_bytes() for book in self.books),
            kv_bytes_read_per_token=read / tokens * passed / max(cells, 1),
            tokens_per_call=self.given / self.calls if self.calls else 1.0,
            notes=[note for book in self.books for note in book.notes()],
        )
