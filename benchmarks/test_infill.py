"""What a proposal costs under a grammar: `pytest benchmarks/test_infill.py -s`.

Tokens of a text are committed in random order, as a diffusion model does; each commit asks whether what is there can be
completed. Processor time, so that other work beside it counts little.
"""

import itertools
import random
import statistics
import time

import pytest

from tokops.grammar.infill import InfillGrammar
from tokops.grammar.infill_canvas import Canvas

JSON = (
    '{"id": 17, "tags": ["a", "b\\u00e9"], "at": {"x": -1.5e3, "y": null, "deep": [[], {}, [true, false]]}}'
)
CPP = """#include <map>
#include <string>
#include <vector>
std::map<std::string, std::vector<int>> index_of(std::vector<std::string> words) {
    std::map<std::string, std::vector<int>> out;
    for (size_t i = 0; i < words.size(); ++i) {
        if (words[i].empty()) continue;
        out[words[i]].push_back((int)i);  // every place
    }
    return out;
}
"""


@pytest.mark.parametrize(("name", "text"), [("json", JSON), ("cpp", CPP)])
def test_commits(name, text):
    rng = random.Random(0)
    cuts = sorted({0, len(text), *rng.sample(range(1, len(text)), len(text) // 4)})
    pieces = [text[i:j].encode() for i, j in itertools.pairwise(cuts)]
    tokens = list(dict.fromkeys(pieces))
    grammar = InfillGrammar.builtin(name)
    times = []
    for _ in range(3):
        canvas = Canvas(grammar.checker(), tokens, len(pieces))
        order = list(range(len(pieces)))
        rng.shuffle(order)
        for position in order:
            start = time.process_time()
            assert canvas.commit(position, tokens.index(pieces[position]))
            times.append((time.process_time() - start) * 1e3)
    cut = statistics.quantiles(times, n=10)
    print(
        f"\n{name}: {len(text)} bytes, {len(pieces)} tokens: "
        f"median {statistics.median(times):.2f} ms, 90 % {cut[-1]:.2f} ms, longest {max(times):.2f} ms (bar 1 to 10)"
    )
