"""The decoding loop of tree speculation, run through ``generate(custom_generate=...)``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..sampling import sample
from ..speculative import DRAFT_MODES, LOSSLESS_MODES, tree_build, tree_verify
from .decoding import Feed, random_streams
from .drafters import make_drafter
from .drafting import Drafter, Proposal, Session, Verdict, check_proposal
from .families import CACHE, given_cache
from .processing import processors_of, split_processors
from .stopping import StopRule

#: What they remember of one call they expect to find one token later in the next, which nodes of a tree are not.
_STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)

#: Options of a verification that one mode alone takes.
_MODE_OF = {"match_plain": "target_only", "rho": "kseq", "neighbours": "lantern"}


class Rows:
    """Padded ids of every sequence, as ``generate`` shows them to processors and criteria."""

    def __init__(self, input_ids: Tensor):
        self._prompt = input_ids
        self.new: list[list[int]] = [[] for _ in input_ids]

    def ids(self, row: int, more: list[int] = []) -> Tensor:  # noqa: B006  (never changed)
        """``[1, L]``: the prompt as it came, what was generated, and ``more``."""
        tail = self._prompt.new_tensor([*self.new[row], *more])
        return torch.cat([self._prompt[row], tail])[None]

    def finished(self, pad: int | None) -> Tensor:
        """All sequences, filled up to the longest."""
        width = max(map(len, self.new))
        fill = 0 if pad is None else pad
        tail = self._prompt.new_tensor([new + [fill] * (width - len(new)) for new in self.new])
        return torch.cat([self._prompt, tail.view(len(self.new), width)], 1)


class Loop:
    """One generation; see :class:`tokops.methods.Speculate`."""

    def __init__(
        self, model, input_ids, processors, criteria, config, run, method, streamer, streams, kwargs
    ):
        self.model, self.method, self.run = model, method, run
        self.stop, self.streamer, self.config = StopRule(criteria), streamer, config
        self.processors, self.sampling = split_processors(processors, config.do_sample)
        self.cache = given_cache(kwargs)
        self.rows = Rows(input_ids)
        self.device = input_ids.device
        mask = kwargs.get("attention_mask")
        self._feed = Feed(model, self.cache, mask, input_ids)
        starts = _starts(mask, self.cache.prompt_length)
        self.starts = None if starts is None else starts.to(self.device)
        first = [0] * len(input_ids) if starts is None else starts.tolist()
        self._ids = input_ids
        mode = method.mode
        self._numbers = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in method.verify_options.items()
        }
        self.mode = "greedy" if self.sampling.greedy and mode in LOSSLESS_MODES else mode
        seed = method.seed
        if seed is None:
            seed = 0 if self.mode == "greedy" else int(torch.randint(2**62, ()))
        # A cache may hold the first tokens of the prompts, which input_ids then leave out.
        prompts = [
            row[max(start - self._feed.offset, 0) :]
            for row, start in zip(input_ids.tolist(), first, strict=True)
        ]
        numbers = random_streams(type(method).__name__, streams, len(prompts), bits=32)
        self.session = Session(
            model=model,
            tokens=prompts,
            active=[True] * len(prompts),
            sampling=self.sampling,
            seed=seed,
            streams=torch.tensor(numbers, dtype=torch.int64, device=self.device),
            room=[self._left(len(input_ids[0]))] * len(prompts),
            device=self.device,
            stride=256 if self.mode == "chain_block" else 1,
        )
        self.drafter: Drafter = make_drafter(method, self.session)
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._hidden: Tensor | None = None

    def _left(self, length):
        return max(self.config.max_length - length, 1) if self.config.max_length is not None else 1 << 30

    # ---- The prompt.

    def prefill(self) -> None:
        """Read what the cache lacks of the prompts, and decide the first token of every sequence."""
        length = self.cache.prompt_length
        chunk = self.config.prefill_chunk_size or length
        hidden: list[Any] = []
        with self._watching():
            for first in range(self.cache.get_seq_length(), length, chunk):
                logits = self._feed(self._ids, first, min(first + chunk, length))
                hidden.append(self._hidden)
        logits = self._processed(logits[:, None].float(), self._ids[:, -1:], None)[:, 0]
        positions = self.session.positions
        if self.sampling.greedy:
            tokens = sample(logits, seed=0, temperature=0.0)
        else:
            s = self.sampling
            tokens = sample(
                logits, seed=self.session.seed, stream=self.session.streams, position=positions,
                temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, min_p=s.min_p,
            )  # fmt: skip
        given = [[token] for token in tokens.tolist()]
        for b, row in enumerate(given):
            self._refuse_nothing(b, row)
            self._until_stop(b, row)
        self._hand_out(given)
        if not any(self.session.active):
            return
        wanted = None
        if self.drafter.wants_hidden:
            states = torch.cat(hidden, 1)
            wanted = [row[-len(t) + 1 :] for row, t in zip(states, self.session.tokens, strict=True)]
        self.drafter.begin(self.session, wanted)

    @contextmanager
    def _watching(self):
        """Keeps the final hidden states of forwards, for drafters that want them."""
        if not self.drafter.wants_hidden:
            yield
            return

        def keep(module, args, output):
            self._hidden = output.last_hidden_state

        hook = self.model.base_model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    # ---- A step.

    def step(self) -> None:
        """Draft, run, verify, keep."""
        proposal = self.drafter.propose(self.session)
        own = self.drafter.embeddings
        check_proposal(
            type(self.drafter).__name__,
            proposal,
            self.session,
            self._vocabulary,
            0 if own is None else len(own),
        )
        tree = tree_build(proposal.parents)
        logits = self._forward(proposal, tree)
        logits = self._processed(logits, proposal.tokens, proposal)
        nodes = proposal.nodes
        judged = tree if nodes == proposal.tokens.shape[1] else tree_build(proposal.parents[:, :nodes])
        s = self.sampling
        law = {} if s.greedy and self.mode == "greedy" else {
            "temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p,
        }  # fmt: skip
        # A root alone asks for no draft's law.
        alone = nodes == 1
        mode = "target_only" if alone and self.mode in DRAFT_MODES else self.mode
        session = self.session
        _, path, out = tree_verify(
            mode, proposal.tokens[:, :nodes], judged, logits=logits,
            draft_probs=None if alone else proposal.draft_probs,
            draft_rows=None if alone else proposal.draft_rows,
            seed=session.seed, stream=session.streams, position=session.positions, n_nodes=proposal.n_nodes,
            **law, **_options(self._numbers, mode),
        )  # fmt: skip
        self._settle(proposal, path, out)

    def _forward(self, proposal: Proposal, tree) -> Tensor:
        """Logits ``[B, N, V]`` of the nodes."""
        lengths = torch.tensor(self.cache.lengths, device=self.device)
        starts = 0 if self.starts is None else self.starts[:, None]
        rows = proposal.tokens.shape[1]
        # A root alone is a plain step, in which attention need not look up who sees whom.
        alone = rows == 1
        self.cache.draft(*((None, None) if alone else (tree.ancestors, tree.depth)), self.starts)
        keep = 0 if proposal.nodes == rows else torch.arange(proposal.nodes, device=self.device)
        with self._watching():
            out = self.model(
                **self._inputs(proposal.tokens),
                attention_mask=None,
                position_ids=lengths[:, None] - starts + tree.depth,
                use_cache=True,
                logits_to_keep=keep,
                **{CACHE: self.cache},
            )
        return out.logits

    def _inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        ids = tokens.long()
        if self.drafter.embeddings is None:
            return {"input_ids": ids}
        words = self.model.get_input_embeddings()(ids.clamp_min(0))
        own = self.drafter.embeddings.to(words)[(-1 - ids).clamp_min(0)]
        return {"inputs_embeds": torch.where((ids < 0)[..., None], own, words)}

    def _processed(self, logits: Tensor, tokens: Tensor, proposal: Proposal | None) -> Tensor:
        """Logits of every node after the processors, each with the node's own path as its text."""
        if not len(self.processors):
            return logits
        logits = logits.float().clone()
        texts = tokens.tolist()
        parents = [[-1]] * len(texts) if proposal is None else proposal.parents.tolist()
        count = None if proposal is None or proposal.n_nodes is None else proposal.n_nodes.tolist()
        for b, tree in enumerate(parents):
            if not self.session.active[b]:
                continue
            text = self.rows.ids(b)
            for nodes, paths in _by_depth(texts[b], tree[: logits.shape[1] if count is None else count[b]]):
                ids = text
                if paths[0]:
                    ids = torch.cat([text.expand(len(nodes), -1), text.new_tensor(paths)], 1)
                # The prompt's forward has the token that the one node stands for at its end.
                places = [(b, -1 if proposal is None else node) for node in nodes]
                processors = processors_of(self.processors, [b] * len(nodes), places)
                at = slice(nodes[0], nodes[0] + 1) if len(nodes) == 1 else nodes  # a view, not two copies
                logits[b, at] = processors(ids, logits[b, at])
        return logits

    def _settle(self, proposal: Proposal, path: Tensor, out: Tensor) -> None:
        """Give out tokens, keep their nodes, and tell the drafter."""
        room = self.cache.room()
        given, kept = [], []
        for b, (nodes, tokens) in enumerate(torch.stack([path, out], 1).tolist()):
            nodes = [i for i in nodes if i >= 0]
            tokens = tokens[: min(len(nodes), room[b])]
            if self.session.active[b]:
                self._refuse_nothing(b, tokens)
                given.append(self._until_stop(b, tokens))
            else:
                given.append([])
            kept.append(nodes[: len(given[-1])])
        self.cache.keep(path, [len(nodes) for nodes in kept])
        self.cache.finish([not on for on in self.session.active])
        self._count(kept, given)
        self._hand_out(given)
        verdict = Verdict(kept, given, self._hidden if self.drafter.wants_hidden else None)
        self.drafter.commit(self.session, proposal, verdict)

    def _count(self, kept, given):
        live = sum(bool(tokens) for tokens in given)
        self.run.counters.speculated(live, sum(map(len, given)))

    def _refuse_nothing(self, row: int, tokens: list[int]) -> None:
        if -1 in tokens:
            raise RuntimeError(f"speculation: no token of sequence {row} has a finite logit")

    def _until_stop(self, row: int, tokens: list[int]) -> list[int]:
        """The tokens up to the first that ends the sequence."""
        length = self._ids.shape[1] + len(self.rows.new[row])
        ids = self.rows.ids(row, tokens) if self.stop.needs_ids else None
        count, ended = self.stop.cut(tokens, length, ids)
        self.session.active[row] = not ended
        return tokens[:count]

    def _hand_out(self, given: list[list[int]]) -> None:
        """Append tokens."""
        for b, tokens in enumerate(given):
            self.rows.new[b] += tokens
            self.session.tokens[b] += tokens
            self.session.room[b] = self._left(self._ids.shape[1] + len(self.rows.new[b]))
            if self.streamer is not None:
                for token in tokens:
                    self.streamer.put(torch.tensor([token]))


