"""Fixtures of the transformers side."""

import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

from tiny_models import build


@pytest.fixture
def tiny():
    """Builds a tiny model of a family."""
    return build


@pytest.fixture
def prompts():
    """Two prompts, the first padded on the left: ids and attention mask."""
    ids = torch.randint(3, 97, (2, 21), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    ids[0, :6] = 0
    return {"input_ids": ids, "attention_mask": mask}
