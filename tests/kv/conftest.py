"""A tiny model that packs into 4 bit, and texts of sentences."""

import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_models import build, byte_tokenizer

from tokops.kv.plan import Plan

#: A byte is a token, so that needles alone take some 700 of them.
PLAN = Plan(tokens=420, stretch=128, chunk=32, needles=4, needle_tokens=900, rounds=2)


@pytest.fixture(scope="session")
def model():
    sizes = {"vocab_size": 300, "head_dim": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    return build("llama", **sizes, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def text():
    return " ".join(f"Sentence {i} speaks of the number {i * i}." for i in range(60))


@pytest.fixture(scope="session")
def ids(tokenizer, text):
    return tokenizer(text, return_tensors="pt").input_ids[0]


@pytest.fixture
def no_stage():
    return lambda name, total: lambda done: None


@pytest.fixture(scope="session")
def generator():
    return torch.Generator().manual_seed(7)
