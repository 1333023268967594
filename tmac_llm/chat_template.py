"""Render the Jinja chat template of a Hub repository, which is untrusted code, in a sandbox with bounds.

Knows Jinja and messages; knows no tokens.

The environment is the one that transformers documents for chat templates: trim_blocks, lstrip_blocks, break
and continue, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, and `{% generation %}` blocks,
which are rendered as if the tags were not there.

Bounds: loops make MAX_LOOPS turns in all; no text that an operator, a filter or a method makes, nor the
result, exceeds MAX_SIZE characters, and no list MAX_ITEMS, nested ones counted. Nothing pads text to a width.
"""

from __future__ import annotations

import datetime
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context as JinjaContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tmac_llm.errors import TemplateError

MAX_SIZE = 4_000_000
MAX_ITEMS = 200_000
MAX_LOOPS = 1_000_000
Message = dict[str, Any]

_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_FILTERS_OUT = ("batch", "center", "slice", "format", "wordwrap", "pprint", "random", "urlize", "xmlattr")


class _Refused(JinjaError):
    """raise_exception() was called: the template does not take these messages."""


class ChatTemplate:
    """A compiled template. Raises TemplateError, with the line, for one that does not compile.

    source: the template. where: the file it came from, for messages.
    """

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        self._environment = _Environment()
        if len(source) > MAX_SIZE:
            raise TemplateError(f"{where}: the chat template has {len(source)} characters; no real one does")
        try:
            self._template = self._environment.metered(source)
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"{where}: line {error.lineno} of the chat template: {error.message}"
            ) from None
        except (RecursionError, SyntaxError, MemoryError, ValueError):
            raise TemplateError(f"{where}: the chat template is nested too deeply") from None

    def render(self, messages: Sequence[Message], *, adapt: bool = True, **variables: Any) -> str:
        """The text of a conversation.

        messages: {"role", "content", ...} as in the OpenAI API.
        variables: what the template may ask for, such as bos_token, add_generation_prompt, enable_thinking.
        adapt: where the template refuses the messages or leaves out the system message, try again with
        adjacent messages of one role joined (by an empty line), and then with the system text in front of the
        first user message. Raises TemplateError: the template's own complaint, or what failed in which line.
        """
        _check_size(messages)
        try:
            text = self._render(messages, variables)
            if not adapt or _mentions_system(messages, text):
                return text
            complaint = TemplateError(f"{self.where}: the chat template leaves out the system message")
        except _Refused as refused:
            complaint = self._error(refused)
            if not adapt:
                raise complaint from None
        joined = _join_same_role(messages)
        for attempt in (joined, _join_same_role(_fold_system(joined))):
            try:
                text = self._render(attempt, variables)
            except _Refused:
                continue
            if _mentions_system(attempt, text):
                return text
        raise complaint

    def _error(self, error: Exception, kind: str = "") -> TemplateError:
        line = _line(error)
        where = f"line {line} of the chat template" if line else "the chat template"
        return TemplateError(f"{self.where}: {where}: {kind}{_one_line(error)}")

    def _render(self, messages: Sequence[Message], variables: dict[str, Any]) -> str:
        self._environment.loops = 0
        pieces, size = [], 0
        try:
            for piece in self._template.generate(messages=list(messages), **variables):
                size += len(piece)
                if size > MAX_SIZE:
                    raise JinjaError(f"the text exceeds {MAX_SIZE} characters")
                pieces.append(piece)
        except _Refused:
            raise
        except Exception as error:  # a template is a program: it may raise anything
            kind = "" if isinstance(error, JinjaError) else f"{type(error).__name__}: "
            raise self._error(error, kind) from None
        return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the answer for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a count of loop turns and a bound on what an operation may make."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.loops = 0
        for name in _FILTERS_OUT:
            self.filters.pop(name, None)
        self.filters["tojson"] = _tojson
        self.filters["replace"] = _replace
        self.filters["join"] = _join
        self.filters["indent"] = self._indent(self.filters["indent"])
        self.filters["_turns"] = self._turns
        self.filters["_bounded"] = _bounded
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def metered(self, source: str) -> Any:
        """The template of `source`, compiled with every loop counted and every made value bounded."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_turns", [], [], None, None, lineno=loop.lineno)
        _bound_values(tree)
        code = self.compile(tree, filename="<chat template>")
        return self.template_class.from_code(self, code, self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also False for text methods that make a long text out of a short one."""
        if isinstance(obj, str) and attr in _PADDING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No sandboxed form of str.format: it would pad to any width."""

    def call_binop(self, context: JinjaContext, operator: str, left: Any, right: Any) -> Any:
        """+ * ** % with their operands checked first, because the result may not fit in memory."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise JinjaError(f"the operator {operator} is not available here")
        if operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
            size, times = (len(left), right) if hasattr(left, "__len__") else (len(right), left)
            if not isinstance(times, int) or size * times > MAX_SIZE:
                raise JinjaError(f"a repeated text exceeds {MAX_SIZE} characters")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls of the sandbox, with text methods bounded before and results after."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            return _replace(owner, *args)
        if isinstance(owner, str) and name == "join" and args:
            return _join(args[0], owner)
        if isinstance(owner, str) and name in _PADDING:
            raise JinjaError(f"the method {name} is not available here")
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def _turns(self, iterable: Any) -> Iterator[Any]:
        for item in iterable:
            self.loops += 1
            if self.loops > MAX_LOOPS:
                raise JinjaError(f"its loops make more than {MAX_LOOPS} turns")
            yield item

    @staticmethod
    def _indent(indent: Callable[..., str]) -> Callable[..., str]:
        def bounded(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
            n = len(width) if isinstance(width, str) else int(width)
            if n * (text.count("\n") + 1) > MAX_SIZE:
                raise JinjaError(f"an indented text exceeds {MAX_SIZE} characters")
            return str(indent(text, width, *args, **kwargs))

        return bounded


def _check_size(messages: Sequence[Message]) -> None:
    """Raises TemplateError for messages that no template could write within the bounds."""
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    size = sum(len(content) for content in contents if isinstance(content, str))
    if size > MAX_SIZE:
        raise TemplateError(
            f"the messages have {size} characters, a chat template may write {MAX_SIZE}; shorten the prompt"
        )


def _bound_values(node: nodes.Node) -> None:
    """Wrap each `a ~ b`, list, dict and filtered value below `node` in the filter `_bounded`."""
    for name, value in list(node.iter_fields()):
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _bound_values(child)
            made = isinstance(child, nodes.Concat | nodes.List | nodes.Dict) or (
                (isinstance(child, nodes.Tuple) and child.ctx == "load")
                or (isinstance(child, nodes.Filter) and child.node is not None)
            )
            if not made or getattr(child, "name", "") in ("_turns", "_bounded"):
                continue
            if isinstance(node, nodes.FilterBlock):
                continue
            wrapped = nodes.Filter(child, "_bounded", [], [], None, None, lineno=child.lineno)
            if isinstance(value, list):
                value[i] = wrapped
            else:
                setattr(node, name, wrapped)


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_SIZE:
        raise JinjaError(f"a text exceeds {MAX_SIZE} characters")
    if isinstance(value, list | tuple | dict):
        left, todo = MAX_ITEMS, [value]
        while todo:
            item = todo.pop()
            inner = list(item.values()) if isinstance(item, dict) else item
            left -= 1 + len(inner)
            if left < 0:
                raise JinjaError(f"a list exceeds {MAX_ITEMS} items")
            todo += [part for part in inner if isinstance(part, list | tuple | dict)]
    if isinstance(value, int) and value.bit_length() > 4096:
        raise JinjaError("a number exceeds 4096 bits")
    return value


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    whole = str(text)
    if len(whole) + max(0, len(str(new)) - len(str(old))) * whole.count(str(old)) > MAX_SIZE:
        raise JinjaError(f"a text with replacements exceeds {MAX_SIZE} characters")
    return whole.replace(str(old), str(new), -1 if count is None else count)


def _join(parts: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    texts = [str(part if attribute is None else part[attribute]) for part in parts]
    if sum(map(len, texts)) + len(separator) * len(texts) > MAX_SIZE:
        raise JinjaError(f"a joined text exceeds {MAX_SIZE} characters")
    return separator.join(texts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise JinjaError("tojson: indent must be 0 to 16")
    text: str = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return text


def _raise_exception(message: Any) -> None:
    raise _Refused(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:200])


def _mentions_system(messages: Sequence[Message], text: str) -> bool:
    """False where a system message was silently dropped."""
    systems = [message["content"] for message in messages if message.get("role") == "system"]
    return all(not isinstance(content, str) or content.strip() in text for content in systems)


def _join_same_role(messages: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last["role"] == message["role"] and _is_plain(last) and _is_plain(message):
            joined[-1] = last | {"content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """The leading system message becomes the beginning of the conversation's first user message."""
    if not messages or messages[0].get("role") != "system" or not _is_plain(messages[0]):
        return list(messages)
    return [messages[0] | {"role": "user"}, *messages[1:]]


def _is_plain(message: Message) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)


def _line(error: BaseException) -> int:
    """The line of the template that raised, from the traceback that Jinja rewrote."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<chat template>"]
    return lines[-1] or 0 if lines else 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
