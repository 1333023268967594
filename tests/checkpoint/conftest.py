"""Small checkpoints written byte by byte, independently of the reader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = ml_dtypes.bfloat16
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "int32": "I32",
    "float64": "F64",
}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LINEARS = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}


def safetensors_bytes(tensors: dict[str, Any], pad: int = 0) -> bytes:
    """A safetensors file; `pad` spaces after the header move the data off any alignment."""
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode() + b" " * pad
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)


def dense_tensors(dtype: Any = np.float32, seed: int = 0) -> dict[str, Any]:
    """Every tensor that CONFIG asks for, random."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, 32), "lm_head.weight": (40, 32)}
    shapes |= {f"model.layers.0.{n}.weight": s for n, s in LINEARS.items()}
    shapes |= {f"model.layers.0.{n}_layernorm.weight": (32,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (32,)
    return {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}


class Files:
    """Writes checkpoints into one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self, **changes: Any) -> None:
        (self.path / "config.json").write_text(json.dumps({**CONFIG, **changes}))

    def weights(self, tensors: dict[str, Any], name: str = "model.safetensors") -> None:
        (self.path / name).write_bytes(safetensors_bytes(tensors))

    def index(self, weight_map: Any) -> None:
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def write(self, tensors: dict[str, Any], **changes: Any) -> Path:
        self.config(**changes)
        self.weights(tensors)
        return self.path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def tensors() -> Callable[..., dict[str, Any]]:
    return dense_tensors


@pytest.fixture
def linears() -> dict[str, tuple[int, int]]:
    return {f"model.layers.0.{name}": shape for name, shape in LINEARS.items()}


@pytest.fixture
def to_safetensors() -> Callable[..., bytes]:
    return safetensors_bytes
