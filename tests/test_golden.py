"""Whole models against the logits that transformers computed for the reference checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_forward

from tmac_llm import kernels
from tmac_llm.convert import convert
from tmac_llm.load import load_decoder
from tmac_llm.model.decoder import Decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel

BITNET = ("bitnet_offline", "bitnet_online", "llama_bitlinear")
DENSE = (
    "llama_dense_f32",
    "llama_dense_bf16_sharded",
    "llama3_rope",
    "yarn_rope",
    "llama_attention_bias",
    "qwen2",
    "qwen3",
    "mistral_sliding",
    "llama_linear_rope_old_config",
)
# bitnet_online sits on a rounding tie: see the tolerances of the reference.
BOUND = dict.fromkeys(DENSE, 1e-4) | dict.fromkeys(BITNET, 1e-3) | {"bitnet_online": 5e-3}


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def token_ids(checkpoint: Path) -> np.ndarray:
    return np.array(json.loads((checkpoint / "input_ids.json").read_text()), np.int64).reshape(-1)


def step_by_step(decoder: Decoder, ids: np.ndarray) -> np.ndarray:
    cache = KVCache(decoder.config, len(ids))
    return np.concatenate([decoder.forward(ids[i : i + 1], cache).copy() for i in range(len(ids))])


def open_converted(checkpoint: Path, out: Path, **options: object) -> tuple[PackedModel, Decoder]:
    convert(checkpoint, out, **options)
    model = PackedModel.open(out)
    return model, load_decoder(model)


@pytest.mark.parametrize("spelling", ["config.json", "config.v4.json"])
@pytest.mark.parametrize("name", [*DENSE, *BITNET])
def test_logits_of_transformers(name: str, spelling: str, golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / name
    if spelling != "config.json":
        if not (source / spelling).exists():
            pytest.skip("this checkpoint has one spelling only")
        source = Path(shutil.copytree(source, tmp_path / "source"))
        os.replace(source / spelling, source / "config.json")
    options = {"head_bits": 16} if name in BITNET else {"bits": 16}
    _, decoder = open_converted(source, tmp_path / "packed", **options)
    ids, expected = token_ids(source), np.load(source / "logits_fp32.npy")
    at_once = decoder.forward(ids, KVCache(decoder.config, len(ids)), logits="all")
    for found in (at_once, step_by_step(decoder, ids)):
        assert relative_rms(found, expected) <= BOUND[name]
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("name", DENSE)
def test_quantised_equals_dequantised(name: str, bits: int, golden_dir: Path, tmp_path: Path) -> None:
    """The engine against a float64 pass over the weights it stored: only int8 tables lie between.

    A linear adds an NMSE of at most 1e-4 (tests/test_kernels.py). The residual stream collects those of all linears
    before it: four per layer, three layers and the head make sqrt(13e-4) = 0.036 if no layer amplifies; attention of
    these sharp random models does, by up to four.
    """
    model, decoder = open_converted(golden_dir / name, tmp_path / "packed", bits=bits, group_size=32, head_bits=8)
    ids = token_ids(golden_dir / name)
    expected = reference_forward.logits(model.config, dequantised(model), ids)
    found = decoder.forward(ids, KVCache(decoder.config, len(ids)), logits="all")
    assert relative_rms(found, expected) <= 0.15
    assert relative_rms(found, expected) > 1e-6  # tables were in use


def dequantised(model: PackedModel):
    """Weights by name as the packed model means them."""

    def weight(name: str) -> np.ndarray | None:
        matrix = name.removesuffix(".weight")
        shape = model.shape(matrix) if name.endswith(".weight") else None
        if shape is not None:
            return kernels.dequantize_rows(shape, model.tiles(matrix), np.arange(shape.m, dtype=np.int32))
        return model.tensor(name) if model.has(name) else None

    return weight


@pytest.mark.parametrize("name", BITNET)
def test_bitnet_is_lossless(name: str, golden_dir: Path, tmp_path: Path) -> None:
    """The integer recipe in float64 and the engine differ by float32 rounding, and by nothing else."""
    model, decoder = open_converted(golden_dir / name, tmp_path / "packed", head_bits=16)
    ids = token_ids(golden_dir / name)
    expected = reference_forward.logits(model.config, dequantised(model), ids)
    found = decoder.forward(ids, KVCache(decoder.config, len(ids)), logits="all")
    assert relative_rms(found, expected) <= (5e-3 if name == "bitnet_online" else 1e-5)


GREEDY = """
import sys, numpy as np
from tmac_llm import kernels
from tmac_llm.load import load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.packed.container import PackedModel
kernels.set_threads(int(sys.argv[1]))
for path in sys.argv[2:]:
    decoder = load_decoder(PackedModel.open(path))
    cache, ids = KVCache(decoder.config, 96), [5, 7, 11]
    row = decoder.forward(np.array(ids), cache)
    for _ in range(64):
        ids.append(int(row[-1].argmax()))
        row = decoder.forward(np.array(ids[-1:]), cache)
    print(*ids)
"""


def test_same_tokens_on_every_isa_and_thread_count(golden_dir: Path, tmp_path: Path) -> None:
    packed = []
    for name in (*DENSE, *BITNET):
        packed.append(str(tmp_path / name))
        convert(golden_dir / name, packed[-1], **({} if name in BITNET else {"bits": 2, "group_size": 32}))
    isas = [isa.name for isa in kernels.isas() if isa.supported]
    texts = {}
    for isa, threads in [(isa, 2) for isa in isas] + [(isas[0], 1), (isas[0], 5)]:
        run = subprocess.run(
            [sys.executable, "-c", GREEDY, str(threads), *packed],
            env={**os.environ, "TMAC_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        texts[isa, threads] = run.stdout
    first = next(iter(texts.values()))
    assert len(first.splitlines()) == len(packed)
    assert [key for key, text in texts.items() if text != first] == []
