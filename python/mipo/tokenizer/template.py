"""Templates: conversations become the text that a model reads, by Rust where that is what transformers renders.

Knows tokenizers' chat templates, and when to leave one to transformers. Knows nothing of prompts, responses or ids.

Three things stand between a difference and a text. Rust has Python's operations, and leaves a conversation to
transformers where a template reaches one that it does not have (`mipo.tokenizer.jinja`). When a template is opened,
both render a set of nasty conversations alike. And every 1,000th conversation of a batch, at least one, is rendered by
both. (Of chats that become ids at once, by `Renderer.push`, it is the ids of a few that are compared, in
`mipo.tokens.groups`.)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, InputTypeError, first_line
from mipo.io import nested
from mipo.io.lazy import _native, np, pa, pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERY = 1_000  # conversations of which one is rendered by transformers as well
# Contents for the probe: white space as Python has it, what looks like a template's own marks, what templates cut.
CONTENTS = (
    "Hello", "", " ", "\n", "\r\n a \t", "\x1c\x1d\x1e\x1f x \x1f", "\x85\xa0\u2003 y \u3000\u2028\u2029",
    "\u200b\ufeff z \u200b",
    "{{ messages }} {% if x %} {# no #} {", "<|im_start|>user\n<|im_end|></s><s>[INST] [/INST]<|eot_id|><end_of_turn>",
    "<think>\nwell\n</think>\n\nyes", "</think>no<think>", "<think></think>", "a<think>b</think>c</think>\n d",
    "<tool_response>\nx\n</tool_response>", "'single' \"double\" \\ \\n \\u0041 `",
    "日本語 é é ß ﬁ İ 🙂 👩‍👩‍👧 \U000e0041",
    "a\n\n\nb\n", "\n\nlead and trail\n\n", "\0\x01\x08\x0b\x0c\x7f", "None True undefined 1.0", "x" * 300,
)  # fmt: skip


class RowError(InputError):
    """What is wrong with one conversation, by its row counted from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row, self.message = row, message


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template. `native` renders it in Rust; where there is none, `why` says so."""

    tokenizer: Any
    native: _native.Template | None
    why: str | None

    def render(
        self,
        conversations: pl.Series,
        *,
        add_generation_prompt: bool,
        arguments: Sequence[dict[str, Any]] | None = None,
    ) -> pl.Series:
        """The text of each conversation, a list of messages, as `apply_chat_template` renders it.

        In Rust on all threads where that is possible. By transformers, once per distinct conversation: where there is
        no native template (`why`), where messages have a field that is no text, no role or no content, where the
        template reaches what Rust does not have or raises, and where there are `arguments`, what each row hands to the
        template besides (tools). Raises InputError, with the row counted from 0, for a conversation that the template
        refuses, and for one that the two render differently.
        """
        conversations = _checked(conversations)
        if self.native is None or arguments is not None or not _of_texts(conversations):
            return self._by_transformers(conversations, add_generation_prompt, arguments=arguments)
        offsets, data, failed = self.native.render(conversations, add_generation_prompt)
        texts = _texts(offsets, data)
        rows = [row for row, _ in failed]
        self._compare(conversations, texts, {*rows}, add_generation_prompt)
        if not rows:
            return texts
        rest = pl.Series(rows, dtype=pl.UInt32)
        rendered = self._by_transformers(conversations.gather(rest), add_generation_prompt, rows=rows)
        return texts.scatter(rest, rendered)

    def push(self, builder: _native.GroupBuilder, chats: Sequence[pl.Series], groups: Any, **how: Any) -> Any:
        """As the builder's `push_chats`: (prompts, chosen, rejected) become ids, and their texts are never kept.

        None where one is not Rust's to render, or the template refuses it: `render` does it, or says what is wrong.
        """
        prompts, chosen, rejected = (_checked(chat).rechunk() for chat in chats)
        if self.native is None or not all(map(_of_texts, (prompts, chosen, rejected))):
            return None
        return builder.push_chats(self.native, (prompts, chosen, rejected), groups, **how)

    def _by_transformers(
        self,
        conversations: pl.Series,
        prompt: bool,
        *,
        rows: list[int] | None = None,
        arguments: Sequence[dict[str, Any]] | None = None,
    ) -> pl.Series:
        """Every distinct conversation rendered once; errors name `rows`."""
        asked = list(zip(nested.values(conversations), arguments or [{}] * len(conversations), strict=True))
        # What is equal as JSON, None and all, is equal to a template.
        keys = [json.dumps(chat, ensure_ascii=False, default=repr) for chat in asked]
        texts: dict[str, str] = {}
        for row, (key, (messages, how)) in enumerate(zip(keys, asked, strict=True)):
            if key in texts:
                continue
            text = _reference(self.tokenizer, messages, prompt, **how)
            if isinstance(text, Exception):
                raise self._refusal(rows[row] if rows else row, messages, prompt, text) from text
            texts[key] = text
        return pl.Series(conversations.name, [texts[key] for key in keys], dtype=pl.String)

    def _refusal(self, row: int, messages: list[dict[str, Any]], prompt: bool, error: Exception) -> RowError:
        """What the template says; that it takes no system message at all, where it renders the others alone."""
        reason = first_line(error)
        if (
            messages
            and messages[0].get("role") == "system"
            and isinstance(_reference(self.tokenizer, messages[1:], prompt), str)
        ):
            return RowError(
                row,
                f"the chat template takes no system message, which is what a context becomes ({reason}); write the "
                "context into the prompts' own text, or take a model with a template that has system messages",
            )
        return RowError(row, f"the chat template refuses the conversation: {reason}; drop or change it")

    def _compare(self, conversations: pl.Series, texts: pl.Series, failed: set[int], prompt: bool) -> None:
        """InputError where a sample of the rows is not what transformers renders."""
        for row in range(0, len(texts), EVERY):
            if row in failed:
                continue
            expected = _reference(self.tokenizer, conversations[row].to_list(), prompt)
            if expected != texts[row]:
                raise _difference(row, expected, texts[row])


def open_template(tokenizer: Any) -> Renderer:
    """The chat template of a tokenizer, in Rust if that is provably what transformers renders.

    Raises InputError where the tokenizer has none, or several with no default.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("tokenizer: has no chat template to render messages with; give text, or another tokenizer")
    native, why = _native_of(tokenizer, tokenizer.get_chat_template())
    if native is not None:
        why = _probe(tokenizer, native)
    return Renderer(tokenizer, None if why else native, why)


