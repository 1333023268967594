"""The native library as a whole: instruction set, threads, status codes; knows no matrix."""

import os
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tmac_llm import machine
from tmac_llm._native import ffi, lib
from tmac_llm.errors import KernelError

_lock = threading.Lock()
_initialised = False


class IsaInfo(NamedTuple):
    """One compiled-in instruction set."""

    name: str
    supported: bool  # by this CPU and operating system
    requires: str  # for people


def isas() -> list[IsaInfo]:
    """Compiled-in instruction sets, best first."""
    found: list[IsaInfo] = []
    while (name := lib.tmac_isa_name(len(found))) != ffi.NULL:
        i = len(found)
        supported = bool(lib.tmac_isa_supported(i))
        found.append(IsaInfo(_text(name), supported, _text(lib.tmac_isa_requires(i))))
    return found


def init(isa: str | None = None, n_threads: int | None = None) -> None:
    """Select an instruction set and start the threads; done on first use where nobody calls it.

    isa: a name of `isas()`; None: TMAC_ISA, or the best that this CPU supports. n_threads: None for
    `machine.default_threads()`. Matrices keep the instruction set that they were loaded for. Raises
    KernelError for an instruction set that is unknown or not supported.
    """
    with _lock:
        _init(isa, n_threads)


def ensure_initialised() -> None:
    """Make the library usable, whatever it was before."""
    if not _initialised:
        with _lock:
            if not _initialised:
                _init(None, None)


def isa_selected() -> str:
    """Name of the running instruction set."""
    ensure_initialised()
    return _text(lib.tmac_isa_selected())


def has_fast_aggregation() -> bool:
    """Whether the running instruction set knows tables "fast"."""
    ensure_initialised()
    return bool(lib.tmac_has_fast_aggregation())


def n_threads() -> int:
    """Threads of the pool, the caller included."""
    ensure_initialised()
    return int(lib.tmac_n_threads())


def set_threads(n: int) -> None:
    """Change the number of threads (>= 1). Not while another thread is inside the library."""
    init(isa_selected() if _initialised else None, n)


def fork_join_time(n_jobs: int, work: float) -> float:
    """Seconds of n_jobs jobs, one after the other, in which every thread works for `work` seconds."""
    ensure_initialised()
    elapsed = int(lib.tmac_fork_join_time(n_jobs, int(work * 1e9)))
    check(elapsed, f"{n_jobs} jobs of {work} s")
    return elapsed / 1e9


def explain_bus_errors(message: str) -> None:
    """Write this line and exit with 1 when a page of a mapped file is gone, from now on, in the whole process."""
    check(lib.tmac_explain_bus_errors(message.encode()[:1000]), "bus errors")


def check(status: int, what: str) -> None:
    """Raise KernelError for a negative status."""
    if status < 0:
        raise KernelError(f"{what}: {_text(lib.tmac_status_text(status))}")


def pointer(array: npt.NDArray[Any] | None) -> Any:
    """Address of an array's first element as a C pointer; the caller keeps the array alive."""
    return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)


def expect(what: str, array: object, dtypes: tuple[type, ...], shape: tuple[int, ...]) -> None:
    """Raise KernelError unless `array` is a numpy array in C order, of one of these dtypes and this shape."""
    wanted = f"{' or '.join(np.dtype(d).name for d in dtypes)} {shape}"
    if not isinstance(array, np.ndarray):
        raise KernelError(f"{what}: expected a numpy array {wanted}, found {type(array).__name__}")
    if array.dtype not in dtypes or array.shape != shape:
        raise KernelError(f"{what}: expected {wanted}, found {array.dtype.name} {array.shape}")
    if not array.flags.c_contiguous:
        raise KernelError(f"{what}: expected {wanted} in C order, found strides {array.strides}")


def _init(isa: str | None, n_threads: int | None) -> None:
    global _initialised
    source = "isa"
    if isa is None and os.environ.get("TMAC_ISA"):
        isa, source = os.environ["TMAC_ISA"], "TMAC_ISA"
    if isa is not None:
        _check_isa(isa, source)
    if n_threads is None:
        n_threads = machine.default_threads()
    if not 1 <= n_threads <= machine.MAX_THREADS:
        raise KernelError(f"n_threads={n_threads}: expected 1 to {machine.MAX_THREADS}")
    status = lib.tmac_init(ffi.NULL if isa is None else isa.encode(), n_threads)
    check(status, f"starting {n_threads} threads")
    _initialised = True


def _check_isa(isa: str, source: str) -> None:
    known = isas()
    usable = ", ".join(i.name for i in known if i.supported)
    for info in known:
        if info.name == isa and info.supported:
            return
        if info.name == isa:
            raise KernelError(
                f"{source}={isa}: this CPU lacks it (needs {info.requires}); it can run {usable}"
            )
    compiled = ", ".join(
        i.name if i.supported else f"{i.name} (not on this CPU: needs {i.requires})" for i in known
    )
    raise KernelError(f"{source}={isa}: no such instruction set; this build has {compiled}")


def _text(c_string: Any) -> str:
    return str(ffi.string(c_string).decode())
