#!/usr/bin/env python3
"""tmac-llm and llama.cpp on the same machine, the same shapes, in turn: prefill and decode, with ratios.

    pip install llama-cpp-python gguf       # built from source it uses every instruction of this CPU
    scripts/compare_peers.py --shape llama-2-7b --pairs 2:Q2_K,4:Q4_0 --threads 1,2

Both run random weights: tmac-llm through its synthetic models, llama.cpp from a GGUF file that this script
writes (random codes, sane scales, architecture llama without a vocabulary). Each measurement is a process of its
own, A B A B, so that drift of a shared machine hits both; the table shows medians and the median ratio of the
rounds. Embedding and output head have --head-bits bits here and Q6_K there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

QUANTS = {"Q2_K", "Q4_0", "TQ1_0", "TQ2_0", "Q8_0", "Q6_K", "Q3_K", "Q4_K"}
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


def main() -> None:
    """Parse arguments, run all pairs, print the table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama-2-7b", help="a name of `tmac-llm list --known`")
    parser.add_argument("--pairs", default="2:Q2_K", help="BITS:QUANT list; t:QUANT is our ternary")
    parser.add_argument("--threads", default="1,2", help="thread counts")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prefill test")
    parser.add_argument("--generate", type=int, default=16, help="tokens of the decode test")
    parser.add_argument("--rounds", type=int, default=3, help="A B rounds")
    parser.add_argument("--layers", type=int, default=0, help="use only this many layers (0: all), for both")
    parser.add_argument("--head-bits", type=int, default=6)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # this process is the peer: JSON of its job
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for job, work in ((arguments.peer, run_llama_cpp), (arguments.ours, run_tmac)):
        if job:
            print(json.dumps(work(json.loads(job))))
            return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Run every pair at every thread count in turn, and print what came out."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.pairs.split(","):
            bits, quant = pair.split(":")
            if quant not in QUANTS:
                sys.exit(f"error: {quant}: expected one of {', '.join(sorted(QUANTS))}")
            gguf_path = write_gguf(Path(folder) / f"{quant}.gguf", arguments.shape, arguments.layers, quant)
            for threads in map(int, arguments.threads.split(",")):
                rows.append(measure_pair(arguments, bits, quant, gguf_path, threads))
                print_row(rows[-1])
            gguf_path.unlink()
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "shape": arguments.shape, "rows": rows}))


def measure_pair(
    arguments: argparse.Namespace, bits: str, quant: str, gguf_path: Path, threads: int
) -> dict[str, Any]:
    """Medians of both engines, and the median ratio of the rounds."""
    job = {
        "shape": arguments.shape,
        "threads": threads,
        "prompt": arguments.prompt,
        "generate": arguments.generate,
    }
    ours = {**job, "bits": bits, "head_bits": arguments.head_bits, "layers": arguments.layers}
    theirs = {**job, "gguf": str(gguf_path)}
    samples: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(arguments.rounds):
        for side, work in (("ours", ours), ("peer", theirs)):
            done = subprocess.run(
                [sys.executable, __file__, f"--{side}", json.dumps(work)], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"error: {side} failed:\n{done.stderr[-2000:]}")
            samples[side].append(json.loads(done.stdout.splitlines()[-1]))
    row: dict[str, Any] = {"bits": bits, "quant": quant, "threads": threads}
    for test in ("pp", "tg"):
        a, b = ([sample[test] for sample in samples[side]] for side in ("ours", "peer"))
        row[test] = {
            "ours": statistics.median(a),
            "peer": statistics.median(b),
            "ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
        }
    return row


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [f"{row['bits']:>3} bit  {row['quant']:6} {row['threads']} threads"]
    for test in ("pp", "tg"):
        r = row[test]
        cells.append(f"{test}: {r['ours']:7.2f} / {r['peer']:7.2f} tokens/s = {r['ratio']:.2f}x")
    print("   ".join(cells), flush=True)


def run_tmac(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of our engine."""
    import dataclasses

    from tmac_llm import bench, kernels
    from tmac_llm.load import load_decoder
    from tmac_llm.model.config import ModelConfig
    from tmac_llm.resources import known_models
    from tmac_llm.synthetic import SyntheticModel

    kernels.set_threads(job["threads"])
    config = ModelConfig.from_dict(known_models()[job["shape"]].config)
    if job["layers"]:
        config = dataclasses.replace(config, num_hidden_layers=job["layers"])
    ternary = job["bits"] == "t"
    config = dataclasses.replace(config, int8_activations=ternary)
    decoder = load_decoder(SyntheticModel(config, 2 if ternary else int(job["bits"]), 128, job["head_bits"]))
    tests = bench.plan([job["prompt"]], [job["generate"]], [0])
    results = bench.run(decoder, tests, threads=[job["threads"]], repetitions=2)
    return {result.test.name[:2]: max(result.samples_ts) for result in results}


def run_llama_cpp(job: dict[str, Any]) -> dict[str, float]:
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


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
    main()
