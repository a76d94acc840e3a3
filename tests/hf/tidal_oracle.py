"""TidalDecode written from its description: a stock model, a DynamicCache, fp64 scores, one loop per head."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

NAME = "tidal_oracle"


class Oracle:
    """Decodes one unpadded sequence with stock code; only this attention function knows of the method."""

    def __init__(self, model, method):
        self.model, self.method = model, method
        self.chosen = None
        self.chosen_at = {}
        AttentionInterface.register(NAME, self.attention)
        AttentionMaskInterface.register(NAME, lambda **kwargs: None)

    def logits(self, ids, prompt: int):
        """Logits of positions ``prompt - 1 ..`` when everything after the prompt is decoded one by one."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        try:
            cache, rows, at = DynamicCache(config=self.model.config), [], 0
            for size in [prompt] + [1] * (ids.shape[1] - prompt):
                with torch.no_grad():
                    rows.append(self.model(ids[:, at : at + size], past_key_values=cache).logits[:, -1])
                at += size
            return torch.stack(rows, 1)
        finally:
            self.model.set_attn_implementation(before)
            AttentionInterface._global_mapping.pop(NAME)
            AttentionMaskInterface._global_mapping.pop(NAME)

    def attention(
        self,
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=None,
        sliding_window=None,
        softcap=None,
        s_aux=None,
        **kwargs,
    ):
        _, hq, t, _ = query.shape
        group = hq // key.shape[1]
        logits = (
            torch.einsum("bhtd,bhld->bhtl", query.double(), key.double().repeat_interleave(group, 1))
            * scaling
        )
        length = key.shape[2]
        position = torch.arange(length - t, length)[:, None]
        see = torch.arange(length) <= position
        if sliding_window is not None:
            see = see & (torch.arange(length) > position - sliding_window)
        see = see.expand(hq, t, length).clone()
        if t == 1 and sliding_window is None:
            see &= self._mask(module.layer_idx, logits[0, :, 0], group)[:, None]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~see, float("-inf"))
        if s_aux is not None:
            logits = torch.cat([logits, s_aux.double().view(1, -1, 1, 1).expand(1, -1, t, 1)], -1)
        weights = torch.softmax(logits, -1)[..., :length]
        out = torch.einsum("bhtl,bhld->bthd", weights, value.double().repeat_interleave(group, 1))
        return out.to(query.dtype), None

    def _mask(self, layer, scores, group):
        """Which positions each query head reads at a decoding step: ``[Hq, L]``."""
        method = self.method
        everything = torch.ones_like(scores, dtype=torch.bool)
        if layer in (method.select_layer, method.reselect_layer):
            if method.budget >= scores.shape[1]:
                self.chosen = None
            else:
                self.chosen = self._lists(scores, group)
                self.chosen_at[layer] = self.chosen
        if layer <= method.select_layer or layer == method.reselect_layer or self.chosen is None:
            return everything
        mask = torch.zeros_like(everything)
        for head, positions in enumerate(self.chosen):
            mask[head, sorted(positions)] = True
        return mask

    def _lists(self, scores, group):
        """The set of positions of every query head."""
        method, (heads, length) = self.method, scores.shape
        if method.mode == "lessismore":
            return [self._union(scores)] * heads
        shared = scores if method.reduce != "soft_max" else torch.softmax(scores, -1)
        size = {"q_head": 1, "kv_group": group, "layer": heads}[method.scope]
        sinks, recent = method.always_keep
        kept = set(range(sinks)) | set(range(length - max(recent, 1), length))
        lists = []
        for head in range(heads):
            first = head // size * size
            best = shared[first : first + size].amax(0).tolist()
            order = sorted(set(range(length)) - kept, key=lambda j, best=best: (-best[j], j))
            lists.append(kept | set(order[: method.budget - len(kept)]))
        return lists

    def _union(self, scores):
        heads, length = scores.shape
        budget = self.method.budget
        middle = int(budget * 0.75)
        sinks, recent = 4, budget - middle - 4
        if recent < 4:
            sinks, recent = 0, budget - middle
        region = range(sinks, length - recent)
        ranked = [sorted(region, key=lambda j, h=h: (-float(scores[h, j]), j)) for h in range(heads)]
        union = list(dict.fromkeys(ranked[h][rank] for rank in range(len(region)) for h in range(heads)))
        return set(range(sinks)) | set(range(length - recent, length)) | set(union[:middle])
