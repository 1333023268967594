"""The cffi wall: one typed, checked Python function per function of the C library.

The only package that imports the native module. Knows matrices and threads, never a model.
"""

from tmac_llm.kernels.library import (
    IsaInfo,
    explain_bus_errors,
    fork_join_time,
    has_fast_aggregation,
    init,
    isa_selected,
    isas,
    n_threads,
    set_threads,
)
from tmac_llm.kernels.matrix import Matrix, Tables, Tuning, keeps_order, memory_size
from tmac_llm.kernels.packing import dequantize_rows, pack, pack_rows, unpack
from tmac_llm.kernels.quantizing import Quantized, quantize
from tmac_llm.kernels.shape import Encoding, MatrixShape

__all__ = [
    "Encoding",
    "IsaInfo",
    "Matrix",
    "MatrixShape",
    "Quantized",
    "Tables",
    "Tuning",
    "dequantize_rows",
    "explain_bus_errors",
    "fork_join_time",
    "has_fast_aggregation",
    "init",
    "isa_selected",
    "isas",
    "keeps_order",
    "memory_size",
    "n_threads",
    "pack",
    "pack_rows",
    "quantize",
    "set_threads",
    "unpack",
]
