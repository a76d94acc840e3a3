"""Masks on the device: a batch of grammars' states as tables, which the host extends when a text needs it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._gm_advance import DEAD, FINISHED, FREE, HOST, NOT_KNOWN, WAITING, gm_advance_, walk_parts
from ._gm_compose import gm_compose_
from ._gm_walk import gm_walk_
from ._grammar import Grammar, GrammarError, Vocabulary, native

__all__ = ["DeviceEngine"]


class _HostRow:
    """A matcher that serves a row; the row's text had ``first`` tokens when it began to."""

    def __init__(self, matcher, first: int):
        self.matcher, self.first = matcher, first
        self.base = first - matcher.accepted

    @property
    def position(self) -> int:
        return self.base + self.matcher.accepted


class DeviceEngine:
    """Rows of a batch, each under a grammar of its own; states and masks stay on the device.

    What a matcher may still do is a state of a deterministic automaton, whose tables are on the device. ``step`` takes
    a token in every row and gives the masks: kernels on tensors that never move, without a host read, so that it can
    be captured in a CUDA graph together with the model and the sampler. The tables hold what texts have needed so far,
    or what ``explore`` and ``warm`` were asked for. A row that leaves them waits: its mask is all clear
    (``masked_sample`` gives -1 there, and a token below 0 leaves a row as it is) until the host calls ``refill``, which
    works out what was missing for all rows at once. A mask that is not in the pool yet is walked on the device, out of
    the tables, where these have all that its tokens lead to.

    Where the tables are full, a row is served by a matcher on the host: it waits after every token. Texts whose past
    matters without end (keys of open objects, items of unique arrays, nesting) need new states all along and come to
    that sooner.

    Args:
        vocabulary: of all grammars.
        batch: rows, B. They begin without a grammar: everything is allowed.
        device: where the tables are.
        max_states: room for states, 1 KiB each.
        max_masks: room for masks, ``vocabulary.words`` int32 each; equal ones are one.
        history: how many tokens ``rollback`` can take back, H.
        walk: work out on the device the masks that the pool lacks (``gm_walk_``), before the host is asked. None: on a
            GPU. On a CPU the host's own way to a mask is far faster, and needs no tables.

    Attributes:
        state: ``[B]`` int32: a state, or -1 dead, -2 served by the host, -3 finished, -4 no grammar, -5 waiting.
        mask: ``[B, W]`` int32, the masks that ``step`` and the others return.
        errors: row -> the GrammarError for which it is dead: a bound of the matcher was passed.

    Example:
        >>> engine = tokops.grammar.DeviceEngine(vocabulary, batch=8, device="cuda")  # doctest: +SKIP
        >>> mask = engine.admit(0, grammar)  # doctest: +SKIP
        >>> tokens = tokops.grammar.masked_sample(logits, mask, seed=1)  # doctest: +SKIP
        >>> mask = engine.step(tokens)  # doctest: +SKIP
        >>> if engine.refill(): mask = engine.mask  # doctest: +SKIP
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        batch: int,
        device: torch.device | str = "cpu",
        *,
        max_states: int = 65536,
        max_masks: int = 4096,
        history: int = 64,
        walk: bool | None = None,
    ):
        for name, x in (
            ("batch", batch),
            ("max_states", max_states),
            ("max_masks", max_masks),
            ("history", history),
        ):
            if x < 1:
                raise ValueError(f"DeviceEngine: {name}: expected at least 1, got {x}")
        self.vocabulary, self.batch, self.depth = vocabulary, batch, history
        self.tables = native.DeviceTables(vocabulary.native, max_states, max_masks)
        self.errors: dict[int, GrammarError] = {}
        self._hosts: dict[int, list[_HostRow]] = {}
        words = vocabulary.words

        def filled(value, *shape, dtype=torch.int32):
            return torch.full(shape, value, dtype=dtype, device=device)

        self.state, self.position = filled(FREE, batch), filled(0, batch)
        self.missed, self.history = filled(-1, batch, 2), filled(DEAD, history, batch)
        self.mask, self._host_mask = filled(-1, batch, words), filled(0, batch, words)
        self.walk = self.state.is_cuda if walk is None else walk
        self._left = filled(0, batch, walk_parts(words))
        self._next = filled(NOT_KNOWN, max_states, 256)
        self._accepting = filled(0, max_states, dtype=torch.uint8)
        self._mask_of, self._pool = filled(NOT_KNOWN, max_states), filled(0, max_masks, words)
        tokens = [vocabulary.token(t) for t in range(vocabulary.width)]
        ends = torch.tensor([0, *(len(t) for t in tokens)]).cumsum(0)
        self._offset = ends.int().to(device)
        self._bytes = torch.frombuffer(bytearray(b"".join(tokens)), dtype=torch.uint8).to(device)
        self._eos = torch.tensor(vocabulary.eos_ids, dtype=torch.int32, device=device)
        finished = vocabulary.masks()[0]
        for t in vocabulary.eos_ids:
            finished[t >> 5] |= (1 << (t & 31)) - (1 << 32 if t & 31 == 31 else 0)
        self._eos_mask = finished.to(device)

    # --- on the device

    def _advance(
        self, state: Tensor, tokens: Tensor, missed: Tensor, history: Tensor, position: Tensor
    ) -> None:
        gm_advance_(state, tokens, missed=missed, history=history, position=position, **self._tables())

    def _tables(self) -> dict[str, Tensor]:
        return {
            "next": self._next, "accepting": self._accepting, "token_offset": self._offset,
            "token_bytes": self._bytes, "eos": self._eos,
        }  # fmt: skip

    def _masks(self, state: Tensor, host_mask: Tensor, left: Tensor, out: Tensor) -> Tensor:
        """The masks of states; rows of ``host_mask`` that no host serves are scratch."""
        if self.walk:
            gm_walk_(state, self._mask_of, out=host_mask, left=left, **self._tables())
        return gm_compose_(
            state, self._mask_of, self._pool, host_mask, self._eos_mask, out, left if self.walk else None
        )

    def _compose(self) -> Tensor:
        return self._masks(self.state, self._host_mask, self._left, self.mask)

    def step(self, tokens: Tensor) -> Tensor:
        """Take a token in every row.

        Args:
            tokens: ``[B]`` int32 or int64 on the device; below 0: the row stays as it is.

        Returns:
            ``mask``, whose rows are all clear where a row waits for ``refill`` or is dead.
        """
        self._advance(self.state, tokens, self.missed, self.history, self.position)
        return self._compose()

    # --- from the host

    def admit(self, row: int, grammar: Grammar | None) -> Tensor:
        """Begin a text in a row, under a grammar, or under none: everything is allowed. Returns ``mask``."""
        if not 0 <= row < self.batch:
            raise IndexError(f"DeviceEngine.admit: row: expected 0 to {self.batch - 1}, got {row}")
        self._hosts.pop(row, None)
        self.errors.pop(row, None)
        self.position[row] = 0
        self.missed[row] = -1
        start = FREE
        if grammar is not None:
            if grammar.vocabulary is not self.vocabulary:
                raise ValueError("DeviceEngine.admit: grammar: it is for another vocabulary")
            start = self.tables.add(grammar.native)
            if start < 0 or self.tables.mask(start) < 0:
                start = self._serve(row, grammar.matcher(), 0)
        self.state[row] = start
        self._upload()
        return self._compose()

    def warm(self, grammar: Grammar, tokens: Sequence[int]) -> None:
        """Work out the tables along a text that is to be expected, with what else may stand in its strings."""
        state = self.tables.add(grammar.native)
        for token in tokens:
            if state < 0:
                break
            self.tables.mask(state)
            after = self.tables.visit(state, token)
            if after >= 0:
                self.tables.explore_loops(state, token)
            state = after
        if state >= 0:
            self.tables.mask(state)
        self._upload()

    def explore(self, grammar: Grammar, states: int = 4096) -> bool:
        """Work out a grammar's tables from its beginning on, shortest texts first.

        Args:
            grammar: of which the tables may have a part already.
            states: how many states' bytes to work out at most.

        Returns:
            Whether that is all of it: no text leaves the tables then, and with ``walk`` no row ever waits.
        """
        if states < 0:
            raise ValueError(f"DeviceEngine.explore: states: expected at least 0, got {states}")
        start = self.tables.add(grammar.native)
        whole = start >= 0 and self.tables.explore_all(start, states)
        self._upload()
        return whole

    def refill(self, explore: bool = True) -> bool:
        """Work out what rows wait for, and the masks of rows that the host serves. Reads the states from the device.

        Args:
            explore: also work out all bytes of the states that a token's bytes lead back to, such as the inside of a
                string: other strings then find them. Not once the tables are half full.

        Returns:
            Whether any row has changed; ``mask`` then holds the new masks.
        """
        read = torch.cat([self.state[:, None], self.missed, self.position[:, None]], 1).cpu()
        changed: dict[int, int] = {}
        learned = False
        for row, (now, before, token, position) in enumerate(read.tolist()):
            if now >= 0 and self.tables.mask_known(now):
                continue
            try:
                if now >= 0:
                    learned = True
                    after = self._at(row, now, position)
                elif now == WAITING:
                    after = self._resolve(row, before, token, position, explore)
                else:
                    continue
            except GrammarError as error:
                self.errors[row], after = error, DEAD
            if after != now:
                changed[row] = after
        if not changed and not learned:
            return False
        self._upload()
        if changed:
            device = self.state.device
            at = torch.tensor(list(changed), device=device)
            self.state[at] = torch.tensor(list(changed.values()), dtype=torch.int32, device=device)
            self.missed[at] = -1
        self._compose()
        return True

    def _at(self, row: int, state: int, position: int) -> int:
        """A row in a state of the tables: that, or HOST where there is no room for its mask."""
        if self.tables.mask(state) >= 0:
            return state
        return self._serve(row, self.tables.matcher(state), position)

    def _resolve(self, row: int, before: int, token: int, position: int, explore: bool) -> int:
        """Where a row that waits has come to with a token."""
        if before >= 0:
            after = self.tables.visit(before, token)
            if after == HOST:
                matcher = self.tables.matcher(before)
                return self._serve(row, matcher, position) if matcher.accept(token) else DEAD
            if explore and after != DEAD and 2 * self.tables.states < self.tables.max_states:
                self.tables.explore_loops(before, token)
            return self._at(row, after, position) if after >= 0 else after
        matcher = self._hosts[row][-1].matcher
        if not 0 <= token < self.vocabulary.width or not matcher.accept(token):
            return DEAD
        if matcher.is_done():
            return FINISHED
        after = self.tables.locate(matcher)  # where it has come back to what the tables have
        if after >= 0 and self.tables.mask(after) >= 0:
            return after
        return self._show(row, matcher)

    def _serve(self, row: int, matcher, position: int) -> int:
        """From here on the host serves a row."""
        rows = self._hosts.setdefault(row, [])
        rows.append(_HostRow(matcher, position))
        while len(rows) > 1 and rows[1].first < position - self.depth:
            rows.pop(0)
        return self._show(row, matcher)

    def _show(self, row: int, matcher) -> int:
        mask = self.vocabulary.masks()[0]
        matcher.fill(mask)
        self._host_mask[row] = mask.to(self._host_mask.device)
        return HOST

    def _upload(self) -> None:
        """Bring to the device what is new in the tables."""
        states, next, accepting, mask_of, first, masks = self.tables.changes()
        device = self.state.device
        if len(masks):
            self._pool[first : first + len(masks)] = torch.from_numpy(masks).to(device)
        if len(states):
            at = torch.from_numpy(states).long().to(device)
            for table, rows in ((self._next, next), (self._accepting, accepting), (self._mask_of, mask_of)):
                table[at] = torch.from_numpy(rows).to(device)

    def rollback(self, rows: Sequence[int], tokens: int | Sequence[int]) -> Tensor:
        """Take back the last tokens of some rows; without a host read where no matcher on the host serves them.

        Args:
            rows: different from each other.
            tokens: how many, for all rows or for each: 0 to H. A row that has had fewer is dead afterwards.

        Returns:
            ``mask``.
        """
        rows = [int(r) for r in rows]
        counts = [int(tokens)] * len(rows) if isinstance(tokens, int) else [int(k) for k in tokens]
        if len(counts) != len(rows) or len(set(rows)) != len(rows):
            raise ValueError(
                "DeviceEngine.rollback: expected rows that differ, and one number of tokens for each"
            )
        if any(not 0 <= r < self.batch for r in rows) or any(not 0 <= k <= self.depth for k in counts):
            raise ValueError(
                f"DeviceEngine.rollback: expected rows below {self.batch} and 0 to {self.depth} tokens"
            )
        served = [r for r in rows if r in self._hosts]
        if served:
            self.refill()
        device = self.state.device
        at = torch.tensor(rows, dtype=torch.long, device=device)
        count = torch.tensor(counts, dtype=torch.int32, device=device)
        state, position = self.state[at], self.position[at]
        keep = (count == 0) | (state == FREE)
        after = position - count
        before = self.history[after % self.depth, at]
        self.state[at] = torch.where(keep, state, torch.where(after >= 0, before, DEAD))
        self.position[at] = torch.where(keep, position, after.clamp_min(0))
        self.missed[at] = torch.where(keep[:, None], self.missed[at], -1)
        if served:
            self._rewind(served)
        return self._compose()

    def _rewind(self, rows: list[int]) -> None:
        """The host's matchers, after rows have gone back."""
        state, position = self.state.cpu().tolist(), self.position.cpu().tolist()
        for row in rows:
            found = self._hosts[row]
            while found and found[-1].first > position[row]:
                found.pop()
            if not found:
                del self._hosts[row]
            elif state[row] == HOST:
                found[-1].matcher.rollback(found[-1].position - position[row])
                self._show(row, found[-1].matcher)

    def tree(self, row: int, parents: Sequence[int], tokens: Tensor, wait: bool = True) -> Tensor:
        """Masks of a draft tree that goes on from a row, which stays as it is.

        Args:
            row: where the tree begins.
            parents: of N nodes: an earlier node, or -1: the row itself.
            tokens: ``[N]`` int32 or int64 on the device.
            wait: read from the device whether any node has left the tables, and work these out. Without it their masks
                are all clear.

        Returns:
            ``[N, W]`` int32: what may follow each node; all clear where the node itself is not allowed.
        """
        count, device = len(parents), self.state.device
        if tokens.shape != (count,) or any(not -1 <= p < i for i, p in enumerate(parents)):
            raise ValueError(
                "DeviceEngine.tree: expected a token for each node, and parents that are -1 or earlier nodes"
            )
        depth: list[int] = []
        for p in parents:
            depth.append(0 if p < 0 else depth[p] + 1)
        states = torch.cat(
            [self.state.new_full((count,), WAITING), self.state[row : row + 1]]
        )  # parent -1: the last
        for level in range(max(depth, default=-1) + 1):
            nodes = [i for i in range(count) if depth[i] == level]
            at = torch.tensor(nodes, device=device)
            before = states[torch.tensor([parents[i] for i in nodes], device=device)]
            state = torch.where(before == FINISHED, DEAD, before)
            rest = (
                state.new_full((len(nodes), 2), -1),
                state.new_full((1, len(nodes)), -1),
                torch.zeros_like(state),
            )
            self._advance(state, tokens[at], *rest)
            states[at] = state
        states = states[:count].contiguous()
        out = self._pool.new_empty(count, self._pool.shape[1])
        left = out.new_zeros(count, walk_parts(out.shape[1]))
        self._masks(states, torch.zeros_like(out), left, out)
        if wait and count:
            now = states.cpu().tolist()
            if any(s in (WAITING, HOST) or (s >= 0 and not self.tables.mask_known(s)) for s in now):
                return self._tree_on_host(row, parents, tokens.cpu().tolist(), out)
        return out

    def _tree_on_host(self, row: int, parents: Sequence[int], tokens: list[int], out: Tensor) -> Tensor:
        root = int(self.state[row])
        if root == WAITING:
            self.refill()
            root = int(self.state[row])
        if root >= 0:
            matcher = self.tables.matcher(root)
            states: list[int] = []
            for p, token in zip(parents, tokens, strict=True):  # so that the tables know them from now on
                before = root if p < 0 else states[p]
                states.append(self.tables.visit(before, token) if before >= 0 else DEAD)
                if states[-1] >= 0:
                    self.tables.mask(states[-1])
            self._upload()
        elif root == HOST:
            matcher = self._hosts[row][-1].matcher
        else:
            return out.zero_()
        width = self.vocabulary.width
        if not all(0 <= t < width for t in tokens):
            raise IndexError(f"DeviceEngine.tree: tokens: expected 0 to {width - 1}")
        mask = self.vocabulary.masks(len(tokens))
        matcher.fill_tree(list(parents), tokens, mask)
        return out.copy_(mask)
