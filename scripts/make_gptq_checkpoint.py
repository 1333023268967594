#!/usr/bin/env python3
"""Write a synthetic GPTQ checkpoint of Llama-2-7B's shapes, to measure its conversion without a download.

    scripts/make_gptq_checkpoint.py DIR [--layers 4] [--bits 4] [--vocab-size 32000] [--seed 0]
    /usr/bin/time -v tmac-llm convert DIR OUT

Codes and zero points are random, groups have 128 inputs. All 32 layers of 4 bits take 3.9 GB; embedding and
output head are float16, and quantising those two is most of the work of a short model: a small --vocab-size
shows the layers alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from make_large_checkpoint import HEADS, HIDDEN, INNER
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

GROUP_SIZE = 128


def add_linear(
    tensors: dict[str, np.ndarray], name: str, n: int, k: int, bits: int, rng: np.random.Generator
) -> None:
    """The GPTQ tensors of a linear of k inputs and n outputs."""
    groups = k // GROUP_SIZE
    for part, shape in (("qweight", (k * bits // 32, n)), ("qzeros", (groups, n * bits // 32))):
        tensors[f"{name}.{part}"] = rng.integers(-(2**31), 2**31, shape, np.int32)
    tensors[f"{name}.scales"] = rng.uniform(0.001, 0.01, (groups, n)).astype(np.float16)
    tensors[f"{name}.g_idx"] = (np.arange(k) // GROUP_SIZE).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 8), default=4)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    tensors: dict[str, np.ndarray] = {"model.norm.weight": np.ones(HIDDEN, np.float16)}
    for name in ("model.embed_tokens", "lm_head"):
        table = rng.standard_normal((arguments.vocab_size, HIDDEN), np.float32) * np.float32(0.02)
        tensors[f"{name}.weight"] = table.astype(np.float16)
    for i in range(arguments.layers):
        layer = f"model.layers.{i}"
        for name in ("q", "k", "v", "o"):
            add_linear(tensors, f"{layer}.self_attn.{name}_proj", HIDDEN, HIDDEN, arguments.bits, rng)
        add_linear(tensors, f"{layer}.mlp.gate_proj", INNER, HIDDEN, arguments.bits, rng)
        add_linear(tensors, f"{layer}.mlp.up_proj", INNER, HIDDEN, arguments.bits, rng)
        add_linear(tensors, f"{layer}.mlp.down_proj", HIDDEN, INNER, arguments.bits, rng)
        for name in ("input", "post_attention"):
            tensors[f"{layer}.{name}_layernorm.weight"] = np.ones(HIDDEN, np.float16)
    arguments.directory.mkdir(parents=True)
    save_file(tensors, arguments.directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arguments.vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "gptq",
            "bits": arguments.bits,
            "group_size": GROUP_SIZE,
            "desc_act": False,
            "sym": False,
            "checkpoint_format": "gptq",
        },
    }
    (arguments.directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.save(str(arguments.directory / "tokenizer.json"))


if __name__ == "__main__":
    main()
