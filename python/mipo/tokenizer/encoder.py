"""Tokens: texts become ids once, in Arrow buffers filled by Rust.

Knows tokenizers. Knows nothing of chat templates, pairs or training.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mipo.errors import InputError, InputTypeError, NotThereError
from mipo.io import checksum
from mipo.io.lazy import lazy
from mipo.tokenizer.table import TokenTable

if TYPE_CHECKING:
    import pyarrow as pa

    from mipo import _native
else:
    _native = lazy("mipo._native")
    pa = lazy("pyarrow")

SPOTS = 64  # entries of a vocabulary by which it is known again
# A text by which merges and scores are, of words long and short, in some languages.
SAMPLE = (
    "abc abcabcabc The quick brown foxes weren't jumping over 1,234 extraordinarily lazy dogs; internationalization, "
    "unbelievably straightforward. Größenordnung, développement, información, 日本語のテキスト, программирование 👍🏽\n"
    "def forward(self, hidden_states: Tensor) -> Tensor:\n    return self.norm(hidden_states)\n"
)
Choice: TypeAlias = Literal["auto", "fastokens", "tokenizers"]


def encode(texts: Any, tokenizer: Any, *, add_special_tokens: bool = True, encoder: Choice = "auto") -> TokenTable:
    """Token ids of each text, in Rust on all threads, equal to those of the `tokenizers` package.

    `texts`: a polars Series, an Arrow or NumPy array, or a list of str. `tokenizer`: a Hugging Face fast tokenizer, a
    `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or of its folder; nothing is cut or padded. `encoder`:
    "fastokens", "tokenizers", a hundred times slower, or "auto": fastokens where nothing in the tokenizer and no probe
    text speaks against it. A tokenizer once opened is kept, with the last few.

    Raises TypeError or ValueError, with the row counted from 0, for what is no text; ValueError for a tokenizer that
    fastokens is asked for and cannot take, and with the row, both engines' ids and what to do, should one of the texts
    that are encoded by both, every 1,024th, differ.
    """
    if not hasattr(texts, "__arrow_c_stream__") and not hasattr(texts, "__arrow_c_array__"):
        texts = _strings(texts)
    return TokenTable((open_encoder(tokenizer, encoder).encode(texts, add_special_tokens),))


def open_encoder(tokenizer: Any, encoder: Choice = "auto") -> _native.Encoder:
    """The tokenizer with its engine, whose `name` and `why` say which and why; arguments and errors as in `encode`."""
    return _open(tokenizer_json(tokenizer), encoder)


@functools.lru_cache(maxsize=4)
def _open(json: bytes, engine: str) -> _native.Encoder:
    return _native.Encoder(json, engine)


def fingerprint(tokenizer: Any) -> str:
    """The checksum of a tokenizer and its chat template: equal exactly where the same texts become the same ids."""
    # What calls with padding or truncation left behind stands before the tokens, and changes no id here.
    made = tokenizer_json(tokenizer)
    said = [getattr(tokenizer, name, None) for name in ("chat_template", "bos_token", "eos_token")]
    return checksum.of_bytes(made[max(0, made.find(b'"added_tokens"')) :] + b"\0" + repr(said).encode())


def tokenizer_json(tokenizer: Any) -> bytes:
    """The `tokenizer.json` of a tokenizer, or of its path; TypeError for what has none."""
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise NotThereError(f"{path}: no such tokenizer.json")
        return path.read_bytes()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise InputTypeError(
            "tokenizer: expected a Hugging Face fast tokenizer, a tokenizers.Tokenizer or a path of a tokenizer.json, "
            f"came {type(tokenizer).__name__}"
        )
    return _said(backend, state) if (state := _state(backend)) else str(backend.to_str()).encode()


@functools.lru_cache(maxsize=4)
def _said(backend: Any, state: tuple[object, ...]) -> bytes:
    """The `tokenizer.json` of a tokenizer in this state: to write 150,000 merges takes as long as to encode 50 MB."""
    return str(backend.to_str()).encode()


def _state(backend: Any) -> tuple[object, ...] | None:
    """What changes ids when it is changed on a `tokenizers.Tokenizer`; None for what is none, or has parts in Python.

    For vocabulary and merges, which only another model can change, stand its size, some entries and the ids of a text.
    """
    if type(backend).__module__ != "tokenizers":
        return None
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
    try:
        steps = tuple(part and (type(part).__name__, part.__getstate__()) for part in parts)
        sample = tuple(backend.encode(SAMPLE).ids)
    except Exception:  # tokenizers raises this itself, where a part is written in Python or a word has no id
        return None
    model, size = backend.model, backend.get_vocab_size(True)
    public = ((name, getattr(model, name)) for name in dir(model) if not name.startswith("_"))
    settings = tuple((name, value) for name, value in public if not callable(value))
    added = tuple((place, repr(token)) for place, token in backend.get_added_tokens_decoder().items())
    spots = tuple(backend.id_to_token(place) for place in range(0, size, 1 + size // SPOTS))
    return steps, type(model).__name__, settings, added, size, spots, sample


def _strings(texts: Any) -> pa.Array:
    """Texts as an Arrow array; TypeError or ValueError names the row of what is no text."""
    if isinstance(texts, str):
        raise InputTypeError("texts: expected several texts, came one; put it into a list")
    texts = texts if hasattr(texts, "__len__") else list(texts)
    try:
        return pa.array(texts, type=pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputTypeError(f"texts: expected text in row {row}, came {type(text).__name__}") from None
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"texts: row {row} holds half of a surrogate pair, which is no character") from None
        raise
