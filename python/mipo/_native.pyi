"""mipo's native half, in Rust: counterparts of rows, texts that are alike, token ids. Knows rows and codes, no prompts.

Arguments are read without a copy: contiguous arrays of the dtype in the signature; an InputTypeError (dtype) or an
InputError (gaps) says how to convert others. Results own their memory. Every function runs on all threads (set
RAYON_NUM_THREADS for fewer) with the interpreter released, and gives the same bytes for any number of them.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Encoder",
    "GroupBuilder",
    "Template",
    "checksum",
    "checksum_file",
    "clusters",
    "counterparts",
    "counterparts_within",
    "digests",
    "overlaps",
]

@type_check_only
class _ArrowArray(Protocol):
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

@type_check_only
class _ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

def counterparts(n: int, negatives: int, seed: int, start: int, stop: int, balanced: bool = True) -> NDArray[np.uint64]:
    """Counterparts of the rows start..stop of n: uint64 [stop - start, negatives].

    Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation of 0..n and s_k distinct random shifts
    of 1..n, both pure functions of (seed, n). So no row is its own counterpart, those of a row are distinct, every row
    is used exactly `negatives` times, fewer negatives are the first of more, and a slice is the slice of the whole.
    Without `balanced`, each row draws by itself, uniformly without replacement: rows are used `negatives` times only on
    average.

    `n`: 2 to 2^63. `seed`: 0 to 2^64 - 1. Raises InputError for a number outside these ranges, for negatives = 0 or
    negatives ≥ n and for a slice outside 0..n; InputTypeError for other types; MemoryError for a result too large.
    """

def counterparts_within(
    match_codes: NDArray[np.uint64],
    differ_codes: Sequence[NDArray[np.uint64]],
    negatives: int,
    seed: int,
    near: tuple[NDArray[np.float64], float] | None = None,
) -> NDArray[np.uint64]:
    """Counterparts with an equal match code and another code in every differ column: uint64 [n, negatives].

    `match_codes`: [n]. `differ_codes`: one or more columns [n]. `near`: values [n], and the largest difference between
    the value of a row and its counterpart's; a value that is not finite is near to none. The counterparts of a row are
    distinct. A row with fewer than `negatives` admissible rows has 2^64 - 1 in all its places.

    Every row is used exactly `negatives` times where the rows of one match code, or of a block of near values, can turn
    by the same shifts, and where exchanges can mend the shifts. Where they cannot, because one differ code owns more
    than half of the rows or some rows have no admissible ones, a row's counterparts are drawn uniformly without
    replacement from its admissible rows.

    Raises InputError for negatives = 0, no differ column, columns of different lengths or a tolerance below 0;
    InputTypeError for another dtype.
    """

def clusters(texts: _ArrowArray | _ArrowStream, size: int, threshold: float) -> NDArray[np.uint64]:
    """The first row of each text's cluster of near-duplicates: uint64 [texts].

    Texts are near-duplicates if their sets of runs of `size` characters (a shorter text is one run) have a Jaccard
    similarity of at least `threshold`; a cluster is what chains of near-duplicates hold together. Every pair that can
    reach the threshold is compared, by 58 bits of a hash of each run.

    `texts`: an Arrow array of strings. Raises InputError for size < 1, a threshold outside (0, 1] and a null;
    InputTypeError for another type.
    """

def overlaps(
    texts: tuple[_ArrowArray | _ArrowStream, NDArray[np.uint64]],
    held_out: tuple[_ArrowArray | _ArrowStream, NDArray[np.uint64]],
    words: int,
    share: float,
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.bool_]]:
    """What each text has in common with a held-out text of its group: (held-out row, share, whether equal), [texts].

    `texts`, `held_out`: (texts, groups). The held-out row is that of the first equal text; else of the text with the
    largest share, at least `share`, of words in runs of `words` words that both have; else 2^64 - 1.

    Raises InputError for words < 1, a share outside (0, 1], a null, or groups that are not one a text; InputTypeError
    for another type.
    """

@final
class Encoder:
    """A tokenizer, without the truncation and padding that its tokenizer.json may ask for."""

    def __new__(cls, json: bytes, engine: str = "auto") -> Encoder:
        """The tokenizer of a tokenizer.json, with the engine "fastokens", "tokenizers" or "auto".

        Raises InputError for other bytes, for another engine, and for "fastokens" where it cannot take the tokenizer.
        """

    @property
    def name(self) -> str:
        """The engine that encodes: fastokens or tokenizers."""

    @property
    def why(self) -> str:
        """Why it is that engine, in a few words."""

    def encode(
        self, texts: _ArrowArray | _ArrowStream, add_special_tokens: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Ids of each text: (offsets [n + 1], ids [offsets[n]]), equal to those of the `tokenizers` package.

        `texts`: an Arrow array, chunked or not, of string, large_string or string_view, such as a polars Series. Raises
        InputTypeError for another type; InputError, with the row, for a null, for a text that the tokenizer refuses,
        and for ids that are not those of `tokenizers`, which encodes every 1,024th text as well.
        """

