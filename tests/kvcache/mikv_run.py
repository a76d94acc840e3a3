"""One layer of MiKV fed with random tokens, beside all that it was given."""

import torch

from tokops.kvcache import Codec, decode
from tokops.kvcache.mikv import MiKVLayout
from tokops.kvcache.mikv_layout import Policy

HQ, HKV, DIM = 6, 2, 32
FULL, INT4, INT2 = Codec("full"), Codec("int4", group=32), Codec("int2", group=32)
KINDS = {
    "full": FULL,
    "int8": Codec("int8", group=32),
    "int4": INT4,
    "int3": Codec("int3", group=32),
    "int2": INT2,
}


def policy(high="full", low="full", **changes):
    numbers = {"ratio": 0.25, "budget": None, "recent": 0.5, "sinks": 4, "interval": 8, **changes}
    return Policy(KINDS[high], KINDS[low], **numbers)


class Run:
    """One layer fed with random tokens, and everything it was ever given."""

    def __init__(self, policy, batch=1, starts=None, page=16, seed=0, hard=2.0):
        self.layout = MiKVLayout(policy, page)
        self.store = self.layout.new_store(0)
        self.batch, self.hard, self.exact = batch, hard, policy.high.kind == policy.low.kind == "full"
        self.starts = None if starts is None else torch.tensor(starts, dtype=torch.int32)
        self.gen = torch.Generator().manual_seed(seed)
        self.k, self.v = torch.zeros(2, batch, 0, HKV, DIM)
        self.acc = torch.zeros(batch, HKV, 0)  # of committed queries
        self.unsure = None

    def tokens(self, rows):
        """Queries, keys (with outlying channels) and values."""
        q, k, v = (torch.randn(self.batch, rows, h, DIM, generator=self.gen) for h in (HQ, HKV, HKV))
        k[..., 3] *= 20.0
        k[..., 7] *= 0.05
        return q * self.hard, k, v

    def weights(self, q, first):
        """Softmax weights ``[B, T, Hq, L]`` of rows at positions from ``first`` on; rows of padding give nothing."""
        length = self.k.shape[1]
        k = self.k.repeat_interleave(HQ // HKV, 2)
        scores = torch.einsum("bthd,blhd->bthl", q.double(), k.double()) * DIM**-0.5
        key, row = torch.arange(length), torch.arange(first, first + q.shape[1])
        see = (key <= row[:, None])[None]
        if self.starts is not None:
            see = see & (key >= self.starts[:, None, None])
        scores = scores.masked_fill(~see[:, :, None], float("-inf"))
        return scores.softmax(-1).nan_to_num(0.0)

    def _take(self, rows, prompt_rows, q, k, v):
        self.k, self.v = torch.cat([self.k, k], 1), torch.cat([self.v, v], 1)
        self._commit()
        past = self.layout.length
        self.layout.begin(self.batch, rows, prompt_rows, k.device)
        self.store.append(k, v)
        weights = self.weights(q, past)
        self.acc = torch.nn.functional.pad(self.acc, (0, rows))
        mass = weights.unflatten(2, (HKV, -1)).sum(3).float()  # [B, T, Hkv, L]
        self.acc += mass[:, :prompt_rows].sum(1)
        self.unsure = past + prompt_rows, mass[:, prompt_rows:]
        v = self.v.repeat_interleave(HQ // HKV, 2).double()
        return past, torch.einsum("bthl,blhd->bthd", weights, v)

    def _commit(self):
        if self.unsure is not None:
            first, mass = self.unsure
            rows = max(min(self.layout.length - first, mass.shape[1]), 0)
            self.acc += mass[:, :rows, :, : self.acc.shape[2]].sum(1)
            self.unsure = None

    def prompt(self, rows, extra=0):
        """Read a prompt (of which ``extra`` last rows are drafts); attention over the cache where there was one."""
        q, k, v = self.tokens(rows)
        past, want = self._take(rows, rows - extra, q, k, v)
        if past:
            self.check(decode(q, self.store, starts=self.starts).out, want)
        self.layout.see_starts(self.starts)
        self.store.absorb(q, starts=self.starts)
        return q

    def step(self, rows=1):
        """Decode rows and compare with dense attention over all that was given."""
        q, k, v = self.tokens(rows)
        _, want = self._take(rows, 0, q, k, v)
        out = decode(q, self.store, starts=self.starts).out
        self.check(out, want)
        return out

    def check(self, out, want):
        if not self.exact:
            return
        visible = want.abs().sum(-1) > 0
        error = (out.double() - want).abs().amax(-1)[visible].max()
        assert error < 2e-5, error

    def crop(self, tokens):
        restored = self.layout.crop(tokens)
        self.store.crop(restored)
        self.layout.drop_pages()
        keep = self.layout.length
        self.k, self.v, self.acc = self.k[:, :keep], self.v[:, :keep], self.acc[..., :keep]
        if self.starts is not None:
            self.starts = self.starts.clamp_max(keep)  # what comes next is no padding

    def select(self, rows):
        self.layout.select(rows)
        self.store.select(torch.tensor(rows))
        self.batch = len(rows)
        self.k, self.v, self.acc = self.k[rows], self.v[rows], self.acc[rows]
        if self.starts is not None:
            self.starts = self.starts[rows]
        if self.unsure is not None:
            self.unsure = self.unsure[0], self.unsure[1][rows]

    # ---- What the store holds.

    def pool(self, tier, b, h):
        """Positions of one pool of one KV head."""
        return tier.positions[b, h, : int(tier.lens[b, h])].tolist()

    def consistent(self):
        """Every visible token is in one place, and ``where`` says in which."""
        store = self.store
        for b in range(self.batch):
            start = 0 if self.starts is None else int(self.starts[b])
            for h in range(HKV):
                want = torch.full((self.layout.length,), -1)
                seen = []
                for tier in (store.high, store.low):
                    n = int(tier.lens[b, h])
                    assert min(tier.least) <= n <= max(tier.most)
                    assert tier.least[b] <= n <= tier.most[b]
                    position = tier.positions[b, h, :n].long()
                    want[position] = tier.base + torch.arange(n)
                    seen += position.tolist()
                assert sorted(seen) == list(range(min(start, store._settled), store._settled))
                where = store.where[b, h]
                assert torch.equal(where[: self.layout.length].long(), want)
                assert bool((where[self.layout.length :] == -1).all())
