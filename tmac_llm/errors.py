"""The exceptions of tmac-llm, each one line of text: what, where, expected and found, what to do next.

Knows nothing about how errors are shown; the command line prints the message and exits with `exit_code`.

TmacError
├── UsageError             wrong arguments (exit code 2)
├── CheckpointError        a source checkpoint is damaged or contradicts itself
│   └── UnsupportedError   a sound checkpoint of a kind that is not supported
├── HubError               a download failed
├── ConvertError           a conversion was refused or could not finish
├── PackedModelError       a packed model directory is damaged or of another version
├── StoreError             the local model store has no, or several, such models
├── TokenizerError         tokenizer files are missing or damaged
├── TemplateError          a chat template failed or is missing
├── ContextLengthError     a prompt and its answer do not fit the context
└── KernelError            the native library refused a call
"""


class TmacError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class UsageError(TmacError):
    """Wrong arguments."""

    exit_code = 2


class CheckpointError(TmacError):
    """A source checkpoint is damaged or contradicts itself."""


class UnsupportedError(CheckpointError):
    """A sound checkpoint of a kind that is not supported."""


class HubError(TmacError):
    """A download failed."""


class ConvertError(TmacError):
    """A conversion was refused or could not finish."""


class PackedModelError(TmacError):
    """A packed model directory is damaged or of another version."""


class StoreError(TmacError):
    """The local model store has no, or several, such models."""


class TokenizerError(TmacError):
    """Tokenizer files are missing or damaged."""


class TemplateError(TmacError):
    """A chat template failed or is missing."""


class ContextLengthError(TmacError):
    """A prompt and its answer do not fit the context."""


class KernelError(TmacError):
    """The native library refused a call."""
