"""The verb `doctor`: what this machine is, what the engine uses of it, and why not more.

Knows how to lay out the findings; machine.py and the kernels report them.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Annotated, Any

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt

HUGE_PAGES = {
    "always": "on for all memory",
    "madvise": "on for the weights, which ask for them",
    "never": "off: decoding from memory is slower; as root: "
    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    "unavailable": "this system has none",
}
_PROBE_BYTES = 32 << 20


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: opt.Threads = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Show the CPU, the instruction set in use and why not another, memory, versions, and a self-test."""
    facts = _facts(threads)
    if as_json:
        console.out(json.dumps(facts, indent=2) + "\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for i, line in enumerate(lines):
            console.out(f"{name if i == 0 else '':<{width}}  {line}\n")


def _facts(threads: int | None) -> dict[str, Any]:
    import tmac_llm
    from tmac_llm import kernels, machine, store

    if threads is not None:
        kernels.set_threads(threads)
    selected = kernels.isa_selected()
    system = f"Python {platform.python_version()}, {sys.platform} {platform.machine()}"
    free, total = console.size(machine.available_memory()), console.size(machine.total_memory())
    return {
        "tmac-llm": f"{tmac_llm.__version__}, {system}",
        "libraries": _versions(),
        "cpu": f"{machine.cpu_name()}, {machine.physical_cores()} physical cores",
        "threads": f"{kernels.n_threads()}: {_thread_reasons(threads)}",
        "instruction set": [_isa_line(isa, selected) for isa in kernels.isas()],
        "memory": [f"{free} free of {total}", *_memory_limits()],
        "huge pages": _huge_pages(),
        "store": str(store.home()),
        "mapped copies": _mapped_copies(),
        "tuning": _tuning(),
        "self-test": _self_test(),
    }


def _isa_line(isa: Any, selected: str) -> str:
    if isa.name == selected:
        return f"{isa.name}: in use ({isa.requires})"
    if isa.supported:
        return f"{isa.name}: available; TMAC_ISA={isa.name} selects it"
    return f"{isa.name}: not on this CPU, needs {isa.requires}"


def _thread_reasons(asked: int | None) -> str:
    from tmac_llm import machine

    return "--threads or TMAC_THREADS" if asked is not None else ", ".join(machine.thread_reasons())


def _memory_limits() -> list[str]:
    """Limits below the machine's, and what is left of each."""
    from tmac_llm import machine

    limits = (
        ("the control group leaves", machine.cgroup_memory(), "; loading more is refused"),
        ("RLIMIT_AS or RLIMIT_DATA leaves", machine.address_space(), "; `ulimit -v unlimited` lifts it"),
    )
    return [f"{name} {console.size(left)}{advice}" for name, left, advice in limits if left is not None]


def _huge_pages() -> list[str]:
    """The switch, what this process gets, and why not more."""
    from tmac_llm import machine

    state = machine.huge_pages()
    lines = [f"{state}: {HUGE_PAGES.get(state, '')}"]
    if state not in ("always", "madvise"):
        return lines
    if machine.huge_pages_disabled():
        return [*lines, "but forbidden to this process (PR_SET_THP_DISABLE), perhaps by its container"]
    asked, got = _try_huge_pages()
    shown = f"a test of {console.size(asked)} got {console.size(got)} in huge pages"
    why = (
        ""
        if got >= asked
        else "; memory is fragmented: close programs, or as root: echo 1 > /proc/sys/vm/compact_memory"
    )
    return [*lines, shown + why, "with --mmap the weights lie in 4 KiB pages of the file instead"]


def _try_huge_pages() -> tuple[int, int]:
    """(bytes that a matrix asks for, bytes that it gets) in huge pages."""
    import numpy as np

    from tmac_llm import kernels, machine

    before = machine.huge_page_memory()
    shape = kernels.MatrixShape(_PROBE_BYTES * 8 // 4 // 4096, 4096, 4, 0, False, 8.0)
    matrix = kernels.Matrix(shape, np.zeros(shape.packed_size, np.uint8))
    found = matrix.huge_bytes, max(0, machine.huge_page_memory() - before)
    matrix.close()
    return found


def _tuning() -> str:
    """What `tune` stored for this CPU, or why it cannot be used."""
    from tmac_llm import tuning
    from tmac_llm.errors import StoreError

    try:
        choices = tuning.load()
    except StoreError as error:
        return str(error)
    if not choices:
        return "nothing stored; `tmac-llm tune MODEL` measures"
    own = sum(choice != type(choice)() for choice in choices.values())
    return f"{len(choices)} shapes measured, {own} other than the defaults; {tuning.path()}"


def _mapped_copies() -> list[str]:
    """Files that --mmap made; each may be removed at any time."""
    from tmac_llm import mapped

    copies = [f"{copy} ({console.size(copy.stat().st_size)})" for copy in mapped.copies()]
    return copies or [f"none in {mapped.directory()}"]


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "tokenizers", "safetensors", "huggingface-hub")
    )


def _self_test() -> str:
    """A small product against numpy: integers must agree exactly."""
    import numpy as np

    from tmac_llm import kernels
    from tmac_llm.errors import KernelError

    rng = np.random.default_rng(0)
    shape = kernels.MatrixShape(m=192, k=256, bits=2, group_size=0, has_zeros=False, zero=1.0)
    codes = rng.integers(0, 3, (shape.m, shape.k)).astype(np.uint8)
    x = rng.integers(-127, 128, (1, shape.k)).astype(np.int8)
    tiles = kernels.pack(shape, codes, np.ones(shape.m, np.float32), None)
    found = kernels.Matrix(shape, tiles).matmul(x, tables="exact")
    expected = x.astype(np.int64) @ (codes.astype(np.int64) - 1).T
    if not np.array_equal(found, expected):
        raise KernelError(
            f"self-test: the {kernels.isa_selected()} kernels differ from numpy in "
            f"{int((found != expected).sum())} of {expected.size} sums; TMAC_ISA=scalar avoids them"
        )
    return "the kernels agree with numpy"
