"""The files that ship with the package, in a source tree and in a wheel."""

import shutil
from pathlib import Path

import pytest

import tmac_llm
from tmac_llm import resources
from tmac_llm.errors import StoreError


@pytest.fixture(autouse=True)
def forget() -> None:
    resources.models_dir.cache_clear()


def test_models_of_the_source_tree() -> None:
    assert (resources.models_dir() / "known").is_dir()
    assert (resources.default_model() / "config.json").is_file()
    models = resources.known_models()
    assert models["llama-2-7b"].config["hidden_size"] == 4096
    assert all(name == model.name and "/" in model.repo_id for name, model in models.items())


def test_models_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "tmac_llm"
    shutil.copytree(resources.models_dir() / "known", package / "models" / "known")
    resources.models_dir.cache_clear()
    monkeypatch.setattr(tmac_llm, "__path__", [str(package)])
    assert resources.models_dir() == package / "models"
    with pytest.raises(StoreError, match="the embedded model is missing"):
        resources.default_model()
    resources.models_dir.cache_clear()
    shutil.rmtree(package / "models")
    with pytest.raises(StoreError, match="models/known is missing from this installation"):
        resources.models_dir()
