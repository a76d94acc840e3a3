"""Stopping criteria of ``generate``, asked for one token of one sequence after the other."""

from collections.abc import Sequence

from torch import Tensor
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList


class StopRule:
    """Where a sequence ends.

    Maximum length and end tokens are known here, so that asking about them waits for no device. Every other criterion
    is called for every token, with the sequence up to that token, as ``[1, L]``.

    Args:
        criteria: what ``generate`` stops at.
    """

    def __init__(self, criteria: StoppingCriteriaList):
        self._most = float("inf")
        self._ends: set[int] = set()
        self._others = StoppingCriteriaList()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self._ends.update(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is MaxLengthCriteria and _never_warns(criterion):
                self._most = min(self._most, criterion.max_length)
            else:
                self._others.append(criterion)

    @property
    def needs_ids(self) -> bool:
        """Whether :meth:`cut` reads ``ids``."""
        return bool(self._others)

    def cut(self, tokens: Sequence[int], length: int, ids: Tensor | None) -> tuple[int, bool]:
        """How many of the next tokens belong to a sequence, and whether the last of them ends it.

        Args:
            tokens: the next tokens.
            length: of the sequence before them, as ``generate`` counts it.
            ids: ``[1, length + len(tokens)]``, the sequence with the tokens.
        """
        for count, token in enumerate(tokens, 1):
            ended = token in self._ends or length + count >= self._most
            if self._others:
                assert ids is not None, "needs_ids"
                ended = bool(self._others(ids[:, : length + count], None).all()) or ended
            if ended:
                return count, True
        return len(tokens), False


def _never_warns(criterion: MaxLengthCriteria) -> bool:
    """Whether it stops before it would remind of the model's own maximum length."""
    most = criterion.max_position_embeddings
    return most is None or criterion.max_length <= most + 1
