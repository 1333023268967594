"""Float matrices as they are, and the header checks that every encoding shares; knows no quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.weights import BFLOAT16, DenseWeight, Weight, check_finite
from tmac_llm.errors import CheckpointError, UnsupportedError

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BFLOAT16}


class DenseEncoding:
    """Every linear is a float `.weight` (out_features, in_features)."""

    quantised_tables = False

    def __init__(self, files: TensorFiles, dtype: str) -> None:
        self._files = files
        self.description = f"dense {dtype}"

    def check(self, name: str, shape: tuple[int, int]) -> list[str]:
        check_float(self._files, f"{name}.weight", shape)
        return [f"{name}.weight"]

    def linear(self, name: str, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> Weight:
        return dense_weight(self._files, f"{name}.weight", bias)


def dense_weight(files: TensorFiles, name: str, bias: NDArray[np.float32] | None = None) -> DenseWeight:
    """The 2-D float tensor `name`, read and checked for NaN and infinity row range by row range."""
    info = files.info(name)

    def rows(begin: int, end: int) -> NDArray[Any]:
        block = files.read(name, begin, end)
        check_finite(block, f"{files.file_name(name)}: tensor {name}", begin)
        return block

    return DenseWeight((info.shape[0], info.shape[1]), FLOATS[info.dtype], rows, bias)


def check_shape(files: TensorFiles, name: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError when the tensor is missing or has another shape than config.json implies."""
    if name not in files:
        raise CheckpointError(
            f"tensor {name} is missing; expected one of shape {list(shape)}, download it again"
        )
    found = files.info(name).shape
    if found != shape:
        raise CheckpointError(
            f"{files.file_name(name)}: tensor {name} has shape {list(found)}, expected {list(shape)} from"
            " config.json; one of the two files belongs to another model"
        )


def check_float(files: TensorFiles, name: str, shape: tuple[int, ...]) -> None:
    """As check_shape; raises UnsupportedError when the tensor is not F32, F16 or BF16."""
    check_shape(files, name, shape)
    check_dtype(files, name, tuple(FLOATS))


def check_dtype(files: TensorFiles, name: str, dtypes: tuple[str, ...]) -> None:
    """Raises UnsupportedError when the tensor has none of `dtypes`."""
    found = files.info(name).dtype
    if found not in dtypes:
        raise UnsupportedError(
            f"{files.file_name(name)}: tensor {name} has dtype {found}, which is not supported here;"
            f" supported: {', '.join(dtypes)}"
        )
