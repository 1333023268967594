"""What a path that a person typed means; reads nothing."""

import os
from pathlib import Path


def expand_user(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ or ~user replaced; as it is where there is no such user, and then missing."""
    return Path(os.path.expanduser(path))  # Path's own raises RuntimeError
