"""Our side: tokens per second of a synthetic model, seconds of a product of one matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

from tmac_llm import bench, bench_kernels, kernels
from tmac_llm.load import load_decoder
from tmac_llm.model.config import ModelConfig
from tmac_llm.resources import known_models
from tmac_llm.synthetic import SyntheticModel


def run_model(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of our engine."""
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


def matrices(shape: str) -> list[tuple[str, int, int]]:
    """(name, m, k) of the matrices of a layer of a known model."""
    return [(case.matrix, case.m, case.k) for case in bench_kernels.cases([shape], [4], [1])]


def run_matrix(job: dict[str, Any]) -> dict[str, float]:
    """Median seconds of one product, streamed from memory for one token; its result is checked first."""
    bits = None if job["bits"] == "t" else int(job["bits"])
    tables = "exact" if bits is None else "int8"
    case = bench_kernels.Case(
        "", job["matrix"], job["m"], job["k"], bits, job["group_size"], job["n"], tables
    )
    (result,) = bench_kernels.run(case, threads=[job["threads"]], rounds=5)
    return {"seconds": result.seconds}