def _by_depth(tokens: list[int], parents: list[int]) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Nodes of one tree that are equally deep, and the tokens from below the root down to each; no padding."""
    paths: list[list[int] | None] = [[]]
    for i in range(1, len(parents)):
        above = paths[parents[i]] if parents[i] >= 0 else None
        paths.append(None if above is None else [*above, tokens[i]])
    levels: dict[int, tuple[list[int], list[list[int]]]] = {}
    for i, path in enumerate(paths):
        if path is not None:
            nodes, texts = levels.setdefault(len(path), ([], []))
            nodes.append(i)
            texts.append(path)
    yield from levels.values()


def _options(options: dict[str, Any], mode: str) -> dict[str, Any]:
    """Those of a method's numbers that the mode takes."""
    return {name: value for name, value in options.items() if _MODE_OF.get(name, mode) == mode}


def _starts(mask: Tensor | None, length: int) -> Tensor | None:
    """First visible position of every sequence; None where there is no padding."""
    if mask is None or bool(mask[:, :length].all()):
        return None
    return mask[:, :length].int().argmax(-1).int()


def _refuse(method, input_ids, processors, config, streamer, kwargs) -> None:
    """What of ``generate`` the loop does not do."""
    name = type(method).__name__
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise NotImplementedError(f"{name} decodes greedily or samples and does not support {mode.value}")
    if not len(input_ids):
        raise ValueError(f"{name}: input_ids must hold a sequence at least, got {list(input_ids.shape)}")
    if kwargs.get("inputs_embeds") is not None or not input_ids.shape[1]:
        raise NotImplementedError(f"{name} drafts tokens from tokens and does not support inputs_embeds")
    if config.do_sample and method.mode == "greedy":
        raise ValueError(
            f"{name}: verify greedy goes with do_sample=False, got do_sample=True: use target_only"
        )
    for processor in processors:
        if isinstance(processor, _STATEFUL):
            raise NotImplementedError(
                f"{name} does not support {type(processor).__name__}: it follows one text, a tree has many"
            )
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"{name}: a streamer takes one sequence, got {len(input_ids)}")


def generate_loop(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    *,
    run,
    method,
    streamer=None,
    tokenizer=None,
    streams=None,
    **model_kwargs,
):
    """Tree speculation over a batch; see :class:`tokops.methods.Speculate`."""
    _refuse(method, input_ids, logits_processor, generation_config, streamer, model_kwargs)
    loop = Loop(
        model, input_ids, logits_processor, stopping_criteria, generation_config, run, method, streamer, streams,
        model_kwargs,
    )  # fmt: skip
    try:
        loop.prefill()
        while any(loop.session.active):
            loop.step()
    finally:
        loop.drafter.end()
    if streamer is not None:
        streamer.end()
    sequences = loop.rows.finished(generation_config.pad_token_id)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences, **{CACHE: loop.cache})
    return sequences
