"""Chat templates: from the messages of a conversation to the text of a prompt."""

import copy
import dataclasses
import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser

from flexjax.data import special_tokens, tokenizer_config
from flexjax.model_files import read_json, refuse_stand_in
from flexjax.refusal import Refusal

Message = Mapping[str, Any]  # With a "role" and its "content".

# What a template may raise besides jinja2's own: it is a program that comes with the weights.
_FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

# Joined to the last message's content to find where it ends in the text; a template that trims takes off the space.
_HERE = "\ue000here\ue001 "

_READ = {"messages", "tools", "documents", "add_generation_prompt"}


@dataclasses.dataclass(frozen=True)
class ChatTemplates:
    """The templates of a model directory by name, and the special tokens that they may use."""

    templates: Mapping[str, str]
    sources: Mapping[str, str]  # Name → the file that it stands in.
    special: Mapping[str, str]  # Role (`bos_token`, …) → text.
    directory: str

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a prompt, special tokens spelled out; tokenise it without adding any.

        Args:
          messages: One conversation.
          chat_template: The name of one of the model's templates, or a template itself. By default "tool_use" where
            there are tools and the model has one of that name, else "default".
          add_generation_prompt: Ends the text with the head of the answer.
          continue_final_message: Ends the text within the last message, for the model to go on with it.
          variables: Further variables of the template, plain data.

        Raises Refusal for messages of another form, an unknown template, and what the template itself refuses or
        cannot do.
        """
        _check_messages(messages)
        if add_generation_prompt and continue_final_message:
            raise Refusal(
                "A chat ends with the head of a new answer or within the last message: pass "
                "add_generation_prompt=False with continue_final_message=True."
            )
        for name, value in variables.items():
            _check_plain(name, value)
        source, text = self._chosen(chat_template, variables.get("tools"))
        messages = copy.deepcopy(list(messages))
        if continue_final_message:
            messages[-1] = _marked(messages[-1])
        given = {"tools": None, "documents": None, **self.special, **variables}
        try:
            template = _ENVIRONMENT.from_string(text)
            _warn_of_unread(text, variables, source)
            rendered = template.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except _Said as error:
            raise Refusal(f"The chat template in {source} refuses these messages: {error}") from error
        except jinja2.TemplateSyntaxError as error:
            raise Refusal(f"The chat template in {source} is no template: line {error.lineno}: {error}") from error
        except _FAULTS as error:
            raise Refusal(
                f"The chat template in {source} fails on these messages: {type(error).__name__}: {error}"
            ) from error
        return _cut(rendered, source) if continue_final_message else rendered

    def _chosen(self, asked: str | None, tools: Any) -> tuple[str, str]:
        """Where the template stands, and its text."""
        if asked is not None and asked not in self.templates:
            if "{" in asked:
                return "chat_template", asked
            raise Refusal(
                f"chat_template must be a template or the name of one; {self.directory} has "
                f"{sorted(self.templates) or 'none'}, asked for is {asked!r}."
            )
        if not self.templates:
            raise Refusal(
                f"{self.directory} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json). Pass one as chat_template, or give generate a prompt that is written out."
            )
        name = asked or ("tool_use" if tools and "tool_use" in self.templates else "default")
        if name not in self.templates:
            raise Refusal(
                f"{self.directory} has several chat templates and no default one: pass chat_template, one of "
                f"{sorted(self.templates)}."
            )
        return self.sources[name], self.templates[name]


def load_chat_templates(directory: str | Path) -> ChatTemplates:
    """The chat templates of a model directory; of several files with the same one the first counts:

    chat_template.jinja and additional_chat_templates/NAME.jinja, tokenizer_config.json, chat_template.json.
    """
    directory = Path(directory)
    found: dict[str, tuple[str, Path]] = {}
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        fields = tokenizer_config(directory) if path.name == "tokenizer_config.json" else _optional(path)
        found |= {key: (text, path) for key, text in _named(fields.get("chat_template"), path).items()}
    extra = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for path in [*extra, directory / "chat_template.jinja"]:
        if path.exists():
            found["default" if path.name == "chat_template.jinja" else path.stem] = (_read(path), path)
    texts = {key: text for key, (text, _) in found.items()}
    sources = {key: str(path) for key, (_, path) in found.items()}
    return ChatTemplates(texts, sources, special_tokens(directory), str(directory))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read(path: Path) -> str:
    refuse_stand_in(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text (byte {error.start}). Copy or download it again.") from error


def _named(value: Any, path: Path) -> dict[str, str]:
    """One template, or several: a list of objects with `name` and `template`, or an object of both."""
    if not value:  # Null, or nothing in it.
        return {}
    if isinstance(value, str):
        return {"default": value}
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        pairs = [(one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None) for one in value]
    if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise Refusal(
            f"chat_template in {path} must be a template, or a list of objects with `name` and `template`; it is "
            f"{str(value)[:80]!r}."
        )
    return dict(pairs)


def conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    """A lone conversation is a batch of one. Refusal where `messages` is neither."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Refusal(f"chat takes a list of messages or a list of such lists; got {messages!r}.")
    if all(isinstance(one, Mapping) for one in messages):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise Refusal(f"A conversation is a list of at least one message; got {messages!r}.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise Refusal(
                f'A message is a dict such as {{"role": "user", "content": "…"}}; message {i} is {message!r}.'
            )
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            raise Refusal(f"A message needs content; message {i}, of {message['role']!r}, has none.")
        if not isinstance(content, str | None) and not _is_text_parts(content):
            raise Refusal(
                'The content of a message must be text, or a list of parts {"type": "text", "text": "…"}; that of '
                f"message {i} is {str(content)[:80]!r}."
            )
        _check_plain(f"message {i}", message)


def _is_text_parts(content: Any) -> bool:
    return isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _check_plain(name: str, value: Any) -> None:
    """A template gets data alone, nothing that it could call."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_plain(f"{name}[{key!r}]", one)
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            _check_plain(f"{name}[{i}]", one)
    elif not isinstance(value, str | int | float | bool | None):
        raise Refusal(
            f"A chat template gets text, numbers, true, false, None, lists and dicts; {name} is a "
            f"{type(value).__name__}."
        )


def _marked(message: Message) -> dict[str, Any]:
    """The message with `_HERE` behind its text."""
    content = message.get("content")
    if not content:
        raise Refusal("continue_final_message needs a last message with text; it has none.")
    if isinstance(content, str):
        return {**message, "content": content + _HERE}
    last = {**content[-1], "text": content[-1]["text"] + _HERE}
    return {**message, "content": [*content[:-1], last]}


def _cut(rendered: str, source: str) -> str:
    at = rendered.rfind(_HERE.strip())
    if at < 0:
        raise Refusal(
            f"continue_final_message needs a template that writes out the last message; that in {source} leaves its "
            "content out or changes it."
        )
    return rendered[:at] if rendered.startswith(_HERE, at) else rendered[:at].rstrip()


def _warn_of_unread(text: str, variables: Mapping[str, Any], source: str) -> None:
    unread = variables.keys() - jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) - _READ
    if unread:
        logging.warning("The chat template in %s does not read %s.", source, ", ".join(sorted(unread)))


class _Said(jinja2.TemplateError):
    """What a template says with `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`, which marks what a model is trained on; the text stays as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refused at once, where jinja2 would wait for the value to be used."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")


def _environment() -> _Sandbox:
    """As `transformers` has it, so that published templates give the published text."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands; jinja2's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise _Said(message)


_ENVIRONMENT = _environment()
