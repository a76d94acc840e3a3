"""The walk of tree_verify in plain Python: the definition of every mode, one request at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _exact
from .._exact import ONE, Use, f32, fixed
from .division import beta_of, division_factor, none_of


@dataclass(frozen=True)
class Request:
    """What is known of one request: a tree as lists, rows of the target, and the mode's numbers."""

    mode: str
    tokens: list[int]
    children: list[list[int]]
    target: Tensor  # [N, V], logits or probabilities
    weigh: Callable[[Tensor], Tensor] | None  # from logits to weights; None where probabilities are given
    draft: Tensor | None  # [M, V]
    draft_rows: list[int] | None
    random: _exact.Stream
    position: int
    match_plain: bool
    greedy: bool  # temperature 0
    eps: float
    delta: float
    rho: list[float] | None
    neighbours: Tensor | None
    offset: int
    residual: str


class Walk:
    """Accepts a path and decides one more token; see :func:`tokops.speculative.tree_verify`."""

    def __init__(self, request: Request):
        self.r = request
        self.path = [0]
        self.out: list[int] = []
        self.rows_read = 0

    @property
    def cur(self) -> int:
        """The node that was accepted last."""
        return self.path[-1]

    # ---- Rows.

    def _open(self, node: int) -> tuple[Tensor, float]:
        """Weights of the target's row and their mass."""
        self.rows_read += 1
        row = self.r.target[node]
        if self.r.weigh is None:
            _refuse(_is_law(row), "probs must sum to 1 and none be negative", node)
            return row, 1.0
        w = self.r.weigh(row)
        total = int(fixed(w).sum())
        _refuse(total > 0, "the target's row has no finite logit or no probability", node)
        return w, total / ONE

    def _open_draft(self, child: int) -> Tensor:
        assert self.r.draft is not None, "checked before"
        assert self.r.draft_rows is not None, "checked before"
        row = self.r.draft[self.r.draft_rows[child]]
        words = "draft_probs must sum to 1 and none be negative in the row of its children"
        _refuse(_is_law(row), words, self.cur)
        return row

    def _drawn(self, p: Tensor, child: int) -> float:
        """The draft's probability of a child."""
        value = float(p[self.r.tokens[child]])
        words = "its token has probability 0 in draft_probs, which is not the law it was drawn from"
        _refuse(value > 0, words, child)
        return value

    def _largest(self, node: int) -> int:
        self.rows_read += 1
        row = _exact.sane_logits(self.r.target[node])
        best = int((row == row.max()).int().argmax())
        words = "the target's row has no finite logit or no probability"
        _refuse(float(row[best]) > float("-inf"), words, node)
        return best

    # ---- Draws.

    def _coin(self, slot: int) -> float:
        return self.r.random.uniform(self.r.position + len(self.out), slot, Use.ACCEPT)

    def _draw(self, weights: Tensor, use: Use = Use.FINAL) -> int:
        """A token from weights; -1 if there are none."""
        w = fixed(weights)
        total = int(w.sum())
        return self.r.random.pick(w, total, self.r.position + len(self.out), 0, use) if total else -1

    def _child_with(self, token: int) -> int | None:
        return next((c for c in self.r.children[self.cur] if self.r.tokens[c] == token), None)

    def _fall_back(self, child: int, q: Tensor) -> int | None:
        """After a rejection that was certain not to happen, up to rounding."""
        if float(q[self.r.tokens[child]]) > 0:
            return child
        return self._emit(self._draw(q))

    def _emit(self, token: int) -> int | None:
        """Decide the last token; no child is accepted then."""
        self.out.append(token)
        return None

    def _accept(self, node: int) -> None:
        self.out.append(self.r.tokens[node])
        self.path.append(node)

    # ---- Modes that look at one level at a time: the accepted child, or None once a token is emitted.

    def greedy(self) -> int | None:
        token = self._largest(self.cur)
        child = self._child_with(token)
        return self._emit(token) if child is None else child

    def target_only(self) -> int | None:
        q, m = self._open(self.cur)
        if self.r.match_plain:
            token = self._draw(q, Use.PLAIN)
            child = self._child_with(token)
            return self._emit(token) if child is None else child
        bar, total = self._coin(0) * m, 0.0
        children = self.r.children[self.cur]
        for c in children:
            total += float(q[self.r.tokens[c]])
            if bar < total:
                return c
        rest = q.clone()
        rest[[self.r.tokens[c] for c in children]] = 0
        return self._emit(self._draw(rest)) if fixed(rest).any() else self._fall_back(children[-1], q)

    def rrs(self) -> int | None:
        return self._recursive(without=False)

    def rrs_wo(self) -> int | None:
        return self._recursive(without=True)

    def _recursive(self, without: bool) -> int | None:
        q, m = self._open(self.cur)
        children = self.r.children[self.cur]
        p = self._open_draft(children[0]).clone()
        left, s = q, 1.0
        for slot, c in enumerate(children):
            x = self.r.tokens[c]
            self._drawn(p, c)
            offered = _as_drawn(p) if without and slot else p
            if self._coin(slot) * float(offered[x]) * m < float(left[x]) * s:
                return c
            left = (left - f32(m / s) * offered).clamp_min(0)
            mass = int(fixed(left).sum())
            if mass == 0:
                return self._fall_back(c, q)
            m = mass / ONE
            if without:
                p[x] = 0
                s = int(fixed(p).sum()) / ONE
                if s == 0:
                    break
        return self._emit(self._draw(left))

    def greedy_plus_one(self) -> int | None:
        q, m = self._open(self.cur)
        *top, last = self.r.children[self.cur]
        p, x = self._open_draft(last), self.r.tokens[last]
        rest = _as_drawn(p)
        rest[[self.r.tokens[c] for c in top]] = 0
        s = int(fixed(rest).sum()) / ONE  # what the draft leaves to the last child
        self._drawn(p, last)
        if s > 0 and self._coin(len(top)) * float(rest[x]) * m < float(q[x]) * s:
            return last
        left = (q - (f32(m / s) if s > 0 else 0.0) * rest).clamp_min(0)
        if not fixed(left).any():
            return self._fall_back(last, q)
        token = self._draw(left)
        child = self._child_with(token)
        return self._emit(token) if child in (None, last) else child

    # ---- Modes that judge more than a level.

    def kseq(self) -> None:
        """k drafts, each a chain under the root; those that agree survive together."""
        alive = list(enumerate(self.r.children[0]))
        while alive:
            token = self._kseq_level(alive)
            kept = [(slot, c) for slot, c in alive if self.r.tokens[c] == token]
            if not kept:
                self._retrace()
                self._emit(token)
                return
            self._accept(kept[0][1])
            alive = [(slot, self.r.children[c][0]) for slot, c in kept if self.r.children[c]]
        self._retrace()
        self._bonus()

    def _retrace(self) -> None:
        """The nodes accepted so far agree with the survivors, but need not be above the last of them."""
        parent = {c: i for i, children in enumerate(self.r.children) for c in children}
        for j in range(len(self.path) - 1, 1, -1):
            self.path[j - 1] = parent[self.path[j]]

    def _kseq_level(self, alive: list[tuple[int, int]]) -> int:
        q, m = self._open(self.cur)
        p = self._open_draft(alive[0][1])
        k = len(alive)
        rho = self.r.rho[self.cur] if self.r.rho is not None else division_factor(q, m, p, k)
        for slot, c in alive:
            x = self.r.tokens[c]
            if self._coin(slot) * rho * self._drawn(p, c) * m < float(q[x]):
                return x
        high = q.double() >= rho * m * p.double()
        beta = beta_of(int(fixed(p)[high].sum()), int(fixed(q)[~high].sum()), rho, m)
        share = (1 - none_of(beta, k)) / beta if beta > 0 else 1.0
        _refuse(
            self.r.rho is None or (rho >= 1 and share <= rho * (1 + 1e-6)),
            "rho must be at least 1 and such that no residual is negative",
            self.cur,
        )
        below = f32(1 - share / rho) if share < rho else 0.0
        left = torch.where(high, (q - f32(share * m) * p).clamp_min(0), q * below)
        return self._draw(left if fixed(left).any() else q)

    def chain_block(self) -> None:
        """One chain, all of it judged together (arXiv 2403.10444)."""
        chain = []
        node = 0
        while self.r.children[node]:
            node = self.r.children[node][0]
            chain.append(node)
        if not chain:
            self._bonus()
            return
        reach, kept, tau = 1.0, 1.0, 0
        q, m = self._open(0)
        for i, c in enumerate(chain):
            p = self._open_draft(c)
            x = self.r.tokens[c]
            p_x, q_x = self._drawn(p, c), float(q[x]) / m
            reach = min(1.0, reach * q_x / p_x)
            passing = reach
            if c != chain[-1]:
                q, m = self._open(c)
                over = int(fixed(self._excess(q, m, self._open_draft(chain[i + 1]), reach)).sum()) / ONE
                passing = over / (over + 1 - reach) if over + 1 - reach > 0 else 1.0
            if self.r.random.uniform(self.r.position + i, 0, Use.ACCEPT) < passing:
                tau, kept = i + 1, reach
        for c in chain[:tau]:
            self._accept(c)
        if tau == len(chain):
            self._bonus()
            return
        q, m = self._open(self.cur)
        left = self._excess(q, m, self._open_draft(chain[tau]), kept)
        self._emit(self._draw(left if fixed(left).any() else q))

    @staticmethod
    def _excess(q: Tensor, m: float, p: Tensor, reach: float) -> Tensor:
        return (f32(reach / m) * q - p).clamp_min(0)

    def typical(self) -> None:
        """Every node is judged by itself; the longest path of accepted ones is taken (arXiv 2401.10774)."""
        score: dict[int, tuple[int, float]] = {0: (0, 0.0)}  # depth, sum of ln q
        parent = {c: i for i, children in enumerate(self.r.children) for c in children}
        for node in range(len(self.r.tokens)):
            if node not in score or not self.r.children[node]:
                continue
            q, m = self._open(node)
            q = q * f32(1 / m)
            terms = q * (f32(1e-5) - _exact.log_positive(q + f32(1e-5)))
            entropy = f32(int(fixed(terms).sum()) / ONE - 1e-5)
            decay = float(_exact.exp_nonpositive(torch.tensor(-max(entropy, 0.0))))
            bar = min(self.r.eps, self.r.delta * decay)
            for c in self.r.children[node]:
                q_c = q[self.r.tokens[c]]
                if float(q_c) > bar:
                    depth, total = score[node]
                    score[c] = (depth + 1, total + float(_exact.log_positive(q_c)))
        best = max(score, key=lambda i: (*score[i], -i))
        path = []
        while best:
            path.append(best)
            best = parent[best]
        for node in reversed(path):
            self._accept(node)
        self._emit(self._largest(self.cur))

    # ---- Mode lantern: a child may borrow what its neighbours have (arXiv 2410.03355).

    def lantern(self) -> int | None:
        if self.r.greedy:
            return self._lantern_greedy()
        return self._lantern_given() if self.r.draft is None else self._lantern_drawn()

    def _borrow(self, x: int, row: Tensor, mass: float) -> tuple[list[int], float]:
        """The longest prefix of x's neighbours within the budget, and its mass."""
        near = self._near(x)
        if not near:
            return [], 0.0
        budget = (self.r.delta - 1) * float(row[x]) if self.r.delta > 1 else self.r.delta * mass
        sums = fixed(row[near]).cumsum(0)
        count = int((sums <= int(max(budget, 0.0) * ONE)).sum())
        return near[:count], int(sums[count - 1]) / ONE if count else 0.0

    def _near(self, x: int) -> list[int]:
        assert self.r.neighbours is not None, "checked before"
        code = x - self.r.offset
        inside = 0 <= code < len(self.r.neighbours)
        return [j + self.r.offset for j in self.r.neighbours[code].tolist()] if inside else []

    def _lantern_greedy(self) -> int | None:
        best = self._largest(self.cur)
        q, m = self._open(self.cur)
        for c in self.r.children[self.cur]:
            x = self.r.tokens[c]
            raised, top = float(q[x]) + self._borrow(x, q, m)[1], float(q[best])
            if x == best or raised > top or (raised == top and x < best):
                return c
        return self._emit(best)

    def _lantern_drawn(self) -> int | None:
        q, m = self._open(self.cur)
        children = self.r.children[self.cur]
        p = self._open_draft(children[0]).clone()
        left, s = q.clone(), 1.0
        for slot, c in enumerate(children):
            x = self.r.tokens[c]
            self._drawn(p, c)
            offered = _as_drawn(p) if slot else p.clone()
            taken, mass = self._borrow(x, left, m)
            if self._coin(slot) * float(offered[x]) * m < (float(left[x]) + mass) * s:
                return c
            if taken and self.r.residual == "moved":
                raised = float(left[x] + f32(mass))
                left[taken] = 0
                left[x] = raised
            elif taken and self.r.residual == "compat":
                offered[[x, *self._near(x)]] = 0
            left = (left - f32(m / s) * offered).clamp_min(0)
            total = int(fixed(left).sum())
            if total == 0:
                return self._fall_back(c, q)
            m = total / ONE
            p[x] = 0
            s = int(fixed(p).sum()) / ONE
            if s == 0:
                break
        return self._emit(self._draw(left))

    def _lantern_given(self) -> int | None:
        q, mass = self._open(self.cur)
        children = self.r.children[self.cur]
        compat = self.r.residual == "compat"
        bar, m, total = self._coin(0) * mass, mass, 0.0
        left = q.clone()
        for slot, c in enumerate(children):
            x = self.r.tokens[c]
            taken, lent = self._borrow(x, left, m)
            offered = float(left[x]) + lent
            total += offered
            if self._coin(slot) * m < offered if compat else bar < total:
                return c
            left[[x, *(self._near(x) if compat and taken else taken)]] = 0
            m = int(fixed(left).sum()) / ONE if compat else mass - total
        if not fixed(left).any():
            left = q.clone()
            left[[self.r.tokens[c] for c in children]] = 0
        return self._emit(self._draw(left)) if fixed(left).any() else self._fall_back(children[-1], q)

    # ---- All of it.

    def _bonus(self) -> None:
        """The token behind a leaf."""
        if self.r.mode == "greedy" or (self.r.mode == "lantern" and self.r.greedy):
            self._emit(self._largest(self.cur))
        else:
            use = Use.PLAIN if self.r.match_plain else Use.FINAL
            self._emit(self._draw(self._open(self.cur)[0], use))

    def run(self) -> None:
        """Fill ``path`` and ``out``."""
        if self.r.mode in ("kseq", "chain_block", "typical"):
            getattr(self, self.r.mode)()
            return
        while self.r.children[self.cur]:
            child = getattr(self, self.r.mode)()
            if child is None:
                return
            self._accept(child)
        self._bonus()


class FaultyRow(Exception):
    """A row that a request cannot be verified with."""

    def __init__(self, words: str, node: int):
        super().__init__(words)
        self.words, self.node = words, node


def _is_law(row: Tensor) -> bool:
    return bool((row >= 0).all()) and abs(int(fixed(row).sum()) / ONE - 1) <= 1e-3


def _as_drawn(p: Tensor) -> Tensor:
    """Probabilities as draws count them: where little of the draft is left these units are all there is."""
    return (fixed(p).double() / ONE).float()


def _refuse(ok: bool, words: str, node: int) -> None:
    if not ok:
        raise FaultyRow(words, node)
