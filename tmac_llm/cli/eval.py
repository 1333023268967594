"""The verb `eval`: perplexity of a packed model on a text, and its divergence from a reference model.

Knows options and output; tmac_llm.evaluation measures.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmac_llm.cli import console
from tmac_llm.cli import options as opt
from tmac_llm.errors import UsageError
from tmac_llm.paths import expand_user

if TYPE_CHECKING:
    from tmac_llm.evaluation import Estimate, Evaluation

# Short enough to follow a conversion: 2,040 scored tokens at the default context.
CHECK_CHUNKS = 8


def evaluate(
    text: Annotated[Path, typer.Option("--text", "-f", help="The text, a UTF-8 file.", show_default=False)],
    model: opt.Model = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            envvar="TMAC_REFERENCE",
            show_default=False,
            help="A packed model (directory or name) to compare with, such as the same one converted with "
            "--bits 16.",
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", "-c", min=8, help="Tokens of a chunk; its second half is scored.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks", min=1, show_default="the whole text", help="Evaluate the first N chunks only."
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Tokens of a pass; 1 is slow and runs the kernels that decoding does."
        ),
    ] = 128,
    tables: opt.Tables = None,
    cache_type: opt.CacheType = "f32",
    fast_aggregation: opt.FastAggregation = False,
    mmap: opt.Mmap = False,
    threads: opt.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure the quality of a model on a text: perplexity, and KL divergence from a reference.

    As llama.cpp's perplexity tool: the text is tokenised once (with bos where the model wants it) and cut into
    chunks, the remainder dropped; each starts with an empty cache and its first token replaced by bos; only
    the second half of a chunk is scored. Standard errors take tokens as independent.

    With --reference both models run side by side: KL divergence of every prediction, change of the true
    token's probability, and how often both find the same token most probable. --tables, --fast-aggregation and
    --cache-type are for the model only: beside itself as the reference it shows what they cost.
    """
    from tmac_llm import kernels
    from tmac_llm.cli.model_argument import packed_path, prepare_mmap

    if threads is not None:
        kernels.set_threads(threads)
    path = packed_path(model)
    other = _reference_path(reference) if reference else None
    checked, content = opt.checked_tables(tables, fast_aggregation), read_text(text)
    if mmap:
        for each in filter(None, (path, other)):
            prepare_mmap(each)
    result = measure(
        path,
        content,
        other,
        context=context,
        chunks=chunks,
        batch=batch,
        tables=checked,
        cache_type=opt.checked_cache_type(cache_type),
        mmap=mmap,
    )
    if as_json:
        facts = {"model": path.name, "reference": other.name if other else None, "text": str(text)}
        console.out(json.dumps(facts | asdict(result), indent=2) + "\n")
        return
    rows = [("model", _label(path))] + ([("reference", _label(other))] if other else [])
    rows += [("text", f"{text.name}: {scored(result)}"), *summary(result)]
    console.out("".join(f"{name:<16}{value}\n" for name, value in rows))


def read_text(path: Path, option: str = "--text") -> str:
    """The content of a text file, or a UsageError that names the option."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: not UTF-8 at byte {error.start}; convert the file") from None


def measure(
    path: Path,
    text: str,
    reference: Path | None,
    *,
    context: int | None = None,
    chunks: int | None = None,
    at_most: int | None = None,
    batch: int = 128,
    tables: Literal["int8", "exact", "fast"] | None = None,
    cache_type: Literal["f32", "int8"] = "f32",
    mmap: bool = False,
) -> Evaluation:
    """Evaluate the packed model at `path` with a progress bar.

    context: None is 512 tokens or the model's context. chunks: so many, UsageError where the text has less;
    at_most: no more than so many. Raises as tmac_llm.evaluation does.
    """
    from tmac_llm import evaluation
    from tmac_llm.load import load_decoder
    from tmac_llm.packed.container import PackedModel
    from tmac_llm.tokenizer import Tokenizer

    packed = [PackedModel.open(each) for each in (path, reference) if each]
    tokenizers = [Tokenizer.from_dir(each.path) for each in packed]
    context = context or min(evaluation.DEFAULT_CONTEXT, packed[0].config.max_position_embeddings)
    ids, bos = evaluation.encode_for_both(tokenizers[0], tokenizers[-1], text)
    windows = evaluation.windows(ids, context, bos)
    if chunks is not None and chunks > len(windows):
        raise UsageError(f"--chunks {chunks}: the text has {len(windows)} of {context} tokens")
    model = load_decoder(packed[0], tables, mmap=mmap)
    other = load_decoder(packed[1], mmap=mmap) if reference else None
    with console.progress(unit="tokens") as bar:
        task = bar.add_task("perplexity", total=None)

        def on_progress(done: int, total: int, perplexity: float) -> None:
            bar.update(task, description=f"perplexity {perplexity:.4f}", completed=done, total=total)

        return evaluation.evaluate(
            model, windows[: chunks or at_most], other, on_progress, batch=batch, cache_type=cache_type
        )


def scored(result: Evaluation) -> str:
    """How much was measured."""
    return f"{result.n_scored} tokens scored in {result.n_windows} chunks of {result.context}"


def summary(result: Evaluation) -> list[tuple[str, str]]:
    """(name, figures) of the lines to show."""
    rows = [("perplexity", _show(result.perplexity))]
    against = result.comparison
    if against:
        rows += [
            ("  reference", _show(against.perplexity)),
            ("  ln ratio", _show(against.log_ratio, sign="+")),
            (
                "KL divergence",
                f"{_show(against.kl)} nats; median {against.kl_median:.5f}, 99 % {against.kl_p99:.5f},"
                f" max {against.kl_max:.5f}",
            ),
            ("p of true token", f"{_percent(against.delta_p, '+')}, RMS {100 * against.delta_p_rms:.3f} %"),
            ("same top token", _percent(against.top1_agreement)),
        ]
    return rows


def _show(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.value:{sign}.5f} ± {estimate.error:.5f}"


def _percent(estimate: Estimate, sign: str = "") -> str:
    return f"{100 * estimate.value:{sign}.3f} ± {100 * estimate.error:.3f} %"


def _reference_path(reference: str) -> Path:
    """A packed directory or a name of the store: nothing is converted here, at bits nobody chose."""
    from tmac_llm import store

    path = expand_user(reference)
    return path if path.is_dir() else store.resolve(reference)


def _label(path: Path) -> str:
    from tmac_llm.packed.container import PackedModel

    packed = PackedModel.open(path)
    facts: Any = packed.quantization
    return (
        f"{path.name}: {packed.bits_per_weight:.2f} bits per weight ({facts['bits']}, head {facts['head_bits']}),"
        f" {console.size(packed.n_bytes)}"
    )
