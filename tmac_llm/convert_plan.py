"""How a checkpoint will be stored: what is fused, kept ternary, quantised or left float; writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from tmac_llm import quantize
from tmac_llm.checkpoint import Checkpoint, CodedWeight, DenseWeight, TernaryWeight, Weight
from tmac_llm.errors import ConvertError, UsageError
from tmac_llm.kernels import MatrixShape
from tmac_llm.packed import files, names, tiles
from tmac_llm.packed.container import QUANT_METHOD
from tmac_llm.packed.writer import TensorSpec
from tmac_llm.quantize import Scheme

BITS = (1, 2, 3, 4, 8, 16)
HEAD_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
GROUP_SIZES = (32, 64, 128)
METHODS = ("search", "gptq")
FLOAT_BITS = 16
DEFAULT_BITS = 4
DEFAULT_HEAD_BITS = 8
DEFAULT_GROUP_SIZE = 128

# What ordinary float weights do not survive: methods, the measured reason, what to take instead.
_HOPELESS = {
    1: (
        METHODS,
        "the perplexity of the tests' trained Llama goes from 20 to 278, calibrated to 36",
        "--bits 2 or more",
    ),
    2: (
        ("search",),
        "the perplexity of SmolLM2-135M goes from 24 to 68,000 by the scale search alone, calibrated to 161",
        "--method gptq --calibration FILE, or --bits 3 or more",
    ),
}

# A matrix of the checkpoint was float, or codes that are kept, or codes that are quantised again.
Origin = Literal["float", "kept", "requantised"]
# Fields of a source's config.json that describe how its own files are stored or run.
_NOT_COPIED = ("quantization_config", "compression_config", "auto_map")
_FLOAT_NAMES = {dtype: name for name, dtype in files.DTYPES.items() if name != "U8"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; bits and head_bits None: what suits the checkpoint. 16 bits: float."""

    bits: int | None = None
    group_size: int = DEFAULT_GROUP_SIZE
    head_bits: int | None = None
    symmetric: bool = False
    force: bool = False
    method: str = "search"

    def check(self) -> None:
        """Raises UsageError for a value that no conversion takes."""
        for name, value, choices in (
            ("bits", self.bits, BITS),
            ("group_size", self.group_size, GROUP_SIZES),
            ("head_bits", self.head_bits, HEAD_BITS),
            ("method", self.method, METHODS),
        ):
            if value is not None and value not in choices:
                raise UsageError(f"{name} {value}: expected one of {', '.join(map(str, choices))}")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix to be stored under `name`; shape None: in float, as the checkpoint has it.

    requantised: the checkpoint has codes of it, which are not kept as they are.
    """

    name: str
    weight: Weight
    shape: MatrixShape | None
    requantised: bool = False

    @property
    def spec(self) -> TensorSpec:
        if self.shape:
            return TensorSpec(f"{self.name}.tiles", "U8", (self.shape.packed_size,))
        assert isinstance(self.weight, DenseWeight)
        return TensorSpec(f"{self.name}.weight", _FLOAT_NAMES[self.weight.dtype], self.weight.shape)

    @property
    def bits(self) -> int:
        """Bits of a code, or of a float."""
        return self.shape.bits if self.shape else 8 * self.spec.n_bytes // self.n_weights

    @property
    def origin(self) -> Origin:
        """What the checkpoint has of it, and what became of that."""
        if self.requantised:
            return "requantised"
        return "float" if isinstance(self.weight, DenseWeight) else "kept"

    @property
    def n_weights(self) -> int:
        return self.weight.shape[0] * self.weight.shape[1]


class Plan:
    """Everything that will be written, in the order of a forward pass.

    bits, head_bits, group_size: as resolved, 16 bits for float; where codes are kept, those of most weights in
    the layers. matrices: all of them. vectors: tensor name -> float32 norm or bias, or int32 permutation.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        """Raises ConvertError for bits that do not suit the checkpoint. Reads ternary masters once."""
        self._checkpoint, self._options = checkpoint, options
        config = checkpoint.config
        linears = {p.name: checkpoint.linear(p.name) for g in names.linear_groups(config) for p in g.parts}
        ternary = any(isinstance(weight, TernaryWeight) for weight in linears.values())
        coding = _main_coding(linears.values())
        _check_bits(checkpoint.format, options, ternary, coding)
        _check_survival(checkpoint.format, options, linears.values())
        exact_bits = _exact_bits(ternary, coding)
        self.bits = options.bits or exact_bits or _dense_bits(linears.values())
        self._as_stored = options.bits in (None, exact_bits)
        self.keeps_codes = coding is not None and self._as_stored
        self.group_size = coding[1] if coding and self.keeps_codes else options.group_size
        self.is_ternary = ternary and self._as_stored
        self._recoded = {name for name, weight in linears.items() if _is_coded(weight)}
        if not self._as_stored:
            linears = {name: quantize.as_dense(weight) for name, weight in linears.items()}
        self.matrices: list[Matrix] = []
        embedding, head = checkpoint.embedding(), checkpoint.lm_head()
        self.head_bits = self._head_bits(head or embedding)
        self.matrices.append(self._table(names.EMBEDDING, embedding))
        for group in names.linear_groups(config):
            parts = {part.name: linears[part.name] for part in group.parts}
            fused = None if config.linear_norm_eps else quantize.stack(list(parts.values()))
            for name, weight in {group.fused.name: fused}.items() if fused else parts.items():
                self.matrices.append(self._linear(name, weight, not self._recoded.isdisjoint(parts)))
        if head:
            self.matrices.append(self._table(names.LM_HEAD, head))
        self.vectors: dict[str, npt.NDArray[Any]] = {
            name: checkpoint.tensor(name) for name in names.norms(config)
        }
        for matrix in self.matrices:
            if isinstance(matrix.weight, CodedWeight) and matrix.weight.perm is not None:
                self.vectors[f"{matrix.name}.perm"] = matrix.weight.perm
            if matrix.weight.bias is not None:
                self.vectors[f"{matrix.name}.bias"] = matrix.weight.bias

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors to be written."""
        vectors = [
            TensorSpec(name, "I32" if vector.dtype == np.int32 else "F32", vector.shape)
            for name, vector in self.vectors.items()
        ]
        return [matrix.spec for matrix in self.matrices] + vectors

    def config(self, source: str, relative_rms: Mapping[str, float]) -> dict[str, Any]:
        """config.json of the packed model.

        source: the Hub id or path it was made from. relative_rms: what quantising changed, by matrix.
        """
        options = self._options
        quantization = {
            "quant_method": QUANT_METHOD,
            "format_version": files.FORMAT_VERSION,
            "layout_version": tiles.LAYOUT_VERSION,
            "tile": tiles.TILE,
            "bits": self.bits,
            "group_size": self.group_size,
            "head_bits": self.head_bits,
            "symmetric": options.symmetric,
            "method": options.method,
            "int8_activations": self._checkpoint.config.int8_activations,
            "sub_norms": self._checkpoint.config.sub_norms,
            "linear_norm_eps": self._checkpoint.config.linear_norm_eps,
            "source": source,
            "source_format": self._checkpoint.format,
            "source_notes": list(self._checkpoint.notes),
            "relative_rms": {name: float(f"{rms:.3g}") for name, rms in relative_rms.items()},
            "requantised": [matrix.name for matrix in self.matrices if matrix.origin == "requantised"],
            "matrices": {matrix.name: asdict(matrix.shape) for matrix in self.matrices if matrix.shape},
        }
        kept = {key: value for key, value in self._checkpoint.raw_config.items() if key not in _NOT_COPIED}
        return {**kept, "quantization_config": quantization}

    @property
    def label(self) -> str:
        """The part of a store name that tells the encoding; defaults are left out."""
        label = "ternary" if self.is_ternary else f"{self.bits}bit"
        if self.group_size != DEFAULT_GROUP_SIZE:
            label += f"-g{self.group_size}" if self.group_size else "-row"
        if self._options.head_bits not in (None, self._default_head_bits):
            label += f"-h{self._options.head_bits}"
        if self._options.symmetric:
            label += "-sym"
        return f"{label}-gptq" if self._options.method == "gptq" else label

    @property
    def matrices_in_layers(self) -> list[Matrix]:
        """All but embedding and output head."""
        return [matrix for matrix in self.matrices if matrix.name not in (names.EMBEDDING, names.LM_HEAD)]

    @property
    def symmetric(self) -> bool:
        """Whether groups have no zero points."""
        return self._options.symmetric

    @property
    def _default_head_bits(self) -> int:
        return FLOAT_BITS if self.bits == FLOAT_BITS else DEFAULT_HEAD_BITS

    def _head_bits(self, head: Weight) -> int:
        """Of the output head: what was asked for, else those of its codes, else the default."""
        if self._options.head_bits:
            return self._options.head_bits
        return head.bits if self._keeps_table(head) else self._default_head_bits

    def _keeps_table(self, weight: Weight) -> TypeGuard[CodedWeight]:
        return isinstance(weight, CodedWeight) and self._options.head_bits is None and self.bits != FLOAT_BITS

    def _table(self, name: str, weight: Weight) -> Matrix:
        """Embedding or output head."""
        if self._keeps_table(weight):
            return Matrix(name, weight, quantize.coded_shape(weight))
        bits = self._options.head_bits or self._default_head_bits
        return self._dense(name, weight, bits, _is_coded(weight))

    def _linear(self, name: str, weight: Weight, coded: bool) -> Matrix:
        """coded: whether the checkpoint has codes of it."""
        if isinstance(weight, CodedWeight):
            return Matrix(name, weight, quantize.coded_shape(weight))
        if isinstance(weight, DenseWeight) and weight.stored_bits and self._as_stored:
            scheme = Scheme(weight.stored_bits, min(GROUP_SIZES), self._options.symmetric)
            return Matrix(name, weight, scheme.shape(weight), True)
        if self.keeps_codes and isinstance(weight, DenseWeight):
            return Matrix(name, weight, None)  # left in float by whoever quantised the others
        if self.is_ternary:
            int8_activations = self._checkpoint.config.int8_activations
            shape = quantize.ternary_shape(weight, self._options.group_size, int8_activations)
            return Matrix(name, weight, shape)
        return self._dense(name, weight, self.bits, coded)

    def _dense(self, name: str, weight: Weight, bits: int, coded: bool) -> Matrix:
        dense = quantize.as_dense(weight)
        if bits == FLOAT_BITS:
            return Matrix(name, dense, None)
        scheme = Scheme(bits, self._options.group_size, self._options.symmetric)
        return Matrix(name, dense, scheme.shape(dense), coded)


def _exact_bits(ternary: bool, coding: tuple[int, int] | None) -> int | None:
    """The bits with which weights stay as they are stored; None for floats."""
    return quantize.TERNARY_BITS if ternary else coding[0] if coding else None


def _is_coded(weight: Weight) -> bool:
    """Whether the checkpoint has codes of a matrix."""
    return not isinstance(weight, DenseWeight) or weight.stored_bits is not None


def _dense_bits(weights: Iterable[Weight]) -> int:
    """The bits for floats: those that most dequantised codes want, else the default."""
    counts: Counter[int] = Counter()
    for weight in weights:
        if isinstance(weight, DenseWeight) and weight.stored_bits:
            counts[weight.stored_bits] += weight.shape[0] * weight.shape[1]
    return counts.most_common(1)[0][0] if counts else DEFAULT_BITS


def _main_coding(weights: Iterable[Weight]) -> tuple[int, int] | None:
    """(bits, group_size) that most coded weights have; None without any."""
    counts: Counter[tuple[int, int]] = Counter()
    for weight in weights:
        if isinstance(weight, CodedWeight):
            counts[weight.bits, weight.group_size] += weight.shape[0] * weight.shape[1]
    return counts.most_common(1)[0][0] if counts else None


def _check_bits(found: str, options: Options, ternary: bool, coding: tuple[int, int] | None) -> None:
    if options.force or options.bits is None:
        return
    natural = _exact_bits(ternary, coding)
    if natural and options.bits != natural:
        raise ConvertError(
            f"--bits {options.bits}: the weights are {'ternary' if ternary else 'quantised already'} ({found}) and"
            " stay exact without this option; --force requantises them"
        )


def _check_survival(found: str, options: Options, weights: Iterable[Weight]) -> None:
    """Raises ConvertError where float weights would get so few bits that nothing is left of the model."""
    if options.force or options.bits not in _HOPELESS or any(map(_is_coded, weights)):
        return
    methods, measured, instead = _HOPELESS[options.bits]
    if options.method in methods:
        raise ConvertError(
            f"--bits {options.bits}: weights that were not trained for it ({found}) do not survive it: {measured};"
            f" take {instead}, or --force"
        )
