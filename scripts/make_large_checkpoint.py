#!/usr/bin/env python3
"""Write a synthetic bfloat16 checkpoint of Llama-2-7B's shapes, to measure conversion without a download.

    scripts/make_large_checkpoint.py DIR [--layers 4] [--seed 0]
    /usr/bin/time -v tmac-llm convert DIR OUT --bits 2

The weights are Gaussian with a few outliers, like those of trained models; the full 32 layers take 13.5 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, models

VOCAB, HIDDEN, INNER, HEADS = 32000, 4096, 11008, 32
STANDARD_DEVIATION = 0.02
POOL_WEIGHTS = 1 << 24


def tensor_shapes(first: int, last: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of layers [first, last), and of what surrounds all layers."""
    if first == 0:
        yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(first, last):
        layer = f"model.layers.{i}"
        for name in ("q", "k", "v", "o"):
            yield f"{layer}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{layer}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
    if last == layers:
        yield "model.norm.weight", (HIDDEN,)
        yield "lm_head.weight", (VOCAB, HIDDEN)


def make_pool(rng: np.random.Generator) -> np.ndarray:
    """bfloat16 (POOL_WEIGHTS,): one weight in a thousand is ten times larger."""
    weights = rng.standard_normal(POOL_WEIGHTS, np.float32) * STANDARD_DEVIATION
    weights[rng.integers(0, POOL_WEIGHTS, POOL_WEIGHTS // 1000)] *= 10
    return weights.astype(ml_dtypes.bfloat16)


def write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: np.ndarray, rng: np.random.Generator
) -> int:
    """Write a safetensors file; each tensor repeats the pool from a random place on. Returns its bytes."""
    header, begin = {}, 0
    for name, shape in tensors:
        end = begin + int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors:
            left = int(np.prod(shape))
            if len(shape) == 1:
                file.write(np.ones(left, ml_dtypes.bfloat16).tobytes())
                continue
            start = int(rng.integers(0, POOL_WEIGHTS))
            while left:
                part = pool[start : start + left]
                file.write(part.view(np.uint8).data)
                left -= part.size
                start = 0
    return begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    directory, layers = arguments.directory, arguments.layers
    per_shard = 8
    need = (layers * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER) + 2 * VOCAB * HIDDEN) * 2
    directory.mkdir(parents=True)
    free = shutil.disk_usage(directory).free
    if free < need:
        raise SystemExit(f"{directory}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    rng = np.random.default_rng(arguments.seed)
    pool = make_pool(rng)
    starts = range(0, layers, per_shard)
    weight_map, total = {}, 0
    for i, first in enumerate(starts):
        name = f"model-{i + 1:05d}-of-{len(starts):05d}.safetensors"
        tensors = list(tensor_shapes(first, min(first + per_shard, layers), layers))
        total += write_shard(directory / name, tensors, pool, rng)
        weight_map |= {tensor: name for tensor, _ in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")).save(
        str(directory / "tokenizer.json")
    )
    print(f"{directory}: {layers} layers, {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
