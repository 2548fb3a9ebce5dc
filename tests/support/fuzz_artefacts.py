"""Fuzzer over every file that mipo reads back: damage is found, or harmless.

    python tests/support/fuzz_artefacts.py --minutes 20 --seed 0 --folder /tmp/artefacts

Each trial copies a folder that mipo wrote, damages one of its files (a flipped bit, another byte, a truncation, another
name, no file), and runs the command that reads it. Found: an error in one line, or a line that names the damage.
Harmless: the same results as without it. All else is printed, with what is needed to see it again, and the exit code is
1. What the cases start from is kept in the folder for the next call. Prints its counts once a minute. Knows nothing of
pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

# What mipo says of damage. An error in one line (exit code 2) counts without these.
SAID = (
    "made again", "is damaged", "was not finished", "starting again", "Not as the run wrote them", "not as mipo wrote",
    "not as it was written", "changed since",
)  # fmt: skip
RENAMED = ".renamed"  # nobody's file: whether it stays is no result
DAMAGES = ("bit", "byte", "cut", "renamed", "gone")


@dataclass(frozen=True)
class Case:
    """A folder that mipo wrote (`make`), the files that may be damaged, and who reads them (`read`, with its result).

    `trials` is how many it has while the slowest have one. `read` returns an exit code; what it prints after RESULT is
    the result.
    """

    name: str
    make: Callable[[Path], None]
    damaged: tuple[str, ...]
    read: Callable[[Path], int]
    trials: int = 1


def mipo(*words: object) -> int:
    """A command in this process."""
    from mipo import cli

    return cli.main([str(word) for word in words])


def result(*paths: Path, without: tuple[str, ...] = ()) -> None:
    """Prints a checksum of files and folders."""
    from mipo.io import checksum

    found = {}
    for path in paths:
        if path.is_dir():
            found |= {f"{path.name}/{name}": digest for name, digest in checksum.of_files(path).items()}
        elif path.is_file():
            found[path.name] = checksum.of_file(path)
    kept = {name: digest for name, digest in found.items() if not any(word in name for word in (*without, RENAMED))}
    print("RESULT", json.dumps(kept, sort_keys=True))


def model() -> str:
    """The demo's model."""
    from mipo import demo

    return str(demo.HERE / "model")