def checksum(buffers: Sequence[NDArray[np.uint8]]) -> str:
    """XXH3 of buffers, as 32 hexadecimal digits."""

def checksum_file(path: str | PathLike[str], start: int, stop: int) -> str:
    """XXH3 of a file's bytes, as 32 hexadecimal digits, those at `start`..`stop` read as zeros.

    Raises OSError for a file that cannot be read.
    """

def digests(texts: _ArrowArray | _ArrowStream) -> NDArray[np.uint64]:
    """XXH3 of each text, 128 bits: uint64 [texts, 2]."""

_Table = tuple[NDArray[np.int64], NDArray[np.uint32]]
_Texts = tuple[_ArrowArray | _ArrowStream, _ArrowArray | _ArrowStream, _ArrowArray | _ArrowStream]
# (offsets of the rejected responses, rows, truncated chosen, truncated rejected)
_Groups = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_], NDArray[np.bool_]]
# Of each group its verdict; of those kept (prompt, chosen, offsets, rejected); how many borders lie before the end of
# the prompt alone.
_GroupRows = tuple[
    NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64], int
]

@final
class GroupBuilder:
    """Preference groups become row numbers of two tables of ids, which grow."""

    def __new__(cls, encoder: Encoder) -> GroupBuilder: ...
    def push_text(self, texts: _Texts, groups: _Groups, *, end: str, limit: int | None = None) -> _GroupRows:
        """Text: `texts` are (prompts, chosen, rejected), whose joint texts close with `end`."""

    def push_chats(
        self, template: Template, chats: _Texts, groups: _Groups, *, end_ids: Sequence[int], limit: int | None = None
    ) -> _GroupRows | None:
        """Chats: `chats` are (prompts, chosen, rejected) as lists of messages, each in one chunk.

        None, and nothing stored, where the template does not render one of them.
        """

    def push_rendered(
        self, texts: _Texts, groups: _Groups, *, end_ids: Sequence[int], limit: int | None = None
    ) -> _GroupRows:
        """Chats, rendered: `texts` are (prompts, each prompt with its chosen response, and with each rejected one)."""

    def take_prompts(self) -> _Table:
        """Prompts stored since the last call: (offsets, ids)."""

    def take_responses(self) -> _Table:
        """Responses stored since the last call: (offsets, ids)."""

    def pending(self) -> int:
        """Bytes of ids that were not taken yet."""

@final
class Template:
    """A chat template as `mipo.tokenizer.jinja` writes it for Rust."""

    def __new__(cls, source: str, constants: Sequence[tuple[str, str | None]]) -> Template:
        """The template, with its variables that are the same in every conversation. InputError for no template."""

    def render(
        self, conversations: _ArrowArray | _ArrowStream, add_generation_prompt: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], list[tuple[int, str]]]:
        """Texts: (offsets [n + 1], UTF-8 [offsets[n]], row and reason of each conversation without a text).

        `conversations`: an Arrow array, chunked or not, of lists of structs of strings. A conversation without a
        text is not Rust's to render, or the template refuses it; transformers says which.
        Raises InputTypeError for another type; InputError, with the row, for a null.
        """
