"""Finds and opens GGUF files, one or several of a split model, as the parts of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmac_llm.checkpoint.bitnet import OnlineBitnet
from tmac_llm.checkpoint.dense import DenseEncoding
from tmac_llm.checkpoint.gguf.config import permuted_heads, to_config
from tmac_llm.checkpoint.gguf.container import GgufFile
from tmac_llm.checkpoint.gguf.encoding import GgufEncoding
from tmac_llm.checkpoint.gguf.tensors import FLOATS, ROPE_FREQS, GgufTensors
from tmac_llm.checkpoint.index import TensorFiles
from tmac_llm.checkpoint.ternary import DenseTernary, looks_ternary
from tmac_llm.checkpoint.weights import Encoding
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

SUFFIX = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_LISTED = 12
_BITNET_ARCHITECTURES = ("bitnet", "bitnet-b1.58", "bitnet-25")


@dataclass(frozen=True)
class GgufSource:
    """What a GGUF model has in place of the files of a repository. metadata: of its first file."""

    files: TensorFiles
    raw_config: dict[str, Any]
    metadata: dict[str, Any]
    encoding: Callable[[dict[str, tuple[int, int]], list[str]], Encoding]


def models(names: list[str]) -> list[str]:
    """The files among `names` that stand for a model: whole ones, and the first of each split one."""
    found = []
    for name in sorted(names):
        match = _SPLIT.fullmatch(name)
        if name.endswith(SUFFIX) and (match is None or int(match["number"]) == 1):
            found.append(name)
    return found


def parts(name: str) -> list[str]:
    """All files of the model that the file `name` belongs to."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return [name]
    return [f"{match['stem']}-{i + 1:05d}-of-{match['count']}.gguf" for i in range(int(match["count"]))]


def only_model(directory: Path) -> Path | None:
    """The GGUF model of a directory without safetensors; None without one. Raises UnsupportedError for several."""
    if any(directory.glob("*.safetensors")):
        return None
    names = models([path.name for path in directory.glob(f"*{SUFFIX}")])
    if len(names) > 1:
        raise UnsupportedError(f"{directory}: {choice(names)}")
    return directory / names[0] if names else None


def choice(names: list[str]) -> str:
    """What to say about several models."""
    listed = ", ".join(names[:_LISTED]) + (
        f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )
    return f"holds {len(names)} GGUF models, say which with convert --file NAME: {listed}"


def open_source(path: Path) -> GgufSource:
    """Open a GGUF file, with its other parts beside it where it is split. Raises CheckpointError."""
    names = parts(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of the {len(names)} files of this model are missing, the first is {missing[0]};"
            " download them into the same directory"
        )
    files = [GgufFile(path.parent / name) for name in names]
    for i, file in enumerate(files):
        number, count = file.metadata.get("split.no", 0), file.metadata.get("split.count", 1) or 1
        if (number, count) != (i, len(files)):
            raise CheckpointError(
                f"{file.path.name}: says that it is part {show(number)} of {show(count)} (from 0), its name part {i} of"
                f" {len(files)}; give it its own name back, or download it again"
            )
    return _source(files)


def _source(files: list[GgufFile]) -> GgufSource:
    metadata, where = files[0].metadata, files[0].path.name
    tensors = {tensor.name: tensor for file in files for tensor in file.tensors.values()}
    linears = [t.type.name for t in tensors.values() if t.name.startswith("blk.") and len(t.shape) == 2]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = to_config(metadata, shapes, _frequencies(files), set(linears), where)
    heads = permuted_heads(config, metadata["general.architecture"])
    shards = [GgufTensors(file, heads) for file in files]
    joined = TensorFiles(shards)
    is_bitnet = metadata["general.architecture"] in _BITNET_ARCHITECTURES

    def encoding(shapes: dict[str, tuple[int, int]], notes: list[str]) -> Encoding:
        return GgufEncoding(joined, shards, _floats(joined, shapes, is_bitnet, notes), notes)

    return GgufSource(joined, config, metadata, encoding)


def _floats(
    files: TensorFiles, shapes: dict[str, tuple[int, int]], is_bitnet: bool, notes: list[str]
) -> Encoding:
    """The encoding of linears that are floats: ternary where they all look so, masters of BitNet, or plain."""
    names = [
        name
        for name, shape in shapes.items()
        if f"{name}.weight" in files
        and files.info(f"{name}.weight").dtype in FLOATS
        and files.info(f"{name}.weight").shape == shape
    ]
    dtype = files.info(f"{names[0]}.weight").dtype.lower() if names else "float"
    if names and looks_ternary(files, names):
        return DenseTernary(files, dtype, notes)
    if names and is_bitnet:
        notes.append("float masters, ternarised on reading")
        return OnlineBitnet(files, "")
    return DenseEncoding(files, dtype)


def _frequencies(files: list[GgufFile]) -> list[float] | None:
    """The divisors of the rotation frequencies, where a file has them."""
    for file in files:
        tensor = file.tensors.get(ROPE_FREQS)
        if tensor is None:
            continue
        if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 13:
            raise CheckpointError(
                f"{file.path.name}: tensor {ROPE_FREQS} is {tensor.type.name} {list(tensor.shape)}, expected F32 of one"
                " dimension; the file is damaged, download it again"
            )
        values = file.read(tensor.begin, tensor.end).view(np.dtype("<f4"))
        return [float(value) for value in values]
    return None
