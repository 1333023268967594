"""The sampling that a model's generation_config.json asks for; does not sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tmac_llm.checkpoint.files import read_json
from tmac_llm.errors import CheckpointError, PackedModelError, UsageError
from tmac_llm.sampling import SamplingParams

# For models whose generation_config.json does not say how to sample.
DEFAULT_SAMPLING = SamplingParams(temperature=0.7, top_k=40, top_p=0.95, min_p=0.05)
# What transformers assumes for the keys that a generation_config.json with do_sample true leaves out.
_SAMPLE_UNSAID = SamplingParams(temperature=1.0, top_k=50)


def model_sampling(path: Path) -> SamplingParams:
    """The defaults of generation_config.json in the directory `path`.

    DEFAULT_SAMPLING where it says nothing of do_sample. Raises PackedModelError for values out of range.
    """
    file = path / "generation_config.json"
    if not file.is_file():
        return DEFAULT_SAMPLING
    try:
        config = read_json(file)
    except CheckpointError as error:
        raise PackedModelError(str(error)) from None
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    said = {name: config[name] for name in names if config.get(name) is not None}
    do_sample = config.get("do_sample")
    if do_sample is False:
        said["temperature"] = 0.0
    try:
        return replace(_SAMPLE_UNSAID if do_sample is True else DEFAULT_SAMPLING, **said)
    except UsageError as error:
        raise PackedModelError(f"{file}: {error}") from None
