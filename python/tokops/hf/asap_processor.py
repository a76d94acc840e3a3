"""ASAp as a logits processor, for ``generate`` alone; and what its loop shares with it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from ..grammar import apply_bitmask_
from ..grammar._grammar import Grammar
from ..grammar.constraint import Constraint, constraint_of, mask_by_asking, mask_of
from ..methods.asap import Tries

__all__ = ["ASApProcessor"]

NAN = float("nan")


def visit(
    trie, parent: int, token: int, logit: float, row: Tensor, mask: Tensor | None, fresh_too: bool
) -> int:
    """:meth:`AsapTrie.visit` of a row ``[V]`` float32 on any device, changed in place."""
    host = row.detach().cpu().contiguous()
    bits = None if mask is None else mask.cpu().contiguous().numpy()
    node = trie.visit(parent, token, logit, host.numpy(), bits, fresh_too)
    if host.data_ptr() != row.data_ptr():
        row.copy_(host)
    return node


def forbid(row: Tensor, mask: Tensor) -> None:
    """Put -inf where a packed mask has no bit, in a row ``[V]``."""
    apply_bitmask_(row, mask.to(row.device))


class Same:
    """An object as part of a key: equal to itself alone, and alive as long as the key."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


class ASApProcessor(LogitsProcessor):
    """Adaptive sampling with approximate expected futures, as a logits processor for ``generate(do_sample=True)``.

    It comes behind a temperature, and without top-k or top-p behind it: bounds hold for the law that it is given.
    Every ``generate`` call is followed by ``end(sequences)``, which learns from what came out and begins anew.
    Batches, and calls with texts in any order (beams, trees of drafts), are fine.

    Args:
        constraint: what texts must be, a compiled grammar or a constraint with ``mask``, or every token is asked about.
        tries: what was learned, to share it; None starts with nothing. It must hold for one model and one setting of
            the law.

    Raises:
        TypeError: ``constraint`` is neither.

    Example::

        aligned = ASApProcessor(constraint)
        for _ in range(1000):
            aligned.end(model.generate(**prompt, do_sample=True, logits_processor=[aligned]))
    """

    def __init__(
        self, constraint: Constraint | Grammar, tries: Tries | None = None, max_bytes: int = 1 << 30
    ):
        inner: Any = constraint_of("ASApProcessor", constraint)
        self.constraint = inner
        self.tries = Tries() if tries is None else tries
        self._max_bytes = max_bytes
        self._memo = _Memo(inner)
        self._vocabulary = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next call sees prompts. What was learned stays."""
        self._prompt: int | None = None
        #: Logits of the last contexts as they came, by prompt and path.
        self._last: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def _key(self, prompt: tuple[int, ...]):
        return ("processor", Same(self.constraint), prompt)

    def trie(self, prompt: Sequence[int]) -> Any:
        """What was learned behind a prompt, an ``AsapTrie``; prompts are told apart by their ids, padding included."""
        return self.tries.of(self._key(tuple(prompt)), self._vocabulary, self._max_bytes)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        self._vocabulary = scores.shape[1]
        scores = scores.float().clone()
        for i, ids in enumerate(input_ids.tolist()):
            prompt, path = tuple(ids[: self._prompt]), tuple(ids[self._prompt :])
            state = self._memo.state(path)
            if state is None:  # ended, or never legal: nothing to say
                continue
            mask = self._memo.mask(path, state, scores.shape[1])
            trie = self.trie(prompt)
            self._seen((*prompt, -1, *path), scores[i].clone(), 2 * len(scores))
            parent, token, logit = -1, -1, NAN
            if path:
                parent, token = trie.find(list(path[:-1])), path[-1]
                before = self._last.get((*prompt, -1, *path[:-1]))
                logit = NAN if before is None else float(before[token])
            if path and parent < 0:
                forbid(scores[i], mask)
            else:
                visit(trie, parent, token, logit, scores[i], mask, True)
        return scores

    def _seen(self, key: tuple[int, ...], raw: Tensor, least: int) -> None:
        """Keep a row as it came for the tokens behind it, whose probabilities it knows."""
        self._last[key] = raw
        self._last.move_to_end(key)
        if len(self._last) > max(least, 64):
            self._last.popitem(last=False)

    def end(self, sequences: Tensor) -> None:
        """Learn from texts that ``generate`` gave, ``[B, L]`` or ``[L]`` with their prompts, and begin anew."""
        if self._prompt is None:
            return
        tries = {}
        for ids in sequences.view(-1, sequences.shape[-1]).tolist():
            trie = self.trie(ids[: self._prompt])
            tries[id(trie)] = trie
            if not trie.frozen:
                trie.freeze()
            node = 0 if len(trie) else -1
            deepest = node
            for token in ids[self._prompt :]:
                node = trie.child(node, token) if node >= 0 else -1
                deepest = node if node >= 0 else deepest
            if deepest >= 0:
                trie.end(deepest)
        for trie in tries.values():
            trie.merge()
        self.reset()


class _Memo:
    """States and masks of a constraint by path, the ones used last."""

    def __init__(self, constraint: Constraint, limit: int = 4096):
        self._constraint, self._limit = constraint, limit
        self._ends = frozenset(getattr(constraint, "eos_ids", ()))
        self._states: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._masks: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def state(self, path: tuple[int, ...]) -> Any:
        """The state behind a path; None where the path has ended or is not legal."""
        known = len(path)
        while known and path[:known] not in self._states:
            known -= 1
        state = self._states.get(path[:known]) if known else self._constraint.start()
        for i in range(known, len(path)):
            token = path[i]
            if state is not None:
                legal = token not in self._ends and self._constraint.ok(state, token)
                state = self._constraint.advance(state, token) if legal else None
            self._keep(self._states, path[: i + 1], state)
        return state

    def mask(self, path: tuple[int, ...], state: Any, size: int) -> Tensor:
        """The packed mask of a state; by asking about every token where the constraint has none."""
        if path not in self._masks:
            mask = mask_of(self._constraint, state)
            self._keep(
                self._masks, path, mask_by_asking(self._constraint, state, size) if mask is None else mask
            )
        return self._masks[path]

    def _keep(self, held: OrderedDict, key, value) -> None:
        held[key] = value
        if len(held) > self._limit:
            held.popitem(last=False)
