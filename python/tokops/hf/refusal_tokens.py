"""Refusal tokens as a logits processor that acts once, at the first position of every answer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..methods.refusal_tokens import RefusalTokens, decide_rows
from .constrain import Hooks, Setting, TextStates, Watch, watch_logits
from .processing import RowProcessor


def token_id(tokenizer, token: int | str) -> int:
    """The id of a control token.

    Raises:
        ValueError: a string without a tokenizer, or one that is several tokens.
    """
    if isinstance(token, int):
        return token
    if tokenizer is None:
        raise ValueError(
            f"RefusalTokens: {token!r} needs a tokenizer: pass tokenizer= to generate, or give its id"
        )
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) > 1 and len(tokenizer.encode(token.strip(), add_special_tokens=False)) != 1:
        raise ValueError(
            f"RefusalTokens: {token!r} must be one token of the tokenizer, it is {len(ids)}: {ids}"
        )
    if not ids:
        raise ValueError(f"RefusalTokens: {token!r} is no token of the tokenizer")
    return ids[-1]


class RefusalProcessor(RowProcessor):
    """Decides the control token of every answer; see :class:`tokops.methods.RefusalTokens`.

    Args:
        policies: one, or one per request of the batch.
        tokens: ids of the refusals and then respond's, per policy.
        watch: the model's own logits; None: decide on the scores as they come.

    Attributes:
        scores: per prompt that was decided, in order, the probabilities of the refusals.
    """

    def __init__(
        self, policies: Sequence[RefusalTokens], tokens: Sequence[Sequence[int]], watch: Watch | None
    ):
        self._policies, self._tokens, self.watch = policies, tokens, watch
        self._states = TextStates(lambda ids, extra: True, lambda state, token, extra: False)
        self.scores: list[list[float]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first = [i for i, begins in enumerate(self._states.of(input_ids)) if begins]
        if not first:
            return scores
        count = len(input_ids)
        raw = scores if self.watch is None else self.watch.at(self.places, count).to(scores.device)
        own = [self.row(i, count, len(self._policies)) if len(self._policies) > 1 else 0 for i in first]
        policies, tokens = [self._policies[x] for x in own], [self._tokens[x] for x in own]
        decided, pi = decide_rows(policies, tokens, raw if len(first) == count else raw[first])
        self.scores += [row[: len(p.refuse)] for row, p in zip(pi.tolist(), policies, strict=True)]
        out = scores.clone()
        for i, policy, ids, token in zip(first, policies, tokens, decided.tolist(), strict=True):
            if policy.mode == "bias":
                _move(policy, list(ids), raw[i], out[i])
            elif token >= 0:
                out[i] = float("-inf")
                out[i, token] = 0.0
        return out


def _move(policy: RefusalTokens, tokens: list[int], raw: Tensor, out: Tensor) -> None:
    """The law of the biased control tokens alone, into a row ``[V]``."""
    biases = torch.tensor([*policy.biases, policy.respond_bias], device=out.device)
    moved = (raw[tokens].to(out) + biases).log_softmax(-1)
    forced = biases.isposinf()
    if bool(forced.any()):
        moved = torch.where(forced, 0.0, float("-inf"))
    out.fill_(float("-inf"))
    out[tokens] = moved


def make_processor(method, tokenizer=None, *, model=None, requests=None) -> RefusalProcessor:
    """The processor of a method.

    Args:
        method: a :class:`tokops.methods.RefusalTokens`.
        tokenizer: for tokens given as strings.
        model: decide on this model's own logits; None: on the scores as they come.
        requests: one policy per request of the batch, instead of ``method`` for all.
    """
    policies = [method] if requests is None else list(requests)
    tokens = [[token_id(tokenizer, x) for x in (*p.refuse, p.respond)] for p in policies]
    for policy, ids in zip(policies, tokens, strict=True):
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"RefusalTokens: tokens must differ, got {ids} for {(*policy.refuse, policy.respond)}"
            )
    return RefusalProcessor(policies, tokens, None if model is None else watch_logits(model, "RefusalTokens"))


def hooks(method, setting: Setting) -> Hooks:
    """What the method adds to one generation.

    Raises:
        NotImplementedError: assisted decoding, whose first forward has several positions.
    """
    if setting.assisted:
        raise NotImplementedError("RefusalTokens does not support assisted decoding of transformers")
    processor = make_processor(method, setting.tokenizer, model=setting.model)
    return Hooks([processor], held=[] if processor.watch is None else [processor.watch])
