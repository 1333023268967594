"""fetch against a local server that speaks the Hub's endpoints, some calls in processes of their own."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from huggingface_hub import constants

from tmac_llm.checkpoint import hub as hub_module
from tmac_llm.checkpoint import hub_download
from tmac_llm.checkpoint.hub import fetch, needed_files
from tmac_llm.errors import HubError, TmacError, UnsupportedError

MODEL = b"\x01" * 3000
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "README.md": b"text", ".gitattributes": b""}
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens

CALL = """
import json, sys
from tmac_llm.checkpoint import hub_download
from tmac_llm.checkpoint.hub import fetch
from tmac_llm.errors import TmacError
hub_download.RETRY_SECONDS = (0, 0)
seen = []
try:
    path = fetch(progress=lambda *p: seen.append(p), **json.loads(sys.argv[1]))
    answer = {"path": str(path), "files": {p.relative_to(path).as_posix(): p.stat().st_size
                                            for p in path.rglob("*") if p.is_file()}}
except TmacError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**answer, "seen": seen}))
"""


@pytest.fixture
def hub() -> Iterator[Any]:
    repos = {
        "o/model": hub_server.Repo({**SMALL, "model.safetensors": MODEL}),
        "o/gated": hub_server.Repo({**SMALL, "model.safetensors": MODEL}, gated=True),
        "o/private": hub_server.Repo({**SMALL, "model.safetensors": MODEL}, private=True),
        "o/pickle": hub_server.Repo({**SMALL, "pytorch_model.bin": b"\x80" * 100}),
        "o/broken": hub_server.Repo(dict(SMALL), broken=500),
        "o/busy": hub_server.Repo(dict(SMALL), broken=429),
    }
    with hub_server.HubServer(repos) as running:
        yield running


class Processes:
    """Calls fetch in a new process, whose cache and Hub come from the environment."""

    def __init__(self, url: str, home: Path) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HOME": str(home)}
        self.environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
        self.cache = home / "hub"

    def __call__(self, source: str, environment: dict[str, str] | None = None, **arguments: Any) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", CALL, json.dumps({"source": source, **arguments})],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def call_process(hub: Any, tmp_path: Path) -> Processes:
    return Processes(hub.url, tmp_path / "home")


@pytest.fixture
def cache(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points huggingface_hub, in this process, at the server and an empty cache."""
    path = tmp_path / "hub"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(path),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub_download, "RETRY_SECONDS", (0, 0))
    return path


@pytest.fixture
def call(cache: Path) -> Callable[..., str]:
    """fetch, or the text of its error after the type: "HubError: ..."."""

    def run(source: str, **arguments: Any) -> str:
        try:
            return str(fetch(source, **arguments))
        except TmacError as error:
            message = f"{type(error).__name__}: {error}"
        assert message.isprintable()
        return message

    return run


def parts(cache: Path) -> list[Path]:
    return list((cache / "models--o--model" / "blobs").glob("*.part"))


def test_download_only_the_needed_files_once(hub: Any, call_process: Processes) -> None:
    first = call_process("o/model")
    assert first["files"] == {"config.json": 2, "tokenizer.json": 8, "model.safetensors": 3000}
    assert first["seen"][-1] == [3010, 3010]
    assert all(0 <= done <= total == 3010 for done, total in first["seen"])
    assert hub.downloads("model.safetensors") == [None]
    assert not hub.downloads("README.md")
    assert call_process("o/model")["path"] == first["path"]
    assert hub.downloads("model.safetensors") == [None]
    assert call_process.cache in Path(first["path"]).parents


def test_offline_from_the_cache(call_process: Processes) -> None:
    first = call_process("o/model")
    for environment, reason in [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": UNREACHABLE}, f"{UNREACHABLE} cannot be reached"),
    ]:
        assert call_process("o/model", environment, revision="main")["path"] == first["path"]
        other = call_process("o/gated", environment)
        assert other["error"] == "HubError"
        assert other["message"].startswith(
            f"o/gated: {reason} and the model is not in the cache; check the net"
        )