def make_inputs(folder: Path) -> None:
    """Prompts, and pairs of texts."""
    rows = [{"prompt": f"I like {n} things. Which colour?", "user": str(n % 3)} for n in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": f"What is {n}?", "chosen": "one door", "rejected": "two cats"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))


def make_store(folder: Path) -> None:
    """A finished store of three shards."""
    make_inputs(folder)
    assert tokenize(folder) == 0


def tokenize(folder: Path) -> int:
    """`mipo tokens`, into three shards."""
    return mipo("tokens", folder / "pairs.jsonl", "--tokenizer", model(), "--shard-rows", 9, "--output", folder / "t")


def make_unfinished_store(folder: Path) -> None:
    """The same, whose last shard and manifest were not written."""
    make_store(folder)
    (folder / "t" / "manifest.json").unlink()
    shutil.rmtree(folder / "t" / "shard-00002")


def read_store(folder: Path) -> int:
    """Every id of a store."""

    def work() -> int:
        from mipo import PairStore
        from mipo.io import checksum

        store = PairStore.open(folder / "t")
        print("RESULT", checksum.of_value([list(store), store.pairs.write_json(), store.fingerprint, store.merged]))
        return 0

    return in_one_line(work)


def in_one_line(work: Callable[[], int]) -> int:
    """The exit code of a command that does this."""
    from mipo.errors import MipoError

    try:
        return work()
    except MipoError as error:
        print(error)
        return 2


def go_on_tokenizing(folder: Path) -> int:
    """`mipo tokens` into what is there."""
    code = tokenize(folder)
    result(folder / "t")
    return code


def generate(folder: Path) -> int:
    """`mipo generate`, in six parts."""
    from mipo.responses import generation

    generation.PART_ROWS = 4
    counted = ("--model", model(), "--max-new-tokens", 4, "--output", folder / "r")
    return mipo("generate", folder / "prompts.jsonl", *counted)


def make_responses(folder: Path) -> None:
    """Responses, of which the last part is missing."""
    make_inputs(folder)
    assert generate(folder) == 0
    (folder / "r" / "part-00005.parquet").unlink()


def go_on_generating(folder: Path) -> int:
    """`mipo generate` into what is there."""
    code = generate(folder)
    result(*sorted((folder / "r").glob("part-*.parquet")))
    return code


def train(folder: Path) -> int:
    """`mipo train`, with three checkpoints of which two stay."""
    steps = ("--max_steps", 6, "--save_steps", 2, "--save_total_limit", 2, "--use_cpu", True, "--disable_tqdm", True)
    return mipo("train", "--model", model(), "--tokens", folder / "t", *steps, "--output", folder / "m")


def make_checkpoints(folder: Path) -> None:
    """A training that is killed after its second checkpoint, and this process with it."""
    from mipo.trainer import checkpoints

    whole = checkpoints.Recorder.on_save

    def dying(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        whole(self, args, state, control, **more)
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.Recorder.on_save = dying  # type: ignore[method-assign]
    make_store(folder)
    train(folder)


def go_on_training(folder: Path) -> int:
    """`mipo train` from what is there."""
    code = train(folder)
    result(folder / "m", without=("training.json",))
    return code


def make_tables(folder: Path) -> None:
    """Counterparts, responses to all, and pairs."""
    from mipo import demo

    rows = [{"prompt": f"I like {n} things. Which colour?", "context": f"I keep {n} cats."} for n in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert demo.HERE.exists()
    assert mipo("contrast", folder / "prompts.jsonl", "--output", folder / "c.parquet") == 0
    counted = ("--counterparts", folder / "c.parquet", "--model", model(), "--max-new-tokens", 4)
    assert mipo("generate", folder / "prompts.jsonl", *counted, "--output", folder / "r") == 0
    assert pair(folder, "p.parquet") == 0


def pair(folder: Path, name: str) -> int:
    """`mipo pairs`."""
    tables = ("--counterparts", folder / "c.parquet", "--responses", folder / "r")
    return mipo("pairs", folder / "prompts.jsonl", *tables, "--output", folder / name)


def read_tables(folder: Path) -> int:
    """`mipo pairs` from counterparts and responses."""
    code = pair(folder, "q.jsonl")
    result(folder / "q.jsonl")
    return code


def read_pairs(folder: Path) -> int:
    """`mipo export` and `mipo tokens` of pairs."""
    code = mipo("export", folder / "p.parquet", "--output", folder / "e.jsonl")
    code = code or mipo("tokens", folder / "p.parquet", "--tokenizer", model(), "--output", folder / "t")
    result(folder / "e.jsonl", *sorted((folder / "t").glob("shard-*/*.arrow")))
    return code


def recipe(folder: Path, *words: object) -> int:
    """`mipo run`."""
    return mipo("run", folder / "recipe.yaml", "--output", folder / "run", *words)


def make_run(folder: Path) -> None:
    """A finished run."""
    make_inputs(folder)
    (folder / "recipe.yaml").write_text(
        f"model: {model()}\nprompts: {{source: {folder}/prompts.jsonl, holdout: 8}}\nmax_dropped: 1.0\n"
        "contrast: {kind: random}\nresponses: {max_new_tokens: 4}\n"
        "evaluation: {negatives: 3}\ntrainer: {max_steps: 2, use_cpu: true}\n"
    )
    assert recipe(folder) == 0


def make_unfinished_run(folder: Path) -> None:
    """A run up to its tokens; the baseline comes next."""
    make_inputs(folder)
    (folder / "recipe.yaml").write_text(
        f"model: {model()}\nprompts: {{source: {folder}/prompts.jsonl, holdout: 8}}\nmax_dropped: 1.0\n"
        "contrast: {kind: random}\nresponses: {max_new_tokens: 4}\n"
        "evaluation: {negatives: 3}\ntrainer: {max_steps: 2, use_cpu: true}\n"
    )
    assert recipe(folder, "--until", "tokens") == 0


def read_report(folder: Path) -> int:
    """`mipo report`."""
    code = mipo("report", folder / "run")
    result(folder / "run" / "report.html")
    return code


def go_on_with_run(folder: Path) -> int:
    """`mipo run` in what is there, up to the baseline."""
    code = recipe(folder, "--until", "baseline")
    # answers.sqlite says when each answer came, and how long it took; the answers are in the parts, too.
    result(folder / "run", without=("manifest.json", "recipe.yaml", "report.html", "answers.sqlite"))
    return code


CASES = (
    Case("store", make_store, ("t",), read_store, 12),
    Case("shards", make_unfinished_store, ("t",), go_on_tokenizing, 6),
    Case("parts", make_responses, ("r",), go_on_generating, 4),
    Case("checkpoints", make_checkpoints, ("m-checkpoints",), go_on_training),
    Case("tables", make_tables, ("c.parquet", "r"), read_tables, 6),
    Case("pairs", make_tables, ("p.parquet",), read_pairs, 6),
    Case("report", make_run, ("run",), read_report, 4),
    Case("run", make_unfinished_run, ("run",), go_on_with_run),
)


def damage(path: Path, kind: str, rng: random.Random) -> str:
    """Damages a file; says how."""
    if kind == "renamed":
        path.rename(path.with_name(f"{path.name}{RENAMED}"))
        return kind
    if kind == "gone":
        path.unlink()
        return kind
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    if kind == "cut":
        path.write_bytes(data[:place])
        return f"cut to {place} of {len(data)} bytes"
    data[place] ^= 1 << rng.randrange(8) if kind == "bit" else rng.randrange(1, 256)
    path.write_bytes(data)
    return f"byte {place} of {len(data)} is {data[place]:#04x}"


def verdict(ended: forked.Ended, clean: forked.Ended, path: Path) -> str:
    """What came of a trial: found, harmless, or what is wrong."""
    results = [[line for line in each.output.splitlines() if line.startswith("RESULT")] for each in (ended, clean)]
    lines = [line for line in ended.output.splitlines() if line not in clean.output]
    said = any(words in line for line in lines for words in SAID)
    if ended.code == 2:
        errors = [line for line in lines if "error:" in line or path.name in line]
        return "found" if errors and "Traceback" not in ended.output else "an error without a line"
    if ended.code:
        return f"ended with {ended.code}"
    if said:
        return "found"
    return "harmless" if results[0] == results[1] else "unnoticed"


def fuzz(folder: Path, minutes: float, seed: int, cases: tuple[Case, ...] = CASES) -> Counter[str]:
    """Trials of the cases in turn for so many minutes; counts by case and verdict."""
    rng, counts, clean = random.Random(seed), Counter[str](), {}
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        # A case lies where its trials will: folders are in stores and settings by name.
        place, made = folder / "trial", folder / case.name
        shutil.rmtree(place, ignore_errors=True)
        if not made.exists():
            place.mkdir()
            ended = forked.call(lambda case=case, place=place: case.make(place) or 0, below=place)
            assert ended.code in (0, -signal.SIGKILL), ended.output
            shutil.copytree(place, made)
        else:
            shutil.copytree(made, place)
        clean[case.name] = forked.call(lambda case=case, place=place: case.read(place), below=place)
        assert clean[case.name].code == 0, clean[case.name].output
    start = told = time.monotonic()
    while time.monotonic() - start < 60 * minutes:
        for case in [each for each in cases for _ in range(each.trials)]:
            came, where, ended = trial(case, folder, clean[case.name], rng)
            counts[f"{case.name}: {came}"] += 1
            if came not in ("found", "harmless"):
                print(f"{case.name}: {where}: {came}\n{ended.output[-1500:]}", flush=True)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{(told - start) / 60:.0f} min: {dict(sorted(counts.items()))}", flush=True)
    return counts


def trial(case: Case, folder: Path, clean: forked.Ended, rng: random.Random) -> tuple[str, str, forked.Ended]:
    """One damage and what came of it, with where it was."""
    place = folder / "trial"
    shutil.rmtree(place)
    shutil.copytree(folder / case.name, place)
    pick = [path for name in case.damaged for path in (place / name, *(place / name).rglob("*")) if path.is_file()]
    path = rng.choice(sorted(path for path in pick if path.stat().st_size))
    how = damage(path, rng.choice(DAMAGES), rng)
    ended = forked.call(lambda: case.read(place), below=place)
    return verdict(ended, clean, path), f"{path.relative_to(place)} {how}", ended


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES])
    arguments = parser.parse_args()
    forked.load()
    cases = tuple(case for case in CASES if case.name in arguments.cases)
    counts = fuzz(arguments.folder.resolve(), arguments.minutes, arguments.seed, cases)
    print(f"{counts.total()} trials: {dict(sorted(counts.items()))}")
    sys.exit(any(not name.endswith((": found", ": harmless")) for name in counts))


if __name__ == "__main__":
    main()
