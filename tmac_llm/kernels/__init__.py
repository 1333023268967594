"""The cffi wall: one typed, checked Python function per function of the C library.

The only package that imports the native module. Knows matrices and threads, never a model.
"""

from tmac_llm.kernels.library import (
    IsaInfo,
    has_fast_aggregation,
    init,
    isa_selected,
    isas,
    n_threads,
    set_threads,
)
from tmac_llm.kernels.matrix import Matrix, Tables, memory_size
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
    "dequantize_rows",
    "has_fast_aggregation",
    "init",
    "isa_selected",
    "isas",
    "memory_size",
    "n_threads",
    "pack",
    "pack_rows",
    "quantize",
    "set_threads",
    "unpack",
]