def test_offline_with_a_part_in_the_cache(hub: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_map = json.dumps(
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    )
    shards = {"model-1-of-2.safetensors": b"1" * 10, "model-2-of-2.safetensors": b"2" * 10}
    hub.repos["o/sharded"] = hub_server.Repo(
        {**SMALL, **shards, "model.safetensors.index.json": weight_map.encode()}
    )
    path = call("o/sharded")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert call("o/sharded") == path
    (Path(path) / "model-2-of-2.safetensors").unlink()
    assert "the cache has only a part of the model; run again with a network" in call("o/sharded")


def test_gguf_files(hub: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several by name, split ones whole, the only one by itself; offline too, and resumed as safetensors are."""
    split = {f"q8/m-0000{i}-of-00002.gguf": b"GGUF" * i for i in (1, 2)}
    hub.repos["o/one"] = hub_server.Repo({"README.md": b"", "a.gguf": MODEL}, cuts={"a.gguf": [0, 100]})
    hub.repos["o/many"] = hub_server.Repo({**SMALL, "a.gguf": MODEL, "b.gguf": b"b", **split})
    assert Path(call("o/one")).name == "a.gguf"
    assert Path(call("o/one")).read_bytes() == MODEL
    assert (
        "HubError: o/many: holds 3 GGUF models, say which with convert --file NAME: a.gguf, b.gguf, q8/"
        in call("o/many")
    )
    path = Path(call("o/many", file="q8/m-00001-of-00002.gguf"))
    assert [p.stat().st_size for p in sorted(path.parent.iterdir())] == [4, 8]
    assert not hub.downloads("a.gguf")[3:]
    assert Path(call("o/many", file="b.gguf")).read_bytes() == b"b"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Path(call("o/one")).read_bytes() == MODEL
    assert Path(call("o/many", file="b.gguf")).read_bytes() == b"b"
    assert "the cache holds 2 GGUF models, say which" in call("o/many")
    assert "is set and the model is not in the cache" in call("o/many", file="a.gguf")


def test_a_cut_connection_is_resumed(hub: Any, call: Any) -> None:
    hub.repos["o/model"].cuts["model.safetensors"] = [0, 1000, 500]
    assert (Path(call("o/model")) / "model.safetensors").read_bytes() == MODEL
    assert hub.downloads("model.safetensors") == [None, None, "bytes=1000-", "bytes=1500-"]


def test_an_interrupted_download_goes_on_later(hub: Any, call_process: Processes) -> None:
    """The server vanishes in the middle; the next call, in another process, asks for the rest only."""
    hub.repos["o/model"].cuts["model.safetensors"] = [1000, 0, 0, 0]
    answer = call_process("o/model")
    assert answer["error"] == "HubError"
    assert answer["message"].startswith("o/model: the download was interrupted (")
    assert answer["message"].endswith("run the same command again: it goes on where it stopped")
    assert call_process("o/model", {"HF_HUB_OFFLINE": "1"})["error"] == "HubError"
    hub.requests.clear()
    done = call_process("o/model")
    assert hub.downloads("model.safetensors") == ["bytes=1000-"]
    assert (Path(done["path"]) / "model.safetensors").read_bytes() == MODEL
    assert not parts(call_process.cache)


def interrupt(hub: Any, call: Any, cache: Path) -> Path:
    """The part that a download leaves which stops after 1000 bytes."""
    hub.repos["o/model"].cuts["model.safetensors"] = [1000, 0, 0, 0]
    assert "interrupted" in call("o/model")
    hub.requests.clear()
    (part,) = parts(cache)
    assert part.read_bytes() == MODEL[:1000]
    return part


def test_a_part_that_was_damaged_is_not_used(hub: Any, call: Any, cache: Path) -> None:
    interrupt(hub, call, cache).write_bytes(bytes(1000))
    assert call("o/model").startswith("HubError: o/model: model.safetensors: SHA-256")
    assert (Path(call("o/model")) / "model.safetensors").read_bytes() == MODEL


@pytest.mark.parametrize("size", [3000, 5000])
def test_a_part_as_long_as_the_file_or_longer(hub: Any, call: Any, cache: Path, size: int) -> None:
    """A process that died between the last byte and the rename, and a part of something else."""
    interrupt(hub, call, cache).write_bytes((MODEL * 2)[:size])
    assert (Path(call("o/model")) / "model.safetensors").read_bytes() == MODEL
    assert hub.downloads("model.safetensors") == ([] if size == 3000 else [None])


def test_a_server_that_ignores_ranges(hub: Any, call: Any) -> None:
    repo = hub.repos["o/model"]
    repo.ranges = False
    repo.cuts["model.safetensors"] = [1000]
    assert (Path(call("o/model")) / "model.safetensors").read_bytes() == MODEL
    assert hub.downloads("model.safetensors") == [None, "bytes=1000-"]


def test_two_downloads_of_one_file(hub: Any, call: Any, cache: Path) -> None:
    with interrupt(hub, call, cache).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is downloading model.safetensors; wait" in call("o/model")
    assert not call("o/model").startswith("HubError")


def test_unknown_repository(call: Any) -> None:
    message = call("o/none")
    assert message.startswith("HubError: o/none: no such repository at http://127.0.0.1:")
    assert "check the name" in message
    assert call("o/none", token=hub_server.GOOD_TOKEN) == message


def test_private_repository(call: Any) -> None:
    assert "pass --token or set HF_TOKEN" in call("o/private")
    assert (Path(call("o/private", token=hub_server.GOOD_TOKEN)) / "model.safetensors").exists()


def test_gated_repository(hub: Any, call: Any, call_process: Processes) -> None:
    page = f"accept its licence at {hub.url}/o/gated, then pass --token or set HF_TOKEN"
    assert call("o/gated") == f"HubError: o/gated: a gated repository and no valid token was sent; {page}"
    known = call("o/gated", token=hub_server.OTHER_TOKEN)
    assert known == f"HubError: o/gated: a gated repository and this token has no access; {page}"
    assert call_process("o/gated", {"HF_TOKEN": hub_server.GOOD_TOKEN})["files"]


def test_refused_token(call: Any) -> None:
    message = call("o/gated", token="hf_wrong")
    assert "refused the token (401); pass a valid --token, or unset HF_TOKEN" in message
    assert "hf_wrong" not in message


def test_revisions(call: Any) -> None:
    assert (Path(call("o/model", revision="v2")) / "model.safetensors").exists()
    message = call("o/model", revision="v3")
    assert message.startswith("HubError: o/model: no revision 'v3'; its branches and tags are listed at http")


def test_server_trouble(call: Any) -> None:
    assert "answered with status 500; try again later" in call("o/broken")
    assert "limits the rate of requests (429)" in call("o/busy")


def test_pickle_only_is_refused_before_anything_is_downloaded(hub: Any, call: Any) -> None:
    assert call("o/pickle").startswith(
        "UnsupportedError: o/pickle: weights only as pickle (pytorch_model.bin)"
    )
    assert not hub.downloads("pytorch_model.bin")
    assert not hub.downloads("config.json")


def test_full_disk(hub: Any, call: Any) -> None:
    """A listing that promises more than any disk holds is refused at once."""

    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 60

    hub.repos["o/model"].files["model.safetensors"] = Huge()
    message = call("o/model")
    assert "the download needs 1152921504.6 GB but" in message
    assert "set HF_HOME to another disk" in message
    assert not hub.downloads("config.json")


def test_disk_that_fills_during_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise RuntimeError("while writing") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        hub_module, "_list_files", lambda *_: ("0" * 40, {"config.json": 2, "model.safetensors": 10})
    )
    monkeypatch.setattr(hub_module, "download_blob", full)
    with pytest.raises(HubError, match=r"^o/model: the disk is full; .*HF_HOME"):
        fetch("o/model")


def test_a_bug_is_not_called_an_interrupted_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_list_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch("o/model")


def test_ctrl_c_stops_the_download_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def endless(*arguments: Any) -> None:
        transfer = arguments[-1]
        while not transfer.cancelled:
            transfer.n_bytes += 1
            time.sleep(0.01)
        stopped.set()
        raise InterruptedError

    def interrupt(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        hub_module, "_list_files", lambda *_: ("0" * 40, {"config.json": 2, "model.safetensors": 10})
    )
    monkeypatch.setattr(hub_module, "download_blob", endless)
    with pytest.raises(KeyboardInterrupt):
        fetch("o/model", progress=interrupt)
    assert stopped.wait(5)


def test_a_cancelled_download_keeps_its_part(hub: Any, call_process: Processes) -> None:
    """The signal of Ctrl-C in the middle of a file; afterwards only the rest is asked for."""
    repo = hub.repos["o/model"]
    repo.files["model.safetensors"] = MODEL * 1000
    repo.stalls["model.safetensors"] = 1000000
    code = CALL.replace("seen = []", "import os, signal").replace("lambda *p: seen.append(p)", "stop")
    code = code.replace(
        "try:", "stop = lambda done, _: done > 500000 and os.kill(os.getpid(), signal.SIGINT)\ntry:", 1
    )
    arguments = [sys.executable, "-c", code, json.dumps({"source": "o/model"})]
    done = subprocess.run(
        arguments, env=call_process.environment, capture_output=True, text=True, check=False
    )
    assert "KeyboardInterrupt" in done.stderr
    (part,) = parts(call_process.cache)
    size = part.stat().st_size
    assert 500000 < size <= 1000000
    hub.requests.clear()
    repo.stalls.clear()
    path = Path(call_process("o/model")["path"])
    assert hub.downloads("model.safetensors") == [f"bytes={size}-"]
    assert (path / "model.safetensors").read_bytes() == MODEL * 1000


def test_local_paths_need_no_hub(tmp_path: Path) -> None:
    assert fetch(tmp_path) == tmp_path
    assert fetch(str(tmp_path)) == tmp_path
    with pytest.raises(HubError, match="a local path has no revision"):
        fetch(tmp_path, revision="main")


@pytest.mark.parametrize(
    "source", ["./nothing", "/no/such/dir", "a/b/c", "model.gguf/", "https://x.y/o/m", "", "a b/c"]
)
def test_neither_path_nor_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="no such file or directory, and not a Hub id"):
        fetch(source)


INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        ([INDEX, *SHARDS, "consolidated.safetensors"], [INDEX, *SHARDS]),
        ([INDEX, *SHARDS, "original/model.safetensors", "pytorch_model.bin"], [INDEX, *SHARDS]),
        (["model.safetensors", INDEX, *SHARDS], ["model.safetensors"]),
        (["weights.safetensors", "adapter_model.safetensors"], ["weights.safetensors"]),
        ([INDEX, "a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors", INDEX]),
    ],
)
def test_which_weights_are_needed(names: list[str], weights: list[str]) -> None:
    assert needed_files("o/m", ["config.json", *names]) == [*weights, "config.json"]


def test_gguf_models() -> None:
    split = ["q/b-00001-of-00002.gguf", "q/b-00002-of-00002.gguf"]
    assert needed_files("o/m", ["README.md", "a.gguf", "tokenizer.json"]) == ["a.gguf", "tokenizer.json"]
    assert needed_files("o/m", ["README.md", *split]) == split
    names = ["config.json", "model.safetensors", "a.gguf", *split]
    assert needed_files("o/m", names) == ["model.safetensors", "config.json"]
    assert needed_files("o/m", names, "a.gguf") == ["a.gguf", "config.json"]
    assert needed_files("o/m", names, split[0]) == [*split, "config.json"]
    with pytest.raises(
        HubError, match=r"o/m: the repository has no file c\.gguf; its GGUF models: a\.gguf, q/b"
    ):
        needed_files("o/m", names, "c.gguf")
    with pytest.raises(HubError, match="no file q/b-00002-of-00002"):
        needed_files("o/m", ["a.gguf", split[0]], split[0])


def test_which_small_files_are_needed() -> None:
    small = ["chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "tokenizer.model"]
    small = [*small, "additional_chat_templates/tool_use.jinja"]
    other = ["LICENSE", "onnx/config.json", "training_args.bin", "original/tokenizer.model", "runs/a.json"]
    assert needed_files("o/m", ["model.safetensors", *small, *other]) == ["model.safetensors", *sorted(small)]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            ["a.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf"],
            HubError,
            r"2 GGUF models, say which .*: a\.gguf, b",
        ),
        (
            ["config.json", "original/model.safetensors", "a.pth"],
            UnsupportedError,
            "o/m: weights only as pickle",
        ),
        (["config.json", "README.md"], HubError, r"o/m: the repository has no \.safetensors and no \.gguf"),
        (["model.safetensors"], HubError, r"o/m: the repository has no config\.json"),
    ],
)
def test_repositories_without_a_model(names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        needed_files("o/m", names)
