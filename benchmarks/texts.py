"""Real prompts and answers, each repeated with other words in it, and preference pairs of them.

    python benchmarks/texts.py FOLDER --rows 1_000_000 --pairs 200_000 1_000_000 --sample 4000 [--data DATA]

Of each text about one word in ten is replaced by another real word, at random, until it equals no other: an
engine may remember words, as with any text, but never a whole text. Without `--data` the texts are a few made-up ones.
"""

import argparse
import itertools
import json
import lzma
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPTS = (
    ("prompts/t0_prompts.jsonl.xz", ("prompt",)),
    ("math/gsm8k_train.jsonl", ("question",)),
    ("prompts/human_instructions.jsonl", ("prompt",)),
    ("prompts/clinc150.jsonl.xz", ("text",)),
    ("math/svamp_700.jsonl", ("Body", "Question")),
)
ANSWERS = (
    ("math/gsm8k_train.jsonl", ("answer",)),
    ("math/aqua_dev.jsonl", ("rationale",)),
    ("personal/biggen_bench_500.jsonl.xz", ("reference_answer",)),
)
# Words of the demo's tokenizer, which every checkout has.
MADE_UP = ["what", "should", "i", "eat", "tonight", "?", "pizza", "soup", "because", "it", "suits", "you", "."]
REPLACED = 10  # one word in so many
WORDS_OF = 5_000  # texts whose words replace others
ROW_GROUP = 25_000  # rows that are written at a time
SHAPES = ("text", "chat")


def read(data: Path | None, sources: Any) -> list[str]:
    """The distinct texts of the sources, shuffled."""
    if data is None:
        draw = random.Random(0)
        texts = [" ".join(draw.choices(MADE_UP, k=draw.randint(6, 40))) for _ in range(60)]
    else:
        texts = [" ".join(row[key] for key in keys).strip() for name, keys in sources for row in _rows(data / name)]
    texts = list(dict.fromkeys(filter(None, texts)))
    random.Random(0).shuffle(texts)
    return texts


def _rows(path: Path) -> Iterator[Any]:
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as lines:
        yield from map(json.loads, lines)


def vary(texts: list[str], seed: int) -> Iterator[str]:
    """The texts in turn, without end, with other words in them; no two are equal."""
    draw, seen = random.Random(seed), set()
    words = [word for text in texts[:WORDS_OF] for word in text.split()]
    for text in itertools.cycle(texts):
        varied = _replace(text, words, draw)
        while (mark := hash(varied)) in seen:
            varied = _replace(varied, words, draw)
        seen.add(mark)
        yield varied


def _replace(text: str, words: list[str], draw: random.Random) -> str:
    own = text.split(" ")
    for place in draw.sample(range(len(own)), -(-len(own) // REPLACED)):
        own[place] = draw.choice(words)
    return " ".join(own)


def write_texts(texts: list[str], path: Path) -> None:
    """An Arrow file with the one column `text`."""
    import pyarrow as pa

    schema = pa.schema({"text": pa.large_string()})
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(texts), ROW_GROUP):
            writer.write_batch(pa.record_batch([texts[start : start + ROW_GROUP]], schema=schema))


def write_pairs(prompts: list[str], answers: list[str], shape: str, path: Path) -> None:
    """A Parquet file of TRL's columns; as rejected, the chosen one of the row that mipo's `random` kind draws.

    Text has a blank before the answer; in chat the prompt is the user's message and an answer is the assistant's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    import mipo

    n = len(prompts)
    drawn = mipo.counterparts(n, seed=0)[:, 0].tolist()
    message = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    kind = pa.string() if shape == "text" else message
    schema = pa.schema({name: kind for name in ("prompt", "chosen", "rejected")})

    def shaped(text: str, role: str) -> Any:
        if shape == "text":
            return text if role == "user" else f" {text}"
        return [{"role": role, "content": text}]

    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n, ROW_GROUP):
            rows = range(start, min(start + ROW_GROUP, n))
            columns = {
                "prompt": [shaped(prompts[row], "user") for row in rows],
                "chosen": [shaped(answers[row], "assistant") for row in rows],
                "rejected": [shaped(answers[drawn[row]], "assistant") for row in rows],
            }
            writer.write_table(pa.table(columns, schema=schema))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where texts.arrow and pairs-<shape>-<rows>.parquet go")
    parser.add_argument("--rows", type=int, required=True, help="prompts in texts.arrow")
    parser.add_argument("--pairs", type=int, nargs="*", default=[], help="pairs in each file, text and chat")
    parser.add_argument("--sample", type=int, required=True, help="pairs in a file that is checked and not timed")
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder with the files that PROMPTS and ANSWERS name; without it the texts are made up",
    )
    args = parser.parse_args()
    sizes = [*args.pairs, args.sample]
    bases = read(args.data, PROMPTS)
    prompts = list(itertools.islice(vary(bases, 1), max(args.rows, *sizes)))
    answers = list(itertools.islice(vary(read(args.data, ANSWERS), 2), max(sizes)))
    write_texts(prompts[: args.rows], args.folder / "texts.arrow")
    for size in set(sizes):
        for shape in SHAPES:
            path = args.folder / f"pairs-{shape}-{size}.parquet"
            write_pairs(prompts[:size], answers[:size], shape, path)
    facts = {"distinct_before": len(bases), "made_up": args.data is None}
    for name, texts in (("prompts", prompts[: args.rows]), ("answers", answers)):
        facts[f"bytes_a_row_of_{name}"] = round(sum(len(text.encode()) for text in texts) / len(texts))
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
