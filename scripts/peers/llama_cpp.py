"""llama.cpp on a random model: the GGUF file, and tokens per second through its C interface."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

HEAD_QUANT = "Q6_K"
# Byte offsets of the float16 scales in a block of each type.
SCALE_OFFSETS = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def run(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of llama.cpp, through its C interface."""
    import llama_cpp as ll

    ll.llama_backend_init()
    model_params = ll.llama_model_default_params()
    model = ll.llama_model_load_from_file(job["gguf"].encode(), model_params)
    params = ll.llama_context_default_params()
    params.n_ctx = job["prompt"] + job["generate"] + 8
    params.n_batch = params.n_ubatch = max(job["prompt"], 32)
    params.n_threads = params.n_threads_batch = job["threads"]
    context = ll.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp could not load the file")

    def feed(n: int) -> None:
        tokens = (ll.llama_token * n)(*range(1, n + 1))
        if ll.llama_decode(context, ll.llama_batch_get_one(tokens, n)):
            raise SystemExit("llama_decode failed")
        ll.llama_synchronize(context)

    def timed(n_prompt: int, n_generate: int) -> float:
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        start = time.perf_counter()
        if n_prompt:
            feed(n_prompt)
        for _ in range(n_generate):
            feed(1)
        return (n_prompt + n_generate) / (time.perf_counter() - start)

    best = {}
    for name, work in (("pp", (job["prompt"], 0)), ("tg", (0, job["generate"]))):
        timed(*work)
        best[name] = max(timed(*work) for _ in range(2))
    return best


def write_gguf(path: Path, shape: str, layers: int, quant: str) -> Path:
    """A random model of this shape in architecture llama, all linears in `quant`."""
    import gguf

    from tmac_llm.model.config import ModelConfig
    from tmac_llm.resources import known_models

    config = ModelConfig.from_dict(known_models()[shape].config)
    n_layers = layers or config.num_hidden_layers
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    rng = np.random.default_rng(0)

    def matrix(name: str, m: int, k: int, kind: str) -> None:
        quant_type = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, random_blocks(rng, m, k, kind), raw_dtype=quant_type)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(config.hidden_size, np.float32))

    heads, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, inner = config.hidden_size, config.intermediate_size
    matrix("token_embd.weight", config.vocab_size, hidden, HEAD_QUANT)
    if not config.tie_word_embeddings:
        matrix("output.weight", config.vocab_size, hidden, HEAD_QUANT)
    norm("output_norm.weight")
    for i in range(n_layers):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        for name, m, k in (
            ("attn_q", heads, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, heads),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"blk.{i}.{name}.weight", m, k, quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(rng: np.random.Generator, m: int, k: int, kind: str) -> np.ndarray:
    """uint8 (m, bytes per row): random blocks whose scales keep activations finite."""
    import gguf

    block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if k % block:
        raise SystemExit(f"error: {kind} needs columns in multiples of {block}, found {k}")
    blocks = np.frombuffer(bytearray(rng.bytes(m * k // block * n_bytes)), np.uint8).reshape(-1, n_bytes)
    for offset in SCALE_OFFSETS[kind]:
        blocks[:, offset : offset + 2].view(np.float16)[:] = 0.05 / np.sqrt(k)
    return blocks.reshape(m, -1)
