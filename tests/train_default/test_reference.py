"""The embedded model run by tmac-llm agrees with PyTorch's float32 result on the same files.

reference_logits.npz is written by scripts/train_default/export.py: per prompt the token ids, the logits of
the last four positions, and the greedy continuation (64 tokens, or fewer where the answer ends).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tmac_llm
from tmac_llm import resources

REFERENCE = Path(__file__).parent / "reference_logits.npz"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    packed = tmp_path_factory.mktemp("packed") / "default"
    tmac_llm.convert(resources.default_model(), packed, head_bits=16)
    return tmac_llm.load(packed, tables="exact")


@pytest.mark.parametrize("i", range(3))
def test_logits_agree_with_torch(llm, i):
    with np.load(REFERENCE) as reference:
        ids, expected = reference[f"ids_{i}"], reference[f"logits_{i}"]
    got = llm.logits(ids)[-len(expected) :]
    assert np.linalg.norm(got - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("i", range(3))
def test_greedy_text_agrees_with_torch(llm, i):
    with np.load(REFERENCE) as reference:
        prompt, expected = str(reference[f"prompt_{i}"]), reference[f"greedy_{i}"].tolist()
    stream = llm.chat_stream([{"role": "user", "content": prompt}], temperature=0, max_tokens=len(expected))
    text = "".join(stream)
    assert text.strip() == llm.tokenizer.decode([token for token in expected if token != 2]).strip()
