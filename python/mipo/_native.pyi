"""mipo's native half, in Rust: counterparts of rows, texts that are alike, token ids. Knows rows and codes, no prompts.

Arrays come in as they lie: contiguous, of the dtype named, or a TypeError (dtype) or ValueError (gaps) says how to
convert them. Results own their memory, which is handed over without a copy. Every function runs on all threads (set
RAYON_NUM_THREADS for fewer) with the interpreter released, and gives the same bytes for any number of them.
"""

from collections.abc import Sequence
from typing import Protocol, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoder", "Split", "clusters", "counterparts", "counterparts_within", "overlaps", "split"]

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
    Not `balanced`, each row draws its own by itself, uniformly without replacement: the rest holds, the balance does
    not.

    `n`: 2 to 2^63. `seed`: 0 to 2^64 - 1. Raises ValueError for a number outside these ranges, for negatives = 0 or
    negatives ≥ n and for a slice outside 0..n; TypeError for what is no integer; MemoryError for a result too large.
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

    Raises ValueError for negatives = 0, no differ column, columns of different lengths or a tolerance below 0;
    TypeError for another dtype.
    """

def clusters(texts: _ArrowArray | _ArrowStream, size: int, threshold: float) -> NDArray[np.uint64]:
    """The first row of each text's cluster of near-duplicates: uint64 [texts].

    Texts are near-duplicates if their sets of runs of `size` characters (a shorter text is one run) have a Jaccard
    similarity of at least `threshold`; a cluster is what chains of near-duplicates hold together. Every pair that can
    reach the threshold is compared, by 58 bits of a hash of each run.

    `texts`: an Arrow array of strings. Raises ValueError for size < 1, a threshold outside (0, 1] and a null;
    TypeError for another type.
    """

def overlaps(
    texts: tuple[_ArrowArray | _ArrowStream, NDArray[np.uint64]],
    held_out: tuple[_ArrowArray | _ArrowStream, NDArray[np.uint64]],
    words: int,
    share: float,
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.bool_]]:
    """What each text has in common with a held-out text of its group: (held-out row, share, whether equal), [texts].

    `texts`, `held_out`: (texts, groups). The held-out row is the first that is equal, else the first of those of whose
    words the largest share, at least `share`, lies in runs of `words` words that the text has too; else 2^64 - 1.

    Raises ValueError for words < 1, a share outside (0, 1], a null, or groups that are not one a text; TypeError for
    another type.
    """

def split(
    prompt: tuple[NDArray[np.int64], NDArray[np.uint32]],
    joint: tuple[NDArray[np.int64], NDArray[np.uint32]],
    *,
    group_prompt: NDArray[np.uint64],
    group_chosen: NDArray[np.uint64],
    rejected_offsets: NDArray[np.int64],
    rejected: NDArray[np.uint64],
    unfinished: NDArray[np.bool_] | None = None,
    end_ids: Sequence[int] | None = None,
) -> Split:
    """Separates prompts from responses on token ids, by TRL's rule (TRL 1.16, `common_prefix_length`).

    A table is (offsets [rows + 1], ids), as `Encoder.encode` gives it; offsets need not start at 0. `prompt`: each
    rendered prompt alone. `joint`: each rendered prompt with a response. Group g has the prompt `group_prompt[g]`, the
    chosen joint `group_chosen[g]` and the rejected joints `rejected[rejected_offsets[g]:rejected_offsets[g + 1]]`, of
    which there may be none. Its responses start at the shortest common prefix of its prompt with each of its joints.

    `unfinished`: [rows of joint], responses that the token limit cut off. Such a response loses its last id out of
    `end_ids` and all that follows, since the model never ended that turn.

    Raises ValueError for arrays of different lengths, offsets that fall, or unfinished responses without `end_ids`;
    IndexError for row numbers outside their table; TypeError for another dtype.
    """

@final
class Encoder:
    """A tokenizer that neither cuts nor pads, whatever its tokenizer.json says."""

    def __new__(cls, json: bytes) -> Encoder:
        """The tokenizer of a tokenizer.json. Raises ValueError for bytes that are none."""

    def encode(
        self, texts: _ArrowArray | _ArrowStream, add_special_tokens: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Ids of each text: (offsets [n + 1], ids [offsets[n]]), equal to those of the `tokenizers` package.

        `texts`: an Arrow array, chunked or not, of string, large_string or string_view, such as a polars Series. Raises
        TypeError for another type; ValueError, with the row, for a null or a text that the tokenizer refuses.
        """

@final
class Split:
    """Prompts and responses of preference groups, each stored once; the result of `split`."""

    @property
    def prompts(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Distinct prompts up to the border, in order of first appearance: (offsets, ids)."""

    @property
    def responses(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Distinct responses, in order of first appearance (chosen, then rejected, group by group): (offsets, ids)."""

    @property
    def prompt(self) -> NDArray[np.uint64]:
        """[groups]: rows of `prompts`."""

    @property
    def chosen(self) -> NDArray[np.uint64]:
        """[groups]: rows of `responses`."""

    @property
    def rejected(self) -> NDArray[np.uint64]:
        """Rows of `responses`, in the layout of the argument `rejected`."""

    @property
    def merged(self) -> int:
        """Groups whose responses begin before their rendered prompt ends."""

    @property
    def empty(self) -> NDArray[np.uint64]:
        """Joint rows, ascending, of which nothing is left after the border in some group."""
