"""The shape of the source tree: layers, sizes, who may print, who may load the native module."""

import ast
import re
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import tmac_llm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tmac_llm"

# A module imports only from its own line and those below. A package stands for all of its modules that have no line.
LAYERS = [
    "__main__",
    "cli",
    "llm",
    "convert",
    "convert_gptq",
    "convert_plan",
    "store",
    "evaluation",
    "bench_compare",
    "profiling",
    "bench",
    "tune",
    "bench_threads",
    "bench_kernels",
    "bench_accuracy",
    "ceiling",
    "generation",
    "stop_strings",
    "sampling_defaults",
    "sampling",
    "tokenizer",
    "tokenizer_files",
    "text_stream",
    "chat_template",
    "gguf_tokenizer",
    "spm",
    "load",
    "mapped",
    "tuning",
    "cache",
    "synthetic",
    "calibration",
    "gptq",
    "quantize",
    "checkpoint",
    "packed",
    "model",
    "kernels",
    "_native",
    "model.config",
    "model.rope_config",
    "model.fields",
    "resources",
    "energy",
    "paths",
    "machine",
    "errors",
]


def sources(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def layer(module: str) -> str:
    """The line of LAYERS that a tmac_llm module belongs to, else the first part of its name."""
    name = module.removeprefix("tmac_llm").removeprefix(".")
    return name if name in LAYERS else name.partition(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything that a file imports from tmac_llm, at module level or inside functions."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            found = [f"{base}.{alias.name}" for alias in node.names] if base == "tmac_llm" else [base]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] == "tmac_llm")


@pytest.mark.parametrize("path", sources(PACKAGE, ".py"), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = layer(module_name(path))
    if not own:
        return  # tmac_llm/__init__.py hands out names of all layers, when they are asked for
    assert own in LAYERS, f"{own} has no place in LAYERS"
    for line, imported in imports(path):
        target = layer(imported)
        if target in ("", own, "__version__"):
            continue
        assert target in LAYERS, f"line {line}: {imported} has no place in LAYERS"
        assert LAYERS.index(target) > LAYERS.index(own), (
            f"line {line}: {own} imports {imported}, which lies above it"
        )


def test_only_kernels_load_the_native_module() -> None:
    for path in sources(PACKAGE, ".py"):
        if layer(module_name(path)) != "kernels":
            assert "_native" not in {layer(name) for _, name in imports(path)}, path


def test_only_the_command_line_prints_or_exits() -> None:
    for path in sources(PACKAGE, ".py"):
        if layer(module_name(path)) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                forbidden = (
                    "print",
                    "exit",
                    "quit",
                    "sys.exit",
                    "os._exit",
                    "sys.stdout.write",
                    "sys.stderr.write",
                )
                assert called not in forbidden, f"{path}:{node.lineno}: {called}"


def test_module_docstrings() -> None:
    for path in sources(PACKAGE, ".py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path}: no module docstring"


def test_file_lengths() -> None:
    """Python files up to 500 lines, C files up to 300, decoder.py on one screen of paper."""
    for folder, limit, suffixes in (
        (PACKAGE, 500, (".py",)),
        (ROOT / "tests", 500, (".py",)),
        (ROOT / "scripts", 500, (".py",)),
        (ROOT / "csrc", 300, (".c", ".h")),
    ):
        for path in sources(folder, *suffixes):
            n = len(path.read_text().splitlines())
            assert n <= limit, f"{path.relative_to(ROOT)}: {n} lines, at most {limit}"


def test_function_lengths() -> None:
    """Functions fit one screen: 50 lines without the docstring."""
    for path in sources(PACKAGE, ".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            n = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            assert n <= 50, f"{path}:{node.lineno}: {node.name} has {n} lines"


def test_public_names() -> None:
    """Every name of __all__ exists, and packages list what they re-export."""
    for name in tmac_llm.__all__:
        assert getattr(tmac_llm, name) is not None
    assert set(dir(tmac_llm)) == set(tmac_llm.__all__)
    for path in sources(PACKAGE, ".py"):
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py" or path.parent in (PACKAGE, PACKAGE / "cli"):
            continue
        exported = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith(f"tmac_llm.{path.parent.name}")
            for alias in node.names
        }
        listed = next(
            (
                set(ast.literal_eval(node.value))
                for node in tree.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            ),
            set(),
        )
        assert exported <= listed, f"{path}: {sorted(exported - listed)} missing from __all__"


def test_instruction_sets_stay_in_their_folders() -> None:
    """No CPU macro and no intrinsic outside csrc/arch, but for cpu.c and the pause of a spinning thread."""
    for path in sources(ROOT / "csrc", ".c", ".h"):
        relative = path.relative_to(ROOT / "csrc")
        if relative.parts[0] in ("arch", "bench") or relative.name == "cpu.c":
            continue
        text = path.read_text()
        assert not re.search(r"__AVX|__SSE|__ARM_NEON|immintrin|arm_neon", text), relative
        if relative.name != "threadpool.c":
            assert "__x86_64__" not in text, relative
            assert "__aarch64__" not in text, relative
