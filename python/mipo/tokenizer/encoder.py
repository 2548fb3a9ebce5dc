"""Encoder: texts become token ids, in Arrow buffers filled by Rust.

Knows tokenizers. Knows nothing of rendering chats, of pairs or of training.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mipo.errors import InputError, InputTypeError, NotThereError
from mipo.io import checksum
from mipo.io.lazy import _native, pa
from mipo.tokenizer.table import TokenTable

SPOTS = 64  # entries by which a changed vocabulary is noticed
# A text whose ids change with merges and scores: long and short words in several languages, and code.
SAMPLE = (
    "abc abcabcabc The quick brown foxes weren't jumping over 1,234 extraordinarily lazy dogs; internationalization, "
    "unbelievably straightforward. Größenordnung, développement, información, 日本語のテキスト, программирование 👍🏽\n"
    "def forward(self, hidden_states: Tensor) -> Tensor:\n    return self.norm(hidden_states)\n"
)
Choice: TypeAlias = Literal["auto", "fastokens", "tokenizers"]


def encode(texts: Any, tokenizer: Any, *, add_special_tokens: bool = True, encoder: Choice = "auto") -> TokenTable:
    """Token ids of each text, in Rust on all threads, equal to those of the `tokenizers` package.

    `texts`: a polars Series, an Arrow or NumPy array, or a list of str. `tokenizer`: a Hugging Face fast tokenizer, a
    `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or of its folder. `encoder`: "fastokens"; "tokenizers", a
    hundred times slower; or "auto", which is fastokens unless the tokenizer has a part that it does not support or a
    probe text gets other ids. Texts are neither truncated nor padded. The last few tokenizers stay open.

    Raises InputTypeError or InputError, with the row counted from 0, for a row that is not text. Raises InputError for
    a tokenizer that encoder "fastokens" does not support. Both engines encode every 1,024th text: where their ids
    differ, raises InputError with the row and both engines' ids.
    """
    if not hasattr(texts, "__arrow_c_stream__") and not hasattr(texts, "__arrow_c_array__"):
        texts = _strings(texts)
    return TokenTable((open_encoder(tokenizer, encoder).encode(texts, add_special_tokens),))


def open_encoder(tokenizer: Any, encoder: Choice = "auto") -> _native.Encoder:
    """The tokenizer and its engine, named by `name` with the reason in `why`; arguments and errors as in `encode`."""
    return _open(tokenizer_json(tokenizer), encoder)


@functools.lru_cache(maxsize=4)
def _open(json: bytes, engine: str) -> _native.Encoder:
    return _native.Encoder(json, engine)


def fingerprint(tokenizer: Any) -> str:
    """The checksum of a tokenizer and its chat template: equal exactly where the same texts become the same ids."""
    content = tokenizer_json(tokenizer)
    # Earlier calls with padding or truncation leave settings before the tokens, which change no ids here.
    content = content[max(0, content.find(b'"added_tokens"')) :]
    settings = [getattr(tokenizer, name, None) for name in ("chat_template", "bos_token", "eos_token")]
    return checksum.of_bytes(content + b"\0" + repr(settings).encode())


def tokenizer_json(tokenizer: Any) -> bytes:
    """The `tokenizer.json` of a tokenizer, or at its path; raises InputTypeError for an object without one."""
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
            f"got {type(tokenizer).__name__}"
        )
    return _serialized(backend, state) if (state := _state(backend)) else str(backend.to_str()).encode()


@functools.lru_cache(maxsize=4)
def _serialized(backend: Any, state: tuple[object, ...]) -> bytes:
    """The `tokenizer.json` of a tokenizer in this state; writing 150,000 merges takes as long as encoding 50 MB."""
    return str(backend.to_str()).encode()


def _state(backend: Any) -> tuple[object, ...] | None:
    """The state of a `tokenizers.Tokenizer` that decides ids; None for another type, or one with parts in Python.

    Only replacing the model changes vocabulary and merges: their size, some entries and the ids of a text stand for
    them.
    """
    if type(backend).__module__ != "tokenizers":
        return None
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
    try:
        steps = tuple(part and (type(part).__name__, part.__getstate__()) for part in parts)
        sample = tuple(backend.encode(SAMPLE).ids)
    except Exception:  # tokenizers raises Exception itself, where a part is written in Python or a word has no id
        return None
    model, size = backend.model, backend.get_vocab_size(True)
    public = ((name, getattr(model, name)) for name in dir(model) if not name.startswith("_"))
    settings = tuple((name, value) for name, value in public if not callable(value))
    added = tuple((place, repr(token)) for place, token in backend.get_added_tokens_decoder().items())
    spots = tuple(backend.id_to_token(place) for place in range(0, size, 1 + size // SPOTS))
    return steps, type(model).__name__, settings, added, size, spots, sample


def _strings(texts: Any) -> pa.Array:
    """Texts as an Arrow array; raises InputTypeError or InputError, with the row, for a row that is not text."""
    if isinstance(texts, str):
        raise InputTypeError("texts: expected several texts, got one; put it into a list")
    texts = texts if hasattr(texts, "__len__") else list(texts)
    try:
        return pa.array(texts, type=pa.large_string())
    except (pa.ArrowException, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputTypeError(f"texts: expected text in row {row}, got {type(text).__name__}") from None
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"texts: row {row} has half of a surrogate pair, which is not a character") from None
        raise
