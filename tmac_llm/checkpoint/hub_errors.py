"""Turns what huggingface_hub and the network raise into one line that says what to do; downloads nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from tmac_llm.errors import HubError, TmacError


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_unreachable(error: BaseException) -> bool:
    """A failure of the network, not an answer; by name, as the HTTP library of huggingface_hub varies."""
    names = {"ConnectionError", "TransportError", "RequestException"}
    return any(names & {c.__name__ for c in type(e).__mro__} for e in _chain(error))


def explain(error: Exception, repo: str, revision: str | None) -> HubError | None:
    """One line for an error of huggingface_hub or the network; None for any other."""
    from huggingface_hub import errors

    if isinstance(error, TmacError):
        return None
    page = f"{endpoint()}/{repo}"
    chain = list(_chain(error))

    def first(*kinds: type[BaseException]) -> Any:
        return next((e for e in chain if isinstance(e, kinds)), None)

    if gated := first(errors.GatedRepoError):
        sent = "this token has no access" if gated.response.status_code == 403 else "no valid token was sent"
        return HubError(
            f"{repo}: a gated repository and {sent}; accept its licence at {page},"
            " then pass --token or set HF_TOKEN"
        )
    if first(errors.RevisionNotFoundError):
        return HubError(
            f"{repo}: no revision {revision!r}; its branches and tags are listed at {page}/tree/main"
        )
    if first(errors.RepositoryNotFoundError):
        return HubError(
            f"{repo}: no such repository at {endpoint()}, or a private one; check the name,"
            " and for a private one pass --token or set HF_TOKEN"
        )
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return HubError(
            f"{repo}: the disk is full; free some space or set HF_HOME to another disk,"
            " then run the same command again: the download goes on where it stopped"
        )
    if http := first(errors.HfHubHTTPError):
        return HubError(f"{repo}: {_status_line(http.response.status_code)}")
    if invalid := first(errors.HFValidationError):
        return HubError(f"{repo}: not a Hub id ({_one_line(invalid)}); expected the form owner/name")
    if not (first(OSError) or is_unreachable(error)):
        return None
    return HubError(
        f"{repo}: the download was interrupted ({_one_line(chain[-1])});"
        " run the same command again: it goes on where it stopped"
    )


def _status_line(status: int) -> str:
    if status == 401:
        return f"{endpoint()} refused the token (401); pass a valid --token, or unset HF_TOKEN"
    if status == 403:
        return f"{endpoint()} forbids the access (403); pass a --token that may read this repository"
    if status == 429:
        return f"{endpoint()} limits the rate of requests (429); wait a few minutes, or pass --token"
    return f"{endpoint()} answered with status {status}; try again later"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
