"""The directory of a packed model seen as a model: checked once, handed out as views; knows no arithmetic.

Format, version 1. A directory of plain files:

    config.json         the fields of the source's Hugging Face config.json, and `quantization_config`:
        quant_method "tmac", format_version 1, layout_version 2, tile {geometry of tiles.py},
        bits (16: float), group_size, head_bits (embedding and output head), symmetric,
        int8_activations, sub_norms, linear_norm_eps (how a decoder runs it: model/config.py),
        source, source_format, source_notes (what it was made from and how that was decided, for people),
        relative_rms {matrix: rms(stored - source) / rms(source)}, without the exact ones; requantised [matrix]: those
            whose codes in the source are not kept,
        matrices {name: {m, k, bits, group_size, has_zeros, zero, encoding}}: tmac_shape of csrc/include/tmac.h;
            layout_version 1, read too, has no encoding: planes
    model.safetensors   or model-0000I-of-0000N.safetensors of at most 4 GB and model.safetensors.index.json
    tokenizer.json ...  tokenizer and generation files as they came from the source
    tmac_manifest.json  format "tmac-packed", format_version, files {name: {size, sha256}} of every other file

Tensors; names.py says which a model has:

    <matrix>.tiles   U8 (packed_size,)  the bytes drawn in csrc/layout.h, for each entry of `matrices`
    <matrix>.weight  F32, F16 or BF16 (m, k), for a matrix kept in float
    <matrix>.perm    I32 (k,), where the columns are in another order: column j is for input perm[j]
    <matrix>.bias    F32 (m,), where the layer has one
    <norm>.weight    F32 (length,); with linear_norm_eps also <matrix>.rms_norm.weight, and then no matrix is fused

q, k, v are one matrix qkv_proj and gate, up one gate_up_proj, rows stacked in that order, unless their
encodings or orders differ. lm_head is absent where it is tied to the embedding. Tiles come first, then F32, I32
and 16-bit tensors, and the data of a file starts at a multiple of 64, so that every tensor is aligned to its type.

A directory is a packed model once it has its final name: a writer works in a sibling
`.NAME.convert-PID-RANDOM`, writes the manifest last and renames.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tmac_llm.errors import CheckpointError, PackedModelError
from tmac_llm.kernels import MatrixShape
from tmac_llm.model.config import ModelConfig
from tmac_llm.model.fields import show
from tmac_llm.packed import files, names, tiles
from tmac_llm.packed.files import AGAIN, CONFIG, Array
from tmac_llm.packed.names import Linear

QUANT_METHOD = "tmac"
_FLOATS = ("F32", "F16", "BF16")


class PackedModel:
    """An open packed model. Arrays are read-only views of mapped files, valid as long as they are held.

    path: the directory. config: ModelConfig. quantization: `quantization_config` of its config.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = files.read_manifest(path)
        raw_config = files.read_json(path / CONFIG)
        self.config = _read_config(path, raw_config)
        self.quantization: Mapping[str, Any] = raw_config["quantization_config"]
        self._shapes = _read_shapes(path / CONFIG, self.quantization)
        self._maps: list[mmap.mmap] = []
        self._tensors: dict[str, Array] = {}
        for name in self._files:
            if name.endswith(".safetensors"):
                self._map(path / name)
        self._check_contents()

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> PackedModel:
        """Check manifest, config, sizes, names and shapes (quick); with `verify` the content of every file.

        Raises PackedModelError: not a packed model, damaged, or of another version.
        """
        model = cls(Path(path))
        if verify:
            model.verify()
        return model

    @property
    def n_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size for entry in self._files.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of all matrices, scales and zeros included, per weight."""
        shapes = self._shapes
        packed = sum(shape.m * shape.k for shape in shapes.values())
        dense = [tensor for tensor in self._tensors.values() if tensor.ndim == 2]
        n_bytes = sum(self.tiles(name).nbytes for name in shapes) + sum(tensor.nbytes for tensor in dense)
        return 8 * n_bytes / (packed + sum(tensor.size for tensor in dense))

    def names(self) -> list[str]:
        """Full names of all tensors."""
        return list(self._tensors)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this full name, such as "model.norm.weight"."""
        return name in self._tensors

    def shape(self, matrix: str) -> MatrixShape | None:
        """Shape of a packed matrix such as "lm_head"; None where it is kept in float, or absent."""
        return self._shapes.get(matrix)

    def tiles(self, matrix: str) -> npt.NDArray[np.uint8]:
        """uint8 (packed_size,): the bytes of a packed matrix."""
        return self.tensor(f"{matrix}.tiles")

    def tensor(self, name: str) -> Array:
        """A tensor by its full name; BF16 has dtype ml_dtypes.bfloat16."""
        try:
            return self._tensors[name]
        except KeyError:
            raise PackedModelError(f"{self.path}: no tensor {show(name)}") from None

    def release(self) -> None:
        """Give back the memory of all pages read so far; views stay valid and are read from disk again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Hash every file, look at every scale. Raises PackedModelError for the first that is not sound."""
        for name, entry in self._files.items():
            with open(self.path / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry.sha256:
                raise self._damaged(f"{name}: expected SHA-256 {entry.sha256[:16]}.., found {found[:16]}..")
        for matrix, shape in self._shapes.items():
            if not np.isfinite(tiles.tails(shape, self.tiles(matrix))).all():
                raise self._damaged(f"{matrix}: a scale is NaN or infinite")

    def _map(self, path: Path) -> None:
        mapped, tensors = files.map_tensors(path)
        twice = tensors.keys() & self._tensors.keys()
        if twice:
            raise self._damaged(f"{path.name}: tensor {show(min(twice))} is in another file too")
        self._maps.append(mapped)
        self._tensors.update(tensors)

    def _check_contents(self) -> None:
        """Every tensor that the configuration needs, in its shape, and no other."""
        expected: set[str] = set()
        for linear in names.tables(self.config):
            expected |= self._check_linear(linear)
        for group in names.linear_groups(self.config):
            fused = group.fused.name
            is_fused = fused in self._shapes or self.has(f"{fused}.weight") or len(group.parts) == 1
            if is_fused and len(group.parts) > 1 and self.config.linear_norm_eps:
                raise self._damaged(f"{fused}: linears with norms of their own cannot be one matrix")
            for linear in (group.fused,) if is_fused else group.parts:
                expected |= self._check_linear(linear)
        for name, length in names.norms(self.config).items():
            expected.add(self._check_tensor(name, ("F32",), (length,)))
        unknown = (self._tensors.keys() | {f"{name}.tiles" for name in self._shapes}) - expected
        if unknown:
            layers = self.config.num_hidden_layers
            raise self._damaged(f"{show(min(unknown))} has no place in a model of {layers} layers")

    def _check_linear(self, linear: Linear) -> set[str]:
        """Names of the tensors that store a linear layer."""
        shape, bias = self._shapes.get(linear.name), f"{linear.name}.bias"
        if shape is None:
            stored = {self._check_tensor(f"{linear.name}.weight", _FLOATS, (linear.m, linear.k))}
        else:
            if (shape.m, shape.k) != (linear.m, linear.k):
                expected, found = (linear.m, linear.k), (shape.m, shape.k)
                raise self._damaged(f"{linear.name}: expected {expected}, found {found}")
            stored = {self._check_tensor(f"{linear.name}.tiles", ("U8",), (shape.packed_size,))}
            if self.has(f"{linear.name}.perm"):
                stored.add(self._check_permutation(f"{linear.name}.perm", linear.k))
        if linear.bias or self.has(bias):
            stored.add(self._check_tensor(bias, ("F32",), (linear.m,)))
        return stored

    def _check_permutation(self, name: str, k: int) -> str:
        self._check_tensor(name, ("I32",), (k,))
        perm, seen = self._tensors[name], np.zeros(k, bool)
        if perm.min() >= 0 and perm.max() < k:
            seen[perm] = True
        if not seen.all():
            raise self._damaged(f"{name}: not a permutation of {k} columns")
        return name

    def _check_tensor(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> str:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._damaged(f"tensor {name} is missing")
        if tensor.shape != shape or tensor.dtype not in [files.DTYPES[dtype] for dtype in dtypes]:
            expected = f"{' or '.join(dtypes)} {shape}"
            found = next(dtype for dtype in files.DTYPES if files.DTYPES[dtype] == tensor.dtype)
            raise self._damaged(f"{name}: expected {expected}, found {found} {tensor.shape}")
        return name

    def _damaged(self, what: str) -> PackedModelError:
        return PackedModelError(f"{self.path}: {what}; {AGAIN}")


def _read_config(path: Path, raw_config: Mapping[str, Any]) -> ModelConfig:
    quantization = raw_config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        raise PackedModelError(
            f"{path / CONFIG}: expected quantization_config.quant_method {QUANT_METHOD!r}; {AGAIN}"
        )
    try:
        return ModelConfig.from_dict(raw_config)
    except CheckpointError as error:
        raise PackedModelError(f"{path}: {error}; {AGAIN}") from None


def _read_shapes(where: Path, quantization: Mapping[str, Any]) -> dict[str, MatrixShape]:
    files.check_version(where, "format_version", quantization.get("format_version"), files.FORMAT_VERSION)
    files.check_version(where, "layout_version", quantization.get("layout_version"), *tiles.READABLE_VERSIONS)
    if quantization.get("tile") != tiles.TILE:
        raise PackedModelError(
            f"{where}: expected tile {tiles.TILE}, found {show(quantization.get('tile'))}; {AGAIN}"
        )
    for key in ("bits", "group_size", "head_bits"):
        if not _is_int(quantization.get(key), 0, 128):
            raise PackedModelError(
                f"{where}: expected a number of {key}, found {show(quantization.get(key))}; {AGAIN}"
            )
    matrices = quantization.get("matrices")
    if not isinstance(matrices, dict):
        raise PackedModelError(f"{where}: expected an object `matrices`, found {show(matrices)}; {AGAIN}")
    return {name: _read_shape(where, name, fields) for name, fields in matrices.items()}


def _read_shape(where: Path, name: str, fields: Any) -> MatrixShape:
    sound = (
        isinstance(fields, dict)
        and fields.keys() - {"encoding"} == {"m", "k", "bits", "group_size", "has_zeros", "zero"}
        and _is_int(fields["m"], 1, 2**31 - 1)
        and _is_int(fields["k"], 1, tiles.MAX_COLUMNS)
        and _is_int(fields["bits"], 1, tiles.MAX_BITS)
        and _is_int(fields["group_size"], 0, 128)
        and fields["group_size"] in tiles.GROUP_SIZES
        and isinstance(fields["has_zeros"], bool)
        and isinstance(fields["zero"], int | float)
        and -256 <= fields["zero"] <= 256
        and (
            fields.get("encoding", "planes") == "planes"
            or [fields[key] for key in ("encoding", *tiles.TERNARY)] == ["ternary", *tiles.TERNARY.values()]
        )
    )
    if not sound:
        raise PackedModelError(f"{where}: matrices: {show(name)}: not a shape: {show(fields)}; {AGAIN}")
    return MatrixShape(**{**fields, "zero": float(fields["zero"])})


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
