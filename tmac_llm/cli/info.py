"""The verb `info`: what a packed model is.

Knows how to lay it out; the facts come from the packed model's config and manifest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt

if TYPE_CHECKING:
    from pathlib import Path

    from tmac_llm.packed.container import PackedModel


def info(
    model: opt.Model = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the SHA-256 of every file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Show what a packed model is: shapes, bits, sizes, context, template."""
    from tmac_llm import mapped
    from tmac_llm.cli.model_argument import packed_path
    from tmac_llm.packed.container import PackedModel

    packed = PackedModel.open(packed_path(model))
    copies = mapped.copies(packed.path)
    if verify:
        packed.verify()
        for copy in copies:
            mapped.verify(copy)
    facts = _facts(packed) | {"mmap": _mmap(packed, copies)}
    if verify:
        facts["verified"] = "all files match their SHA-256"
    if as_json:
        facts["added_error_by_matrix"] = packed.quantization.get("relative_rms") or {}
        console.out(json.dumps(facts, indent=2) + "\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        console.out(f"{name.replace('_', ' '):<{width}}  {_text(name, value)}\n")


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return console.size(value) if name == "size" else str(value)


def _added_error(errors: dict[str, float]) -> str:
    """What the conversion changed, over all matrices."""
    if not errors:
        return "none: all weights are the source's"
    low, high = min(errors.values()), max(errors.values())
    return f"relative RMS {low:.1e} to {high:.1e} in {len(errors)} matrices (--json lists them)"


def _mmap(packed: PackedModel, copies: list[Path]) -> str:
    """What --mmap maps, and what that costs on disk."""
    from tmac_llm import kernels, mapped
    from tmac_llm.load import mapped_names

    isa, names = kernels.isa_selected(), mapped_names(packed)
    if missing := mapped.needs_copy(packed, names):
        return f"makes a copy of {console.size(missing)} in the order of {isa} in {mapped.directory()} when first used"
    own = mapped.copy_path(packed.path)
    used = (
        f"maps {own} ({console.size(own.stat().st_size)})" if own.exists() else "maps the model's own files"
    )
    others = [copy.name for copy in copies if copy != own]
    return used + (f"; copies for others: {', '.join(others)}" if others else "")


def _facts(packed: PackedModel) -> dict[str, Any]:
    from tmac_llm.tokenizer import Tokenizer

    config, quantization = packed.config, packed.quantization
    tokenizer = Tokenizer.from_dir(packed.path)
    heads = (
        f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value, {config.head_dim} wide"
    )
    return {
        "path": str(packed.path),
        "size": packed.n_bytes,
        "architecture": config.model_type,
        "source": quantization["source_format"],
        "found": list(quantization.get("source_notes") or []),
        "bits": quantization["bits"],
        "bits_per_weight": round(packed.bits_per_weight, 3),
        **({"method": "gptq, calibrated"} if quantization.get("method") == "gptq" else {}),
        "group_size": quantization["group_size"] or "one scale per row",
        "head_bits": quantization["head_bits"],
        "added_error": _added_error(quantization.get("relative_rms") or {}),
        "activations": "int8 per token, lossless" if config.int8_activations else "float, int8 tables",
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": heads,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "rope": f"{config.rope.rope_type}, theta {config.rope.theta:g}",
        "chat_template": "yes" if tokenizer.has_chat_template else "no (a base model: use generate --raw)",
    }
