"""Two methods at once: TidalDecode chooses which tokens are read, a storing method decides how they are kept."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokops.kv.plan import Plan, Row
from tokops.kv.run import Result, Stage
from tokops.kv.run import run as run_stores
from tokops.kv.stores import known, parse

#: The whole context is one document, of which the end is predicted a few tokens a forward, each choosing its own.
FULL = Plan(tokens=8064, stretch=128, chunk=16, needles=0, rounds=12)
QUICK = Plan(tokens=2048, stretch=64, chunk=16, needles=0, rounds=5)

_STORES = ("Dense", "QuantizedKV(bits=4)", "MiKV(high=8, low=4)")
_SELECTION = "TidalDecode(budget=512)"


def entries() -> list[str]:
    """Every store alone and under TidalDecode; stores that are not in this version are left out."""
    there = [store for store in _STORES if store.partition("(")[0] in known()]
    return [label for store in there for label in (store, f"{_SELECTION} + {store}")]


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, plan: Plan, stage: Stage
) -> Result:
    """Measure all of :func:`entries`; arguments as those of :func:`tokops.kv.run.run`."""
    return run_stores(model, tokenizer, text, parse(", ".join(entries())), plan, stage)


def table(result: Result) -> Table:
    """One line per composition."""
    plan = result.plan
    out = Table(
        title=f"a selection over stores, {result.model} after {plan.tokens} tokens",
        caption="tokens read: cached tokens that attention reads per step, all layers together; MB read: their "
        f"bytes as they are kept. KL (nats) and top-1: next token against Dense over the last {plan.stretch} tokens.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    out.add_column("methods")
    for name in ("MB held", "tokens read", "MB read", "tokens/s", "x Dense", "KL", "top-1"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        out.add_row(row.label, *(_numbers(row) if row.refused is None else [escape(row.refused)]))
    return out


def _numbers(row: Row) -> tuple[str, ...]:
    found, held, read = row.quality, row.kv_bytes, row.kv_bytes_read
    assert found is not None
    assert held is not None
    assert read is not None
    return (
        f"{held / 1e6:.1f}",
        f"{row.tokens_read:,.0f}",
        f"{read / 1e6:.2f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.ratio:.2f}",
        f"{found.kl:.1e}",
        f"{found.top1:.1%}",
    )
