"""The safetensors files of one repository seen as one set of tensors; knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from tmac_llm.checkpoint.container import SafetensorsFile, TensorInfo
from tmac_llm.checkpoint.files import read_json
from tmac_llm.errors import CheckpointError, UnsupportedError
from tmac_llm.model.fields import show

INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_SHARDS = 1024


class TensorFile(Protocol):
    """What is needed of container.SafetensorsFile, which documents it."""

    path: Path
    tensors: dict[str, TensorInfo]
    n_bytes: int

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]: ...


class TensorFiles:
    """All tensors of a repository: names to header entries, and rows on demand."""

    def __init__(self, files: Sequence[TensorFile]) -> None:
        """Raises CheckpointError when two files hold the same tensor."""
        self._owner: dict[str, TensorFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._owner:
                    raise CheckpointError(
                        f"tensor {show(name)} is in both {self._owner[name].path.name} and {file.path.name};"
                        " remove the file that does not belong here"
                    )
                self._owner[name] = file
        self.n_bytes = sum(file.n_bytes for file in files)

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def names(self) -> list[str]:
        return list(self._owner)

    def info(self, name: str) -> TensorInfo:
        return self._owner[name].tensors[name]

    def file_name(self, name: str) -> str:
        return self._owner[name].path.name

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows [begin, end) of a tensor; see SafetensorsFile.read."""
        return self._owner[name].read(name, begin, end)


def open_tensor_files(path: Path) -> TensorFiles:
    """The tensors of a directory (model.safetensors, or the shards of its index) or of one safetensors file.

    Raises CheckpointError for missing, contradictory or damaged files, UnsupportedError when there are only
    pickled weights.
    """
    if path.is_file():
        return TensorFiles([SafetensorsFile(path)])
    if (path / "model.safetensors").is_file():
        return TensorFiles([SafetensorsFile(path / "model.safetensors")])
    if (path / INDEX).is_file():
        return _open_shards(path)
    single = sorted(path.glob("*.safetensors"))
    if len(single) == 1:
        return TensorFiles([SafetensorsFile(single[0])])
    if single:
        raise CheckpointError(
            f"{path}: {len(single)} safetensors files but no {INDEX}; download the repository again"
        )
    refuse_pickles([p.name for pattern in _PICKLES for p in path.glob(pattern)], str(path))
    raise CheckpointError(f"{path}: no model.safetensors and no {INDEX}; expected a Hugging Face checkpoint")


def refuse_pickles(names: list[str], where: str) -> None:
    """Raise UnsupportedError where `names` of files hold weights in a form that is never loaded."""
    pickles = sorted(n for n in names if n.endswith(tuple(p[1:] for p in _PICKLES)))
    if pickles:
        raise UnsupportedError(
            f"{where}: weights only as pickle ({pickles[0]}), which can run arbitrary code when loaded;"
            " use a repository with safetensors, or convert it with transformers' save_pretrained"
        )


def _open_shards(path: Path) -> TensorFiles:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX}: expected an object weight_map, found {show(weight_map)}")
    for name, shard in weight_map.items():
        _check_shard_name(name, shard)
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"{INDEX}: {len(shards)} shards exceed the limit of {_MAX_SHARDS}")
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{INDEX}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]};"
            " download the repository again"
        )
    files = TensorFiles([SafetensorsFile(path / shard) for shard in shards])
    for name, shard in weight_map.items():
        if name not in files or files.file_name(name) != shard:
            raise CheckpointError(
                f"{INDEX}: tensor {show(name)} should be in {shard} but is not; download it again"
            )
    return files


def _check_shard_name(name: str, shard: object) -> None:
    """Shards lie beside the index: a name with a directory part could read any file of the machine."""
    plain = isinstance(shard, str) and shard.endswith(".safetensors") and not set(shard) & {"/", "\\", "\0"}
    if not plain or str(shard).startswith("."):
        raise CheckpointError(
            f"{INDEX}: tensor {show(name)} points to {show(shard)}; expected the name of a .safetensors file"
            " in the same directory"
        )
