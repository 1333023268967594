"""The verb `list`: the packed models of the local store, and the models known by name.

Knows how to lay out the table; tmac_llm.store and tmac_llm.resources know the models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, cast

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt


def list_models(
    known: Annotated[
        bool, typer.Option("--known", help="List well-known models that can be converted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """List the converted models of the local store."""
    rows = _known_rows() if known else _store_rows()
    if as_json:
        console.out(json.dumps(rows, indent=2) + "\n")
        return
    if not rows:
        from tmac_llm import store

        console.note(f"no models in {store.home()} yet; `tmac-llm convert MODEL-ID` adds one")
        return
    _table([{name: row[name] for name in row if name not in ("assumed", "notes")} for row in rows])
    for row in rows if known else ():
        for note in cast(list[str], row["notes"]):
            console.out(f"{row['name']}: {note}\n")
    if known:
        console.note("* partly assumed: not published, a checkpoint says it itself")


def _store_rows() -> list[dict[str, object]]:
    from tmac_llm import store

    return [
        {
            "name": entry.name,
            "bits": "float" if entry.bits == 16 else entry.bits,
            "size": entry.n_bytes,
            "source": entry.source_format,
        }
        for entry in store.list_models()
    ]


def _known_rows() -> list[dict[str, object]]:
    from tmac_llm import resources

    return [
        {
            "name": m.name,
            "repo_id": m.repo_id,
            "shape": _shape(m.config) + ("*" if m.assumed else ""),
            "chat": m.chat or "none: a base model",
            "stop_ids": m.stop_ids,
            "assumed": m.assumed,
            "notes": m.notes,
        }
        for m in resources.known_models().values()
    ]


def _shape(config: Mapping[str, Any]) -> str:
    """Layers, hidden and intermediate size, heads and key/value heads, vocabulary."""
    heads = config["num_attention_heads"]
    return (
        f"{config['num_hidden_layers']} x {config['hidden_size']}/{config['intermediate_size']}"
        f" {heads}:{config.get('num_key_value_heads', heads)} v{config['vocab_size']}"
    )


def _table(rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    cells = [[_cell(name, row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    for line in [[name.upper() for name in columns], *cells]:
        console.out(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        )


def _cell(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "of the repository"
    return console.size(float(str(value))) if name == "size" else str(value)
