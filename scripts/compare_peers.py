#!/usr/bin/env python3
"""tmac-llm and other engines on the same machine, the same shapes, in turn, with ratios.

    pip install llama-cpp-python gguf       # built from source it uses every instruction of this CPU
    scripts/compare_peers.py --shape llama-2-7b --pairs 2:Q2_K,4:Q4_0 --threads 1,2

    pip install onnxruntime onnx
    scripts/compare_peers.py --shape llama-2-7b --pairs 4:MatMulNBits,2:MatMulNBits,2:MatMulNBits-lut -n 1,256

Whole models against llama.cpp: prefill and decode of random weights; tmac-llm through its synthetic models, llama.cpp
from a GGUF file that this script writes (random codes, sane scales, architecture llama without a vocabulary). Embedding
and output head have --head-bits bits here and Q6_K there. Single matrices against ONNX Runtime's MatMulNBits (-lut:
its table lookup kernels) with groups of 128; with one token the weights are streamed from memory.

Each measurement is a process of its own, A B A B, so that drift of a shared machine hits both; the table shows medians
and the median ratio of the rounds.
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
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from peers import llama_cpp, onnxruntime_matmul, tmac

MATMUL = "MatMulNBits"
GROUP_SIZE = 128
WORKS: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "tmac": tmac.run_model,
    "tmac-matrix": tmac.run_matrix,
    "llama.cpp": llama_cpp.run,
    "onnxruntime": onnxruntime_matmul.run,
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
    parser.add_argument("-n", default="1,256", help="tokens at once of the matrix tests")
    parser.add_argument("--rounds", type=int, default=3, help="A B rounds")
    parser.add_argument("--layers", type=int, default=0, help="use only this many layers (0: all), for both")
    parser.add_argument("--head-bits", type=int, default=6)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # this process does one job: JSON of it
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(WORKS[arguments.work[0]](json.loads(arguments.work[1]))))
        return
    names = [pair.partition(":")[2] for pair in arguments.pairs.split(",")]
    for name in names:
        if name not in llama_cpp.SCALE_OFFSETS and name.removesuffix("-lut") != MATMUL:
            known = ", ".join([*llama_cpp.SCALE_OFFSETS, MATMUL, f"{MATMUL}-lut"])
            sys.exit(f"error: {name or arguments.pairs}: expected BITS:QUANT, QUANT one of {known}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.pairs.split(","):
            bits, _, quant = pair.partition(":")
            compare = compare_models if quant in llama_cpp.SCALE_OFFSETS else compare_matrices
            for row in compare(arguments, bits, quant, Path(folder)):
                print_row(row)
                rows.append(row)
    date = time.strftime("%Y-%m-%d")
    print(json.dumps({"date": date, "versions": versions(), "shape": arguments.shape, "rows": rows}))


def compare_models(
    arguments: argparse.Namespace, bits: str, quant: str, folder: Path
) -> Iterator[dict[str, Any]]:
    """Prefill and decode of a whole model beside llama.cpp, at each number of threads."""
    path = llama_cpp.write_gguf(folder / f"{quant}.gguf", arguments.shape, arguments.layers, quant)
    for threads in map(int, arguments.threads.split(",")):
        job = {
            "shape": arguments.shape,
            "threads": threads,
            "prompt": arguments.prompt,
            "generate": arguments.generate,
        }
        ours = {**job, "bits": bits, "head_bits": arguments.head_bits, "layers": arguments.layers}
        theirs = {**job, "gguf": str(path)}
        samples = interleaved(arguments.rounds, ("tmac", ours), ("llama.cpp", theirs))
        yield {
            "what": f"{bits:>3} bit  {quant:7}",
            "threads": threads,
            "tests": {
                test: ratio([(a[test], b[test]) for a, b in samples], "tokens/s") for test in ("pp", "tg")
            },
        }
    path.unlink()


def compare_matrices(
    arguments: argparse.Namespace, bits: str, quant: str, _folder: Path
) -> Iterator[dict[str, Any]]:
    """Products of each matrix of a layer beside ONNX Runtime, at each number of threads."""
    for name, m, k in tmac.matrices(arguments.shape):
        for threads in map(int, arguments.threads.split(",")):
            tests = {}
            for n in map(int, arguments.n.split(",")):
                job = {
                    "matrix": name,
                    "m": m,
                    "k": k,
                    "n": n,
                    "bits": bits,
                    "group_size": GROUP_SIZE,
                    "threads": threads,
                    "lut": quant.endswith("-lut"),
                }
                samples = interleaved(arguments.rounds, ("tmac-matrix", job), ("onnxruntime", job))
                speeds = [tuple(m * k * n / side["seconds"] / 1e9 for side in pair) for pair in samples]
                tests[f"n={n}"] = ratio(speeds, "GMAC/s")
            yield {"what": f"{name:13} {bits} bit  {quant}", "threads": threads, "tests": tests}


def interleaved(
    rounds: int, ours: tuple[str, dict[str, Any]], theirs: tuple[str, dict[str, Any]]
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """What both sides measured in each round."""
    samples = []
    for _ in range(rounds):
        pair = []
        for engine, job in (ours, theirs):
            command = [sys.executable, __file__, "--work", engine, json.dumps(job)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"error: {engine} failed:\n{done.stderr[-2000:]}")
            pair.append(json.loads(done.stdout.splitlines()[-1]))
        samples.append((pair[0], pair[1]))
    return samples


def ratio(speeds: list[tuple[float, ...]], unit: str) -> dict[str, Any]:
    """Medians of both sides, and the median ratio of the rounds."""
    return {
        "ours": statistics.median(ours for ours, _ in speeds),
        "peer": statistics.median(theirs for _, theirs in speeds),
        "ratio": statistics.median(ours / theirs for ours, theirs in speeds),
        "unit": unit,
    }


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [f"{row['what']} {row['threads']} threads"]
    for test, r in row["tests"].items():
        cells.append(f"{test}: {r['ours']:7.2f} / {r['peer']:7.2f} {r['unit']} = {r['ratio']:.2f}x")
    print("   ".join(cells), flush=True)


def versions() -> dict[str, str]:
    """The installed versions of the engines."""
    found = {}
    for name in ("tmac-llm", "llama-cpp-python", "onnxruntime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")
    main()
