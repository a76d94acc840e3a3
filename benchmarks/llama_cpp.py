"""llama.cpp's CPU attention beside ours: one token that attends to 8128, 9 query and 3 KV heads of 64, 2 threads.

    python -m venv LLAMA && LLAMA/bin/pip install xllamacpp==2026.10.11549 gguf==0.19.0
    python benchmarks/llama_cpp.py --llama-python LLAMA/bin/python [--length 8128] [--threads 2] [--json FILE]

llama.cpp comes as the wheel of xllamacpp, whose Python side has the server and no single op. So attention is the
difference of two contexts of a whole model: 30 layers of random f16 weights with SmolLM2-135M's heads, and little else
(ffn 64, vocabulary 512), which the script writes. Flash attention is on. The server, one process for f16 keys and
values and one for q8_0, has two slots: one holds a prompt of 8128 tokens and one of 64. Rounds ask each in turn for 33
tokens behind the cached prompt, the server times the 32 passes between them, and the median pass of the long slot less
that of the short one, by 30, is a layer's attention to the 8064 tokens of difference. Two servers in one process on two
processors added 7 ms to every pass, presumably since OpenMP hardly spins at barriers once its threads outnumber the
processors.

Ours is the same difference: packed_decode over int8 pages (a scale and a minimum for 64 dimensions; q8_0 has a scale
for 32), with the query as it is and in 8 bits, which is what llama.cpp makes of it before q8_0 keys; paged_decode over
bf16 pages stands for f16. "30 layers" calls as many caches in turn, so that they come from memory as a model's do;
"one cache" calls one again and again, which stays in the processor's cache. The wheel is built for AVX2, so ours runs
twice: held to AVX2, and with all that the processor has.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

LAYERS, HEADS, KV_HEADS, DIM = 30, 9, 3, 64
WIDTH, FFN, VOCABULARY = HEADS * DIM, 64, 512
SHORT, TOKENS = 64, 32
CACHES = ("f16", "q8_0")


def write_model(path: pathlib.Path, context: int) -> None:
    """A llama of random weights."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(context)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM)
    writer.add_vocab_size(VOCABULARY)
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(f"\u2581{i}", kinds.NORMAL) for i in range(len(tokens), VOCABULARY)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    rng = np.random.default_rng(1)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_norm": (WIDTH,), f"blk.{i}.ffn_norm": (WIDTH,)}
        shapes |= {f"blk.{i}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{i}.{name}": (KV_HEADS * DIM, WIDTH) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{i}.{name}": (FFN, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{i}.ffn_down"] = (WIDTH, FFN)
    for name, shape in shapes.items():
        if len(shape) == 1:
            weight = np.ones(shape, np.float32)
        else:
            weight = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float16)
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(cache: str, length: int, threads: int, rounds: int) -> dict:
    """Milliseconds of one pass by context; runs where xllamacpp and gguf are installed."""
    import random

    import xllamacpp

    def ask(tokens: int) -> dict:
        request = {"prompt": prompt[:tokens], "n_predict": TOKENS + 1, "temperature": 0, "ignore_eos": True}
        request |= {"id_slot": int(tokens == SHORT), "cache_prompt": True}
        timings = server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == TOKENS + 1, timings
        return timings

    context = -(-(length + TOKENS + 1) // 256) * 256
    prompt = random.Random(1).choices(range(3, VOCABULARY), k=length)
    params = xllamacpp.CommonParams()
    params.n_parallel, params.n_ctx = 2, 2 * context  # a context for each slot
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache.upper()}")
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib, params.n_ctx_checkpoints, params.fit_params = 0, 0, False
    params.warmup = False
    params.verbosity = 0
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder, "model.gguf")
        write_model(model, context)
        params.model.path = str(model)
        server = xllamacpp.Server(params)
        taken: dict[int, list[float]] = {length: [], SHORT: []}
        for tokens in taken:
            print(
                f"{cache} L{tokens}: prompt of {ask(tokens)['prompt_ms'] / 1e3:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        for _ in range(rounds):
            for tokens, passes in taken.items():
                timings = ask(tokens)
                assert timings["prompt_n"] == 1, timings  # the rest of the prompt is cached
                passes.append(timings["predicted_ms"] / TOKENS)  # from the first token to the last
    return {
        "version": xllamacpp.__version__,
        "system": xllamacpp.get_system_info(),
        "passes": {f"{cache} L{tokens}": passes for tokens, passes in taken.items()},
        "layer_ms": {cache: (statistics.median(taken[length]) - statistics.median(taken[SHORT])) / LAYERS},
    }


def ours(length: int, threads: int, rounds: int) -> dict:
    """Milliseconds of one call by kind of attention."""
    import torch

    from tokops.bench.kvcache import packed
    from tokops.bench.run import machine
    from tokops.bench.timing import interleaved, medians

    torch.set_num_threads(threads)
    calls: dict = {}
    for tokens in (length, SHORT):
        works = [packed(1, HEADS, KV_HEADS, DIM, tokens, "int8", True, "cpu") for _ in range(LAYERS)]
        works[0].check()
        kinds = {"int8 pages, 8-bit query": [work.ours for work in works]}
        kinds["int8 pages"] = [work.peers["our exact query"] for work in works]
        kinds["bf16 pages"] = [work.peers["our bf16"] for work in works]
        for kind, layers in kinds.items():
            for where, chosen in (("30 layers", layers), ("one cache", layers[:1] * LAYERS)):
                calls[f"{kind}, {where}", tokens] = lambda chosen=chosen: [call() for call in chosen]
    taken = medians(interleaved(calls, rounds=rounds, seconds=60, warmup=3))
    names = dict.fromkeys(name for name, _ in calls)
    return {
        **machine(),
        "isa": torch.ops.tokops._cpu_isa(),
        "layer_ms": {name: (taken[name, length] - taken[name, SHORT]) / LAYERS * 1e3 for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-python", default=sys.executable, help="a python with xllamacpp and gguf")
    parser.add_argument("--length", type=int, default=8128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path, help="where to write everything that was measured")
    parser.add_argument("--part", choices=(*CACHES, "ours"), help=argparse.SUPPRESS)  # one part, as JSON
    args = parser.parse_args()
    if args.part in CACHES:
        print("\n" + json.dumps(llama(args.part, args.length, args.threads, args.rounds)))
        return
    if args.part == "ours":
        print("\n" + json.dumps(ours(args.length, args.threads, 3 * args.rounds)))
        return

    def run(python: str, part: str, **environment: str) -> dict:
        command = [python, __file__, "--part", part]
        command += [f"--{name}={getattr(args, name)}" for name in ("length", "threads", "rounds")]
        done = subprocess.run(
            command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    results = {
        "tokops, AVX2": run(sys.executable, "ours", TOKOPS_CPU_ISA="avx2"),
        **{f"llama.cpp, {cache}": run(args.llama_python, cache) for cache in CACHES},
        "tokops": run(sys.executable, "ours"),
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    for program, result in results.items():
        print(program, {name: x for name, x in result.items() if name not in ("passes", "layer_ms")})
        for name, passes in result.get("passes", {}).items():
            print(
                f"  {name}: {statistics.median(passes):.3f} ms a pass ({min(passes):.3f} to {max(passes):.3f})"
            )
        for name, ms in result["layer_ms"].items():
            print(f"  {name}: {ms:.4f} ms of attention a layer")


if __name__ == "__main__":
    main()
