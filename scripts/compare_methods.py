#!/usr/bin/env python3
"""Perplexity of a float checkpoint after plain rounding, the scale search and gptq, as a table in Markdown.

    scripts/compare_methods.py CHECKPOINT --calibration train.txt --text held_out.txt --bits 4,3,2 --groups 128,64,32

Rounding is min-max: the extremes of a group fall on the extreme codes. "closes" is the share of the perplexity lost
to rounding, and to the search, that gptq wins back. The embedding and the output head keep 8 bits in all columns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tmac_llm import evaluation, kernels, quantize
from tmac_llm.checkpoint.weights import to_float32
from tmac_llm.convert import convert
from tmac_llm.evaluation import Evaluation
from tmac_llm.kernels import Quantized
from tmac_llm.load import load_decoder
from tmac_llm.packed.container import PackedModel
from tmac_llm.tokenizer import Tokenizer


def min_max(weights: Any, bits: int, group_size: int, zeros: bool, zero: float = 0.0) -> Quantized:
    """Plain rounding in the place of kernels.quantize, with zero points only."""
    assert zeros
    values = to_float32(weights)
    m, k = values.shape
    pad = -k % group_size
    groups = np.pad(values, ((0, 0), (0, pad)), mode="edge").reshape(m, -1, group_size)
    low, high = groups.min(axis=2), groups.max(axis=2)
    flat = high == low  # one value: code 0, zero point -1
    scales = np.where(flat, low, (high - low) / ((1 << bits) - 1)).astype(np.float16)
    safe = np.where(scales != 0, scales, 1).astype(np.float32)
    points = np.where(flat, -1, -low / safe).astype(np.float16)
    codes = np.rint(groups / safe[:, :, None] + points[:, :, None].astype(np.float32))
    codes = np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8).reshape(m, -1)[:, :k]
    return Quantized(np.ascontiguousarray(codes), scales, points, 0.0, 0.0, float(np.vdot(values, values)))


@contextmanager
def rounding() -> Iterator[None]:
    """Conversions inside round plainly."""
    search = kernels.quantize
    quantize.kernels.quantize = min_max
    try:
        yield
    finally:
        quantize.kernels.quantize = search


class Bench:
    """One checkpoint, evaluated on the same windows after every conversion."""

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        a, self._directory = arguments, directory
        self._source, self._calibration = a.checkpoint, a.calibration.read_text()
        self._tokens = a.calibration_tokens
        reference = convert(a.checkpoint, directory / "float", bits=16, head_bits=16)
        self._reference = load_decoder(PackedModel.open(reference.path))
        tokenizer = Tokenizer.from_dir(reference.path)
        ids, bos = evaluation.encode(tokenizer, a.text.read_text(), parse_special=a.special)
        self._windows = evaluation.windows(ids, a.context, bos)[: a.chunks]
        self.float = evaluation.evaluate(self._reference, self._windows)

    def after(self, method: str, bits: int, group_size: int) -> Evaluation:
        """The evaluation of one conversion."""
        out, options = self._directory / "packed", {"bits": bits, "group_size": group_size, "force": True}
        if method == "gptq":
            convert(
                self._source,
                out,
                method="gptq",
                calibration=self._calibration,
                calibration_tokens=self._tokens,
                **options,
            )
        elif method == "search":
            convert(self._source, out, **options)
        else:
            with rounding():
                convert(self._source, out, **options)
        model = load_decoder(PackedModel.open(out))
        found = evaluation.evaluate(model, self._windows, self._reference)
        comparison = found.comparison
        assert comparison is not None
        print(
            f"{method} {bits} bits, groups of {group_size}: perplexity {found.perplexity.value:.3f}, KL"
            f" {comparison.kl.value:.4f}, same top token {comparison.top1_agreement.value:.1%}",
            file=sys.stderr,
            flush=True,
        )
        return found


def row(bench: Bench, bits: int, group_size: int) -> str:
    """One line of the table."""
    best = bench.float.perplexity.value
    found = {name: bench.after(name, bits, group_size) for name in ("rounding", "search", "gptq")}
    value = {name: each.perplexity.value for name, each in found.items()}
    closes = [(value[n] - value["gptq"]) / (value[n] - best) for n in ("rounding", "search")]
    kl = {name: each.comparison.kl.value for name, each in found.items() if each.comparison}
    cells = [f"{bits}", f"{group_size}", *(f"{value[n]:.3f} ({kl[n]:.3f})" for n in value)]
    return f"| {' | '.join(cells)} | {closes[0]:.0%} | {closes[1]:.0%} |"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("--text", type=Path, required=True, help="another text, for the perplexity")
    parser.add_argument(
        "--special", action="store_true", help="special tokens in --text are such: for conversations"
    )
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--groups", default="128,64,32")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(arguments, Path(directory))
        found = bench.float
        print(
            f"float: {found.perplexity.value:.3f} ± {found.perplexity.error:.3f}, {found.n_scored} tokens\n"
        )
        print("| bits | group | rounding | search | gptq | closes of rounding | of search |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for bits in map(int, arguments.bits.split(",")):
            for group_size in map(int, arguments.groups.split(",")):
                print(row(bench, bits, group_size), flush=True)


if __name__ == "__main__":
    main()
