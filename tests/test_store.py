"""The store: where it lies, how names are made, found and refused, and what removing frees."""

import os
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from tmac_llm import store
from tmac_llm.convert import convert
from tmac_llm.errors import StoreError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=1).path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models directory of an empty store."""
    monkeypatch.setenv("TMAC_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def sizes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_home_is_a_directory_of_the_user(monkeypatch):
    monkeypatch.delenv("TMAC_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    assert store.home() == Path("/somewhere/data/tmac-llm")
    monkeypatch.setenv("TMAC_HOME", "~/models of mine")
    assert store.home() == Path.home() / "models of mine"
    monkeypatch.setenv("TMAC_HOME", "")
    assert store.home() == Path("/somewhere/data/tmac-llm")


def test_a_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMAC_HOME", "~nobody-at-all/models")
    with pytest.raises(StoreError, match="~nobody-at-all/models: there is no such user"):
        store.home()


def test_a_user_without_a_home(monkeypatch):
    for name in ("HOME", "TMAC_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(key):
        raise KeyError(key)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(StoreError, match="no home directory is known; set TMAC_HOME"):
        store.home()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/model", "org--model-2bit"),
        ("meta-llama/Llama-3.2-1B", "meta-llama--Llama-3.2-1B-2bit"),
        ("a/b/../..", "a--b--..---2bit"),
        ("/nowhere/my model", "nowhere--my--model-2bit"),
        ("日本/モデル", "model-2bit"),
        (".hidden", "hidden-2bit"),
    ],
)
def test_names_are_readable_and_plain(source, name):
    found = store.model_name(source, encoding="2bit")
    assert "/" not in found
    assert not found.startswith(".")
    if ".." not in source:
        assert found == name


def test_a_local_source_is_named_after_its_directory(tmp_path):
    (tmp_path / "My Model").mkdir()
    (tmp_path / "My Model" / "model.safetensors").touch()
    assert store.model_name(str(tmp_path / "My Model"), encoding="4bit") == "My--Model-4bit"
    assert (
        store.model_name(str(tmp_path / "My Model" / "model.safetensors"), encoding="4bit")
        == "My--Model-4bit"
    )


def test_an_empty_store(models):
    assert store.list_models() == []
    assert store.matches("anything") == []
    with pytest.raises(
        StoreError, match=r"anything: no packed model .*; .*models is empty; `tmac-llm convert`"
    ):
        store.resolve("anything")
    assert not models.exists()


def test_list(models, checkpoint):
    for bits in (4, 2, 16):
        convert(checkpoint, models / f"org--model-{bits}bit", bits=bits, force=True)
    (models / "something else").mkdir()
    (models / "a file").touch()
    entries = store.list_models()
    assert [(entry.name, entry.bits) for entry in entries] == [
        ("org--model-16bit", 16),
        ("org--model-2bit", 2),
        ("org--model-4bit", 4),
    ]
    for entry in entries:
        assert entry.path == models / entry.name
        assert entry.n_bytes == sizes(entry.path)
        assert entry.source == str(checkpoint)
        assert entry.source_format == "dense bf16"


def test_unfinished_conversions_are_not_listed(models, checkpoint):
    convert(checkpoint, models / "model-2bit", bits=2, force=True)
    (models / "model-2bit").rename(models / ".model-2bit.convert-123-0123abcd")
    assert store.list_models() == []


def test_a_damaged_model_is_listed_and_can_be_removed(models, checkpoint):
    convert(checkpoint, models / "model-2bit", bits=2, force=True)
    (models / "model-2bit" / "config.json").write_text("{")
    (entry,) = store.list_models()
    assert (entry.bits, entry.source_format) == (0, "damaged")
    assert store.remove("model-2bit") == entry.n_bytes


def test_names_resolve(models, checkpoint):
    for name in (
        "org--model-2bit",
        "org--model-v2-4bit",
        "other--Llama-7b-ternary",
        "other--Llama-7b-4bit-g64-h6-sym",
    ):
        convert(checkpoint, models / name, bits=2, force=True)
    for given, name in (
        ("org--model-2bit", "org--model-2bit"),
        ("org/model", "org--model-2bit"),
        ("model", "org--model-2bit"),
        ("ORG/Model", "org--model-2bit"),
        ("org/model-v2", "org--model-v2-4bit"),
        ("v2", "org--model-v2-4bit"),
        ("ternary", "other--Llama-7b-ternary"),
    ):
        assert store.resolve(given) == models / name
    with pytest.raises(StoreError, match=r"llama: matches several models") as error:
        store.resolve("llama")
    assert str(error.value).endswith("other--Llama-7b-4bit-g64-h6-sym, other--Llama-7b-ternary")
    assert len(store.matches("other/llama-7b")) == 2
    # A Hub id means itself, never a longer one that begins alike.
    assert store.matches("org/mod") == []
    with pytest.raises(StoreError, match=r"org/mod: no packed model .* known are org--model-2bit, "):
        store.resolve("org/mod")


def test_paths_resolve_to_themselves(models, checkpoint, tmp_path, monkeypatch):
    convert(checkpoint, tmp_path / "packed", bits=2, force=True)
    assert store.resolve(tmp_path / "packed") == tmp_path / "packed"
    monkeypatch.chdir(tmp_path)
    assert store.resolve("packed") == Path("packed")


def test_a_checkpoint_resolves_to_what_was_made_of_it_last(models, tmp_path):
    source = write_checkpoint(tmp_path / "one" / "tiny").path
    other = write_checkpoint(tmp_path / "two" / "tiny", seed=1).path
    path = convert(source).path
    assert path == models / "tiny-4bit"
    assert [entry.path for entry in store.matches(str(source))] == [path]
    assert store.matches(str(other)) == []
    os.utime(source / "config.json", (2**32, 2**32))
    assert store.matches(str(source)) == []


def test_remove_takes_exact_names_only(models, checkpoint):
    convert(checkpoint, models / "org--model-2bit", bits=2, force=True)
    size = sizes(models / "org--model-2bit")
    for name in (
        "org/model",
        "model",
        "",
        ".",
        "..",
        "../models",
        "org--model-2bit/",
        str(models / "org--model-2bit"),
    ):
        with pytest.raises(StoreError, match="no packed model"):
            store.remove(name)
    assert store.find("org--model-2bit").n_bytes == size
    assert store.remove("org--model-2bit") == size
    assert list(models.iterdir()) == []
    with pytest.raises(StoreError):
        store.find("org--model-2bit")
