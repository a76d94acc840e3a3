"""What every constraining hook does to texts of a real model, measured beside plain decoding."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.hf.caad import build_grounding
from tokops.hf.patching import run_of
from tokops.methods import (
    CAAD,
    DeAL,
    Dense,
    Grounding,
    KeywordMonitor,
    LinearProbe,
    Method,
    RefusalTokens,
    StreamingMonitor,
    VocabularyFilters,
    keyword_coverage,
    refusal_curve,
)

from . import asked
from .speculate import Way
from .texts import CODE, PROSE, Sources

_LONGEST = 5  # letters of a word that the second filter lets through
_KEYWORDS = ("sea", "letter", "garden")
_FENCE = "```"
_MARKS = (_FENCE, "def ", "import ", "print(")
_FLAGS = 3
_PIECE, _PIECES = 128, 8  # of the probe's training texts
_TAUS = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Effect:
    """One measure.

    Attributes:
        measure: its name.
        plain: of plain decoding; None where plain decoding has none.
        given: of the method.
    """

    measure: str
    plain: float | None
    given: float


@dataclass(frozen=True)
class Case:
    """A method: its setting as timed, and what measures its effect."""

    name: str
    method: Method
    effects: Callable[[], list[Effect]]


class Effects:
    """Texts and measures of one model.

    Args:
        model: an unpatched model of a tested family.
        tokenizer: its tokenizer.
        texts: prompts of prose.
        prompt: tokens of each.
        new: tokens that are decoded after each.
        most: questions and requests of every kind.
        chat: tokens that are decoded of every answer to a request for code, or for something else.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: int,
        prompt: int,
        new: int,
        most: int,
        chat: int,
    ):
        self.model, self.tokenizer, self._new, self._most = model, tokenizer, new, most
        self._chat = chat
        self._answers: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sources = Sources(tokenizer)
        self.prompts = torch.stack([self._sources.cut(PROSE, prompt, i) for i in range(texts)])
        self.plain = self.way("plain", Dense())
        self._free = self.plain(self.prompts, new).tokens

    def way(self, name: str, method: Method) -> Way:
        """Greedy decoding under a method."""
        return Way(name, self.model, (method,), {"tokenizer": self.tokenizer})

    def cases(self) -> list[Case]:
        """All methods."""
        usual = CAAD(self._grounding(0.0))
        unsure = CAAD(self._grounding(10.0), adapt="entropy")
        probe, words, never = self._probe(), KeywordMonitor(_MARKS), float("inf")
        cover = keyword_coverage(_KEYWORDS)
        one, several = (DeAL(cover, lam=20.0, k=8, look_ahead=2, beams=n) for n in (1, 3))
        letter = VocabularyFilters(lipogram="e", fold=True)
        short = VocabularyFilters(by_word=True, shorter_than=_LONGEST + 1)
        pair = self._standing_in()
        return [
            Case('VocabularyFilters(lipogram="e")', letter, lambda: self._written(letter, "letters e", _count_e)),
            Case(
                f"VocabularyFilters(shorter_than={_LONGEST + 1})",
                short,
                lambda: self._written(short, f"words of more than {_LONGEST} letters", _count_long),
            ),
            Case("CAAD", usual, lambda: self._truths(usual)),
            Case('CAAD(adapt="entropy"), gold_bonus=10', unsure, lambda: self._truths(unsure)),
            Case("DeAL, 1 beam", one, lambda: self._covered(one, cover)),
            Case("DeAL, 3 beams", several, lambda: self._covered(several, cover)),
            Case("StreamingMonitor, probe", StreamingMonitor(probe, k=never), lambda: self._stops(probe, _FLAGS)),
            Case("StreamingMonitor, keywords", StreamingMonitor(words, k=never), lambda: self._stops(words, 1)),
            Case("RefusalTokens, stand-in", RefusalTokens(*pair, tau=_TAUS[0]), lambda: self._refusals(pair)),
        ]  # fmt: skip

    # ---- Prose that goes on.

    def _written(self, method: Method, measure: str, count: Callable[[str], int]) -> list[Effect]:
        tokens = self.way(measure, method)(self.prompts, self._new).tokens
        plain, given = (float(sum(map(count, self._texts(x)))) for x in (self._free, tokens))
        return [Effect(measure, plain, given), self._nats(tokens)]

    def _covered(self, method: DeAL, cover: Callable[[str], float]) -> list[Effect]:
        tokens = self.way("", method)(self.prompts, self._new).tokens
        plain, given = (sum(map(cover, self._texts(x))) / len(x) for x in (self._free, tokens))
        return [Effect("share of keywords", plain, given), self._nats(tokens)]

    def _texts(self, tokens: Tensor) -> list[str]:
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @torch.no_grad()
    def _nats(self, tokens: Tensor) -> Effect:
        """How unlikely the model itself finds what was written."""

        def mean(written: Tensor) -> float:
            ids = torch.cat([self.prompts, written], 1)
            laws = self.model(ids).logits[:, self.prompts.shape[1] - 1 : -1].float().log_softmax(-1)
            return -float(laws.gather(2, written[..., None]).mean())

        return Effect("nats per token", mean(self._free), mean(tokens))

    # ---- Questions with a true and a false answer.

    def _grounding(self, gold_bonus: float) -> Grounding:
        pairs = [(_question(question), " " + answer) for question, answer in asked.KNOWN]
        return build_grounding(self.model, self.tokenizer, pairs, top=256, gold_bonus=gold_bonus)

    def _truths(self, method: CAAD) -> list[Effect]:
        """Laws along answers that are not in the datastore, without the cut, which would make some impossible."""
        method, questions = replace(method, beta=0.0), asked.HELD_OUT[: self._most]
        prefers, nats, hits, tokens = [0, 0], [0.0, 0.0], [0, 0], 0
        for question, true, false in questions:
            right, wrong = (self._along(method, question, answer) for answer in (true, false))
            for i in range(2):
                prefers[i] += float(right[i][0].mean()) > float(wrong[i][0].mean())
                nats[i] -= float(right[i][0].sum())
                hits[i] += int(right[i][1].sum())
            tokens += len(right[0][0])
        count = len(questions)
        return [
            Effect("true answer preferred", prefers[0] / count, prefers[1] / count),
            Effect("nats per token, true answers", nats[0] / tokens, nats[1] / tokens),
            Effect("top-1 is the true token", hits[0] / tokens, hits[1] / tokens),
        ]

    @torch.no_grad()
    def _along(self, method: CAAD, question: str, answer: str) -> list[tuple[Tensor, Tensor]]:
        """Of an answer's tokens, without the method and with it: log-probabilities, and which are the likeliest."""
        before = self.tokenizer(_question(question), return_tensors="pt").input_ids
        after = self.tokenizer(" " + answer, return_tensors="pt", add_special_tokens=False).input_ids
        out = self.model.base_model(torch.cat([before, after], 1), use_cache=False)
        hidden = out.last_hidden_state[0, before.shape[1] - 1 : -1]
        logits = self.model.lm_head(hidden).float()
        found = []
        for law in (logits.log_softmax(-1), method.mix(logits, hidden).log_softmax(-1)):
            found.append((law.gather(1, after.T)[:, 0], law.argmax(-1) == after[0]))
        return found

    # ---- Requests for code and others: code stands in for harm.

    @torch.no_grad()
    def _probe(self) -> LinearProbe:
        """Linear discriminant of the hidden states of code and prose."""
        states = []
        for kind in (PROSE, CODE):
            ids = torch.stack([self._sources.cut(kind, _PIECE, -1 - i) for i in range(_PIECES)])
            states.append(self.model.base_model(ids, use_cache=False).last_hidden_state[:, 8:].flatten(0, 1))
        means = [x.double().mean(0) for x in states]
        centred = torch.cat([x.double() - mean for x, mean in zip(states, means, strict=True)])
        spread = centred.T @ centred / len(centred)
        spread += 1e-2 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
        weight = torch.linalg.solve(spread, means[1] - means[0])
        return LinearProbe(weight.float(), -float(weight @ (means[0] + means[1])) / 2)

    def _stops(self, scorer: LinearProbe | KeywordMonitor, k: int) -> list[Effect]:
        way = self.way("", StreamingMonitor(scorer, k=k))
        begins: list[int | None] = []
        ends: list[int | None] = []
        changed = 0
        for ids, mask, free in self._answered():
            tokens = way(ids, self._chat, mask=mask).tokens
            run = run_of(way.model)
            assert run is not None, "it is patched"
            criterion = run.hooks[0].criteria[0]
            reports = [criterion.report(row) for row in torch.cat([ids, tokens], 1)]
            begins += map(self._code, free)
            ends += [None if report.first is None else report.first + 1 for report in reports]
            read = [len(report.scores) for report in reports]
            changed += sum(not torch.equal(a[:n], b[:n]) for a, b, n in zip(free, tokens, read, strict=True))
        coded = [(a, b) for a, b in zip(begins, ends, strict=True) if a is not None]
        caught = [(a, b) for a, b in coded if b is not None]
        others = [b for a, b in zip(begins, ends, strict=True) if a is None]
        return [
            Effect("texts with code, and those ended", float(len(coded)), float(len(caught))),
            Effect("their tokens until code, and until the end", *(_mean([x[i] for x in caught]) for i in (0, 1))),
            Effect("other texts, and those ended", float(len(others)), float(sum(b is not None for b in others))),
            Effect("texts changed before their end", None, float(changed)),
        ]  # fmt: skip

    def _answered(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Requests for code, and others: ids, mask, and what plain decoding answers."""
        if not self._answers:
            for requests in (asked.CODE, asked.HARMLESS):
                ids, mask = self._chats(requests[: self._most])
                self._answers.append((ids, mask, self.plain(ids, self._chat, mask=mask).tokens))
        return self._answers

    def _code(self, tokens: Tensor) -> int | None:
        """How many tokens a text has when its first code begins; None without code."""
        counts = range(1, len(tokens) + 1)
        return next((n for n in counts if _FENCE in self.tokenizer.decode(tokens[:n])), None)

    # ---- Requests that can and cannot be answered.

    def _standing_in(self) -> tuple[int, int]:
        """First tokens of "I am sorry" and of "The answer"; the model was trained with no control tokens."""
        refuse, respond = (self.tokenizer.encode(x, add_special_tokens=False)[0] for x in ("I", "The"))
        return refuse, respond

    def _refusals(self, pair: tuple[int, int]) -> list[Effect]:
        kinds = (asked.UNANSWERABLE[: self._most], asked.ANSWERABLE[: self._most])
        ids, mask = self._chats([*kinds[0], *kinds[1]])
        ought = torch.tensor([True] * len(kinds[0]) + [False] * len(kinds[1]))
        first, found, broken = self.plain(ids, 1, mask=mask).tokens[:, 0], [], 0
        pi = self._first_law(ids, mask)[:, pair[0]]
        for tau in (None, *_TAUS):
            policy = RefusalTokens(*pair, tau=tau) if tau is not None else RefusalTokens(*pair, mode="none")
            chosen = self.way("", policy)(ids, 1, mask=mask).tokens[:, 0]
            refused = chosen == pair[0]
            if tau is None:
                broken += int((chosen != first).sum())
                continue
            broken += int((chosen != torch.where(pi >= tau, *pair)).sum())
            for name, kind in (("unanswerable", ought), ("answerable", ~ought)):
                plain = float((first[kind] == pair[0]).double().mean())
                found.append(
                    Effect(f"{name} refused, tau={tau}", plain, float(refused[kind].double().mean()))
                )
        found.append(Effect("decisions other than pi >= tau", None, float(broken)))
        return [*found, Effect("area under the curve", None, refusal_curve(pi, ought).area)]

    @torch.no_grad()
    def _first_law(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        logits = self.model(ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits
        return logits[:, -1].float().softmax(-1)

    def _chats(self, requests: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Requests as prompts ``[B, n]`` of the chat template, if there is one, left padded, and their mask."""
        rows = []
        for request in requests:
            text = request
            if self.tokenizer.chat_template:
                turns = [{"role": "user", "content": request}]
                text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            rows.append(self.tokenizer.encode(text, add_special_tokens=not self.tokenizer.chat_template))
        most = max(map(len, rows))
        ids = torch.tensor([[0] * (most - len(row)) + row for row in rows])
        return ids, torch.tensor([[0] * (most - len(row)) + [1] * len(row) for row in rows])


def _mean(values: Sequence[int | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _question(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _count_e(text: str) -> int:
    return sum("e" in unicodedata.normalize("NFKD", character).casefold() for character in text)


def _count_long(text: str) -> int:
    return sum(len(word) > _LONGEST for word in re.findall(r"[^\W\d_]+", text))
