#!/usr/bin/env python3
"""Fuzz target of the packed container: a damaged directory opens, or fails with PackedModelError.

    python tests/fuzz_packed.py MODEL [--rounds 100000] [--seed 0]

Each round damages one file of a small packed model (bytes, lengths, JSON values), mostly signs it again in
the manifest so that the damage gets past the size check, opens it, and reads every tensor handed out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tmac_llm import kernels
from tmac_llm.errors import PackedModelError
from tmac_llm.packed.container import PackedModel

MANIFEST = "tmac_manifest.json"
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    1e308,
    float("nan"),
    "",
    "\ud800",
    "../x",
    [],
    {},
    [0] * 9,
)


def fuzz(model: Path, rounds: int, seed: int) -> int:
    """Returns how many of the damaged models opened."""
    rng = random.Random(seed)
    original = {path.name: path.read_bytes() for path in model.iterdir()}
    opened = 0
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model"
        shutil.copytree(model, target)
        for _ in range(rounds):
            name = rng.choice(sorted(original))
            damaged = {**original, name: damage(name, original[name], rng)}
            if name != MANIFEST and rng.random() < 0.95:
                sign(damaged, name)
            for file_name in (name, MANIFEST):
                (target / file_name).write_bytes(damaged[file_name])
            opened += use(target, verify=rng.random() < 0.2)
            (target / name).write_bytes(original[name])
    return opened


def use(path: Path, verify: bool) -> bool:
    """Open a model and read all of it. Returns whether it opened; another error is a finding."""
    try:
        model = PackedModel.open(path, verify=verify)
    except PackedModelError as error:
        message = str(error)
        assert "\n" not in message, message
        assert len(message) < 2000, message
        return False
    for name in model.names():
        model.tensor(name).tobytes()
        shape = model.shape(name.removesuffix(".tiles"))
        if shape:
            kernels.dequantize_rows(shape, model.tensor(name), np.array([shape.m - 1], np.int32))
    return True


def damage(name: str, data: bytes, rng: random.Random) -> bytes:
    """One of several kinds of damage to the content of a file."""
    if name.endswith(".json") and rng.random() < 0.7:
        return damage_json(data, rng)
    if name.endswith(".safetensors") and rng.random() < 0.8:
        length = int.from_bytes(data[:8], "little")
        if rng.random() < 0.3:
            length = rng.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**62, 2**64 - 1))
            return length.to_bytes(8, "little") + data[8:]
        header = damage_json(data[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    kind = rng.randrange(4)
    position = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data[:position] + rng.randbytes(rng.randrange(1, 64)) + data[position:]
    changed = bytearray(data)
    for _ in range(1 if kind == 2 else 16):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, rename or repeat a value somewhere in the tree."""
    tree = json.loads(data)
    places = [
        (node, key)
        for node in containers(tree)
        for key in (node if isinstance(node, dict) else range(len(node)))
    ]
    for _ in range(rng.choice((1, 1, 1, 3))):
        node, key = rng.choice(places)
        kind = rng.randrange(4)
        if isinstance(node, dict) and kind == 0:
            node.pop(key, None)
        elif isinstance(node, dict) and kind == 1:
            node[rng.choice(("x", "m", "model.norm.weight", "lm_head", "\n"))] = node.get(key)
        elif isinstance(node, dict) and isinstance(node.get(key), int) and kind == 2:
            node[key] += rng.choice((-1, 1, 64, 2**32))
        elif isinstance(node, dict) and isinstance(node.get(key), dict) and kind == 2:
            node[key] = list(node[key].values())
        elif isinstance(node, dict) or key < len(node):
            node[key] = rng.choice(VALUES)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def containers(tree: Any) -> list[Any]:
    """All dicts and lists of a JSON value."""
    if not isinstance(tree, dict | list):
        return []
    inner = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(found for value in inner for found in containers(value))]


def sign(files: dict[str, bytes], name: str) -> None:
    """Make the manifest agree with a file."""
    manifest = json.loads(files[MANIFEST])
    digest = hashlib.sha256(files[name]).hexdigest()
    manifest["files"][name] = {"size": len(files[name]), "sha256": digest}
    files[MANIFEST] = json.dumps(manifest).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    opened = fuzz(arguments.model, arguments.rounds, arguments.seed)
    print(f"{arguments.rounds} damaged models, {opened} of them opened, no error but PackedModelError")


if __name__ == "__main__":
    main()
