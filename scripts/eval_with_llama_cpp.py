#!/usr/bin/env python3
"""Add llama.cpp's perplexity of tests/data/tiny-llama to its evaluation.json, written by make_eval_reference.py.

    pip install llama-cpp-python gguf safetensors tokenizers
    python scripts/eval_with_llama_cpp.py tests/data/tiny-llama

The checkpoint becomes a float32 GGUF without a vocabulary; llama.cpp runs each window of the text, and the logits of
the second half are averaged as its perplexity tool does. Nothing of tmac_llm is used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as ll
import ml_dtypes  # noqa: F401  (makes bfloat16 known to numpy)
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(directory: Path, config: dict[str, Any], path: Path) -> None:
    """The checkpoint in float32; pairs of a rotation lie side by side there, not half a head apart."""
    tensors = {name: t.astype(np.float32) for name, t in load_file(directory / "model.safetensors").items()}
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads, hidden = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size")
    )
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    for i in range(config["num_hidden_layers"]):
        for name, other in NAMES.items():
            tensor = tensors[f"model.layers.{i}.{name}.weight"]
            if other in ("attn_q", "attn_k"):
                n = heads if other == "attn_q" else kv_heads
                tensor = tensor.reshape(n, 2, -1, hidden).swapaxes(1, 2).reshape(-1, hidden)
            writer.add_tensor(f"blk.{i}.{other}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def windows(directory: Path, bos: int, context: int) -> np.ndarray:
    """(n, context) ids, the first of each bos."""
    text = (directory / "stories.txt").read_text().removesuffix("\n")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = np.array([bos, *tokenizer.encode(text, add_special_tokens=False).ids])
    cut = ids[: len(ids) // context * context].reshape(-1, context).copy()
    cut[:, 0] = bos
    return cut


def losses(path: Path, cut: np.ndarray, vocab_size: int) -> np.ndarray:
    """-ln p of the true token at the scored positions of all windows."""
    context = cut.shape[1]
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.n_threads = params.n_threads_batch = 1
    context_of = ll.llama_init_from_model(model, params)
    batch = ll.llama_batch_init(context, 0, 1)
    found = []
    for window in cut:
        ll.llama_memory_clear(ll.llama_get_memory(context_of), True)
        batch.n_tokens = context
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
            batch.seq_id[i][0] = 0
        if ll.llama_decode(context_of, batch):
            raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(ll.llama_get_logits(context_of), (context, vocab_size))
        rows = logits[context // 2 : context - 1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        found.append(-log_p[np.arange(len(rows)), window[context // 2 + 1 :]])
    return np.concatenate(found)


def main() -> None:
    """Read the command line, add to the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="checkpoint")
    directory = parser.parse_args().directory
    config = json.loads((directory / "config.json").read_text())
    reference = directory / "evaluation.json"
    known = json.loads(reference.read_text())
    cut = windows(directory, config["bos_token_id"], known["context"])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(directory, config, path)
        nll = losses(path, cut, config["vocab_size"])
    error = float(np.sqrt((np.mean(nll**2) - np.mean(nll) ** 2) / (len(nll) - 1)))  # as its tool adds it up
    known["llama_cpp"] = {
        "made_by": f"llama-cpp-python {metadata.version('llama-cpp-python')}",
        "n_scored": len(nll),
        "nll": {"value": float(nll.mean()), "error": error},
    }
    reference.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
