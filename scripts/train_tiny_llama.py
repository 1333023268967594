#!/usr/bin/env python3
"""Train a small Llama from scratch on a text and write it as a Hugging Face checkpoint in bfloat16.

The tests' tests/data/tiny-llama, which has learnt enough that worse weights show in its perplexity:

    python scripts/train_tiny_llama.py tests/data/tiny-llama --tokenizer tests/data/tiny-bitnet \
        --text ../shared/data/tinystories/train.txt --max-characters 2000000

A larger one, to measure quantisation on:

    python scripts/train_tiny_llama.py OUT --tokenizer models/default --text ../shared/data/tinystories/train.txt \
        --hidden 256 --intermediate 768 --layers 4 --heads 4 --kv-heads 2 --context 256 --steps 2000

Needs PyTorch (`pip install .[train]`). The same arguments on the same machine give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

SEPARATOR = "<|endoftext|>"
EPS, THETA, WARMUP = 1e-5, 10000.0, 100


class Llama(nn.Module):
    """A Llama with tied embeddings; parameters have the names of the checkpoint, dots as underscores."""

    def __init__(self, arguments: argparse.Namespace, vocab_size: int) -> None:
        super().__init__()
        a = arguments
        self.heads, self.kv_heads, self.head_dim = a.heads, a.kv_heads, a.hidden // a.heads
        self.embedding = nn.Parameter(torch.randn(vocab_size, a.hidden) * 0.02)
        self.norm = nn.Parameter(torch.ones(a.hidden))
        kv = self.kv_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (a.hidden, a.hidden),
            "self_attn.k_proj": (kv, a.hidden),
            "self_attn.v_proj": (kv, a.hidden),
            "self_attn.o_proj": (a.hidden, a.hidden),
            "mlp.gate_proj": (a.intermediate, a.hidden),
            "mlp.up_proj": (a.intermediate, a.hidden),
            "mlp.down_proj": (a.hidden, a.intermediate),
        }
        layers = []
        for _ in range(a.layers):
            layer = nn.ParameterDict()
            for name, (m, k) in shapes.items():
                residual = name.endswith(("o_proj", "down_proj"))
                deviation = (2 * a.layers) ** -0.5 * k**-0.5 if residual else k**-0.5
                layer[name.replace(".", "/")] = nn.Parameter(torch.randn(m, k) * deviation)
            for name in ("input_layernorm", "post_attention_layernorm"):
                layer[name] = nn.Parameter(torch.ones(a.hidden))
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocab)."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self._rotation(ids.shape[1])
        for w in self.layers:
            x = x + self._attend(w, _rms(x, w["input_layernorm"]), cos, sin)
            b = _rms(x, w["post_attention_layernorm"])
            gate, up = F.linear(b, w["mlp/gate_proj"]), F.linear(b, w["mlp/up_proj"])
            x = x + F.linear(F.silu(gate) * up, w["mlp/down_proj"])
        return F.linear(_rms(x, self.norm), self.embedding)

    def _attend(self, w: nn.ParameterDict, a: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, _ = a.shape
        q, k, v = (
            F.linear(a, w[f"self_attn/{part}_proj"]).reshape(batch, n, -1, self.head_dim).transpose(1, 2)
            for part in "qkv"
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(heads.transpose(1, 2).reshape(batch, n, -1), w["self_attn/o_proj"])

    def _rotation(self, n: int) -> tuple[Tensor, Tensor]:
        frequencies = THETA ** (-torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        angles = torch.outer(torch.arange(n).float(), frequencies)
        angles = torch.cat((angles, angles), dim=1)
        return angles.cos(), angles.sin()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, bfloat16, by its name in the checkpoint."""
        stored = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for i, layer in enumerate(self.layers):
            for name, parameter in layer.items():
                stored[f"model.layers.{i}.{name.replace('/', '.')}.weight"] = parameter
        return {name: p.detach().bfloat16().contiguous() for name, p in stored.items()}


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def token_stream(tokenizer: Path, texts: list[Path], max_characters: int | None) -> np.ndarray:
    """int64 ids of all documents, one after the other, bos before each where the tokenizer adds it."""
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    text = "".join(path.read_text() + SEPARATOR for path in texts)[:max_characters]
    documents = [document.strip() for document in text.split(SEPARATOR)]
    return np.concatenate([np.array(e.ids, np.int64) for e in encoder.encode_batch(documents) if e.ids])


def train(model: Llama, ids: np.ndarray, bos: int | None, arguments: argparse.Namespace) -> None:
    """AdamW with a cosine schedule over windows at random places, each with bos in front as in evaluation."""
    a, rng, start = arguments, np.random.default_rng(arguments.seed), time.monotonic()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95))
    recent = 0.0
    for step in range(a.steps):
        done = max(step - WARMUP, 0) / max(a.steps - WARMUP, 1)
        rate = a.lr * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * done) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = rng.integers(0, len(ids) - a.context - 1, a.batch)
        windows = torch.from_numpy(np.stack([ids[i : i + a.context + 1] for i in at]))
        if bos is not None:
            windows[:, 0] = bos
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += float(loss.detach()) / 100
        if step % 100 == 99:
            print(f"step {step + 1}: loss {recent:.3f}, {time.monotonic() - start:.0f} s", file=sys.stderr)
            recent = 0.0


def write(model: Llama, arguments: argparse.Namespace, bos: int | None) -> None:
    """config.json, model.safetensors and the tokenizer's files."""
    a, out = arguments, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.tensors(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(model.embedding),
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "max_position_embeddings": 1024,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": json.loads((a.tokenizer / "config.json").read_text())["eos_token_id"],
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(a.tokenizer / name, out / name)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer and config")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--max-characters", type=int, help="of the texts; default all")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    config = json.loads((arguments.tokenizer / "config.json").read_text())
    ids = token_stream(arguments.tokenizer, arguments.text, arguments.max_characters)
    print(f"{len(ids)} tokens of text", file=sys.stderr)
    model = Llama(arguments, config["vocab_size"])
    bos = int(ids[0]) if ids[0] == config.get("bos_token_id") else None
    train(model, ids, bos, arguments)
    write(model, arguments, bos)


if __name__ == "__main__":
    main()
