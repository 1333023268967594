"""The forward pass in pieces against the decoder, and the statistics against sums over recorded inputs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from safetensors.numpy import load_file, save_file

from tmac_llm import calibration
from tmac_llm.calibration import Layer, LayerCalibration
from tmac_llm.checkpoint import open_checkpoint
from tmac_llm.convert import convert
from tmac_llm.load import load_decoder
from tmac_llm.model.kv_cache import KVCache
from tmac_llm.model.linear import DenseLinear, Linear
from tmac_llm.packed.container import PackedModel

N_WINDOWS, CONTEXT = 3, 70
FLOAT_BITNET = {"quantization_config": {"quant_method": "none"}}


class Recorder(Linear):
    """A linear that keeps its inputs."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None = None, *_: object) -> None:
        self.linear = DenseLinear(weight, bias)
        self.m, self.k = self.linear.m, self.linear.k
        self.inputs: list[np.ndarray] = []

    def bind(self, x: np.ndarray, out: np.ndarray) -> Callable[[], None]:
        multiply = self.linear.bind(x, out)

        def call() -> None:
            self.inputs.append(x.copy())
            multiply()

        return call


@dataclass
class Run:
    """What a decoder does: inputs of each linear, (tokens, k), and residual streams before and after layers."""

    linears: list[Recorder]
    streams: list[np.ndarray]

    def linear(self, layer: int, group: int) -> DenseLinear:
        return self.linears[4 * layer + group].linear

    def inputs(self, layer: int, group: int) -> np.ndarray:
        return np.concatenate(self.linears[4 * layer + group].inputs)


def decode(packed: PackedModel, windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Run:
    made: list[Recorder] = []

    def record(*arguments: object) -> Recorder:
        made.append(Recorder(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(sys.modules["tmac_llm.load"], "DenseLinear", record)
    decoder = load_decoder(packed)
    monkeypatch.setattr(sys.modules["tmac_llm.load"], "DenseLinear", DenseLinear)
    streams: list[list[np.ndarray]] = []
    for ids in windows:
        seen: list[np.ndarray] = []
        decoder.forward(
            ids, KVCache(packed.config, CONTEXT), "none", observe=lambda x, seen=seen: seen.append(x.copy())
        )
        streams.append(seen)
    return Run(made, [np.stack(each) for each in zip(*streams, strict=True)])


def perturbed(path: Path, out: Path, rng: np.random.Generator) -> Path:
    """A copy of a checkpoint whose linears differ by a tenth."""
    shutil.copytree(path, out)
    stored = load_file(out / "model.safetensors")
    for name, tensor in stored.items():
        if name.endswith("_proj.weight"):
            stored[name] = tensor * (1 + 0.1 * rng.normal(size=tensor.shape)).astype(np.float32)
    save_file(stored, out / "model.safetensors")
    return out


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "bitnet-online"])
def test_pieces_are_the_decoder_and_sums_those_of_its_inputs(tmp_path, rng, monkeypatch, kind):
    """A checkpoint with other linears stands for the quantised model."""
    monkeypatch.setattr(calibration, "_PANEL", 24)  # several portions
    windows = rng.integers(0, 256, (N_WINDOWS, CONTEXT))
    extra = {"mistral": {"sliding_window": 20}, "bitnet-online": FLOAT_BITNET}.get(kind, {})
    source = write_checkpoint(tmp_path / "float", kind, dtype="f32", **extra).path
    runs = []
    for path in (perturbed(source, tmp_path / "other", rng), source):
        packed = PackedModel.open(convert(path, tmp_path / f"{path.name}-packed", bits=16).path)
        runs.append(decode(packed, windows, monkeypatch))
    quantized, of_float = runs
    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    assert (config.sub_norms, config.int8_activations) == (kind == "bitnet-online", False)
    streams = np.stack([quantized.streams[0], of_float.streams[0]])
    scratch = tuple(np.full(windows.size * config.intermediate_size, np.nan, np.float32) for _ in range(2))

    def close(found: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        expected = a.astype(np.float64).T @ b
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    for i in range(config.num_hidden_layers):
        in_layer = LayerCalibration(
            Layer(config, i, checkpoint.tensor),
            lambda g, i=i: of_float.linear(i, g),
            streams[0],
            streams[1],
            scratch,
        )
        shares: list[float] = []
        before = None
        lacking = (of_float.streams[i] - quantized.streams[i]).reshape(-1, config.hidden_size)
        for g in range(4):
            found = in_layer.collect(g, before, shares.append)
            x, x_float = quantized.inputs(i, g), of_float.inputs(i, g)
            before = quantized.linear(i, g)
            close(found.hessian, x, x)
            close(found.drift, x_float - x, x)
            if g % 2 == 0:
                assert found.residual is None
                continue
            close(found.residual, lacking, x)
            lacking += of_float.linear(i, g)(x_float) - before(x)
        assert sum(shares) == pytest.approx(4)
        in_layer.finish(before)
        for stream, run in zip(streams, runs, strict=True):
            np.testing.assert_allclose(stream, run.streams[i + 1], atol=1e-4)