def _native_of(tokenizer: Any, source: str) -> tuple[_native.Template | None, str | None]:
    """The template in Rust, or why it cannot be parsed."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    from mipo.tokenizer.jinja import translate

    try:
        tree = _compile_jinja_template(source).environment.parse(source)
    except (TemplateError, SyntaxError) as error:
        return None, f"its chat template cannot be parsed: {error}"
    constants = {"tools": None, "documents": None, **tokenizer.special_tokens_map}
    if wrong := [name for name, value in constants.items() if not isinstance(value, str | None)]:
        return None, f"its special token {wrong[0]!r} is no text"
    try:
        return _native.Template(translate(tree), [*constants.items()]), None
    except ValueError as error:
        return None, f"its chat template cannot be parsed in Rust: {error}"


def _probe(tokenizer: Any, native: _native.Template) -> str | None:
    """Why the template is not Rust's: a conversation that is rendered differently, or all are left to transformers."""
    asked = list(_conversations())
    fields = {"role": pl.String, "content": pl.String, "reasoning_content": pl.String, "thinking": pl.String}
    chats = pl.Series("probe", asked, dtype=pl.List(pl.Struct(fields)))
    rendered, reasons = 0, {}
    for prompt in (False, True):
        offsets, data, failed = native.render(chats, prompt)
        texts, reasons = _texts(offsets, data), dict(failed)
        for row, messages in enumerate(asked):
            if row in reasons:
                continue
            expected, rendered = _reference(tokenizer, messages, prompt), rendered + 1
            if expected != texts[row]:
                return f"the probe: {_difference(row, expected, texts[row])} for {messages}"
    for row, reason in reasons.items() if not rendered else ():
        if isinstance(_reference(tokenizer, asked[row], True), str):
            return f"Rust renders none of the conversations of the probe: {reason}"
    return None


def _conversations() -> Iterator[list[dict[str, Any]]]:
    """Conversations for the probe."""

    def chat(*roles: str, start: int = 0) -> list[dict[str, Any]]:
        contents = itertools.islice(itertools.cycle(CONTENTS), start, None)
        return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]

    shapes = ["u", "su", "ua", "sua", "uau", "suau", "uaua", "suauaua", "a", "s", "uu", "us", "ss", "aa", "au", "uaa",
              "ut", "uat", "uatta", "suatu", "d", "du", "usa", "x", "i", "uai", "sua" * 3]  # fmt: skip
    names = {"u": "user", "s": "system", "a": "assistant", "t": "tool", "d": "developer", "x": "Other", "i": "ipython"}
    for place, shape in enumerate(shapes):
        for start in range(0, len(CONTENTS), 1 if len(shape) < 4 and "x" not in shape else 7):
            yield chat(*(names[letter] for letter in shape), start=start + place)
    for content, field in itertools.product(("", "yes\n", "<think>a</think>b"), ("reasoning_content", "thinking")):
        for reasoning in ("", "\n so \n", "because"):
            turn = {"role": "assistant", "content": content, field: reasoning}
            yield [*chat("user"), turn]
            yield [*chat("system", "user"), turn, *chat("user", "assistant", start=3)]


def _reference(tokenizer: Any, messages: list[dict[str, Any]], prompt: bool, **how: Any) -> str | Exception:
    # Whatever a template raises (UndefinedError, TypeError, its own message) is what the caller gets, with the row.
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **how))
    except Exception as error:
        return error


def _difference(row: int, expected: str | Exception, text: str) -> RowError:
    return RowError(
        row,
        f"Rust renders {text!r}, transformers {expected!r}; this is an error of mipo: please report the template, and "
        "use the tokenizer's own apply_chat_template",
    )


def _checked(conversations: pl.Series) -> pl.Series:
    """The conversations, with fields that are null in all messages as texts that are null."""
    if not isinstance(conversations.dtype, pl.List):
        raise InputTypeError(f"conversations: expected a Series of lists of messages, got {conversations.dtype}")
    if conversations.null_count():
        row = conversations.is_null().arg_true()[0]
        raise InputError(f"conversations: expected messages in every row, got a null in row {row}; drop it")
    inner = conversations.dtype.inner
    if not isinstance(inner, pl.Struct) or not any(field.dtype == pl.Null for field in inner.fields):
        return conversations
    kinds = {field.name: pl.String if field.dtype == pl.Null else field.dtype for field in inner.fields}
    return conversations.cast(pl.List(pl.Struct(kinds)))


def _of_texts(conversations: pl.Series) -> bool:
    """Whether every field of every message is a text (or null)."""
    inner = conversations.dtype.inner  # type: ignore[attr-defined]
    return isinstance(inner, pl.Struct) and all(field.dtype == pl.String for field in inner.fields)


def _texts(offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> pl.Series:
    """Rust's buffers as a Series, without a copy."""
    return pl.Series(pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data)))
