"""ONNX Runtime's MatMulNBits, the product of its quantised models, at one shape."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

MEMORY_BYTES = 256 << 20  # copies of a matrix that add up to it are streamed from memory
INT8_ACTIVATIONS = 4  # the operator's accuracy_level of its fastest kernels
ERROR_BOUND = 3e-2  # relative RMS of int8 activations, with a margin


def run(job: dict[str, Any]) -> dict[str, float]:
    """Median seconds of one product of n tokens, of a graph that streams through copies of the matrix.

    The result is checked against float64 first. `lut` in the job asks for the table lookup kernels of 2 bits.
    """
    import onnxruntime as ort

    bits, group_size, m, k, n = (int(job[name]) for name in ("bits", "group_size", "m", "k", "n"))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (m, k), np.uint8)
    scales = (rng.uniform(0.5, 1.5, (m, k // group_size)) / np.sqrt(k)).astype(np.float32)
    x = rng.standard_normal((n, k)).astype(np.float32)
    copies = MEMORY_BYTES // (m * k * bits // 8) + 1 if n == 1 else 1

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    if job.get("lut"):
        options.add_session_config_entry("mlas.use_lut_gemm", "1")
    model = graph(codes, scales, bits, group_size, n, copies)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    del model

    y = session.run(["y0"], {"x": x})[0]
    rows = np.linspace(0, m - 1, 64).astype(int)
    zero = 1 << (bits - 1)
    weights = (codes[rows].astype(np.float64) - zero) * np.repeat(scales[rows], group_size, axis=1)
    expected = x.astype(np.float64) @ weights.T
    error = np.linalg.norm(y[:, rows] - expected) / np.linalg.norm(expected)
    if not error < ERROR_BOUND:
        raise SystemExit(f"onnxruntime: relative RMS error {error:.2g}, at most {ERROR_BOUND} can be right")

    samples = []
    for _ in range(7):
        start = time.perf_counter()
        session.run(None, {"x": x})
        samples.append((time.perf_counter() - start) / copies)
    return {"seconds": statistics.median(samples)}


def graph(
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    bits: int,
    group_size: int,
    n: int,
    copies: int,
) -> bytes:
    """A model of `copies` products y0, y1, .. of one input x, each with weights of its own."""
    from onnx import TensorProto, helper, numpy_helper

    m, k = codes.shape
    per_byte = 8 // bits
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    packed = np.bitwise_or.reduce(codes.reshape(m, k // group_size, -1, per_byte) << shifts, axis=-1)
    nodes, outputs, initializers = [], [], []
    for i in range(copies):
        initializers += [
            numpy_helper.from_array(packed.astype(np.uint8), f"w{i}"),
            numpy_helper.from_array(scales.reshape(-1), f"s{i}"),
        ]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", f"w{i}", f"s{i}"],
                [f"y{i}"],
                domain="com.microsoft",
                K=k,
                N=m,
                bits=bits,
                block_size=group_size,
                accuracy_level=INT8_ACTIVATIONS,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [n, m]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [n, k])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "products", [x], outputs, initializers), opset_imports=opsets, ir_version=10
    )
    return bytes(model.SerializeToString())
