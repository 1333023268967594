"""Read the tokenizer files of a Hub repository: tokenizer.json or tokenizer.model, and the JSON beside them.

Knows files and their keys; does not encode anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, processors

from tmac_llm import spm
from tmac_llm.chat_template import ChatTemplate
from tmac_llm.checkpoint.files import read_json
from tmac_llm.errors import CheckpointError, TemplateError, TokenizerError


class TokenizerFiles(NamedTuple):
    """What the files of one repository say.

    config: tokenizer_config.json over special_tokens_map.json. eos_token_ids: of generation_config.json, else
    of config.json. prepare: puts the leading space in front of a text, where the tokenizer itself does not.
    """

    tokenizer: Tokenizer
    config: Mapping[str, Any]
    eos_token_ids: list[int]
    chat_template: ChatTemplate | None
    prepare: Callable[[str], str] | None


def read_files(path: Path) -> TokenizerFiles:
    """Read a directory. Raises TokenizerError and TemplateError as Tokenizer.from_dir says."""
    config = _read(path / "special_tokens_map.json") | _read(path / "tokenizer_config.json")
    prepare = None
    if (path / "tokenizer.json").is_file():
        tokenizer = _load_json(path / "tokenizer.json")
    elif (path / "tokenizer.model").is_file():
        tokenizer, prepare = _load_spm(path / "tokenizer.model", config)
    else:
        raise TokenizerError(
            f"{path}: no tokenizer.json, no tokenizer.model; copy one there from the original repository"
        )
    added = {i: text for text, i in _read(path / "added_tokens.json").items() if isinstance(i, int)}
    _add_tokens(tokenizer, added, config.get("added_tokens_decoder"), path)
    generation, model = _read(path / "generation_config.json"), _read(path / "config.json")
    eos = _ids(generation.get("eos_token_id")) or _ids(model.get("eos_token_id"))
    return TokenizerFiles(tokenizer, config, eos, _chat_template(path, config), prepare)


def _load_json(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"{path}: not a tokenizer: {' '.join(str(error).split())[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_spm(path: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, Callable[[str], str] | None]:
    """A tokenizer and, where only the beginning of a text gets a space, the function that adds it."""
    model = spm.read(path)
    each = config.get("legacy") is not False and not model.user_defined
    tokenizer = spm.build(model, prefix_each=each)
    n_pieces = len(model.pieces)
    bos = model.pieces[model.bos_id][0] if 0 <= model.bos_id < n_pieces else None
    if config.get("add_bos_token", True) and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, model.bos_id)]
        )

    return tokenizer, None if each else partial(spm.prepare, model)


def _add_tokens(tokenizer: Tokenizer, added: Mapping[int, str], decoder: Any, path: Path) -> None:
    """Add tokens that only added_tokens.json or tokenizer_config.json names; gaps become unused specials."""
    tokens = {i: AddedToken(text, normalized=False, special=True) for i, text in added.items()}
    for key, value in decoder.items() if isinstance(decoder, dict) else ():
        if str(key).isdigit() and isinstance(value, dict) and isinstance(value.get("content"), str):
            flags = {
                f: bool(value.get(f)) for f in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            tokens[int(key)] = AddedToken(value["content"], **flags)
    missing = {i: token for i, token in tokens.items() if tokenizer.id_to_token(i) is None}
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if missing and max(missing) >= size + len(missing) + 4096:
        raise TokenizerError(f"{path}: added token id {max(missing)}, but there are only {size} tokens")
    for i in range(min(missing, default=0), max(missing, default=-1) + 1):
        if tokenizer.id_to_token(i) is None:
            tokenizer.add_tokens([missing.get(i, AddedToken(f"[PAD{i}]", normalized=False, special=True))])
    for i, token in missing.items():
        if tokenizer.token_to_id(token.content) != i:
            raise TokenizerError(
                f"{path}: added token {token.content!r} should have id {i},"
                f" the tokenizer gives it {tokenizer.token_to_id(token.content)}"
            )


def _chat_template(path: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """chat_template.jinja, else the entry of tokenizer_config.json: a text, or a list of named ones."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return ChatTemplate(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{file}: cannot be read: {error}") from None
    where = str(path / "tokenizer_config.json")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    if found is None:
        return None
    if not isinstance(found, str):
        raise TemplateError(f"{where}: chat_template: expected a text or a list of name and template")
    return ChatTemplate(found, where)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool)]


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
