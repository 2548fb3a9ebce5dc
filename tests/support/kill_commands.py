"""Kills `mipo train` and `mipo generate` at many points, and lets them go on: the same bytes, or a named fallback.

    python tests/support/kill_commands.py --points 50 --folder /tmp/kills

A point is one of the moments at which a command touches a file of its output; every second one comes up to 50 ms later,
which may be within a library's write. Prints a line for each command; exits with 1 at a difference. Knows nothing of
pytest.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import forked

NAMED = ("was not finished", "is damaged", "made again", "starting again")


def prepare(folder: Path) -> dict[str, list[str]]:
    """Writes prompts and tokens; returns the commands, but for their outputs."""
    from mipo import demo

    model = str(demo.HERE / "model")
    prompts = [{"prompt": f"I like {n} things. Which colour?"} for n in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    pairs = [{"prompt": f"What is {n}?", "chosen": "one door", "rejected": "two cats"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    words = ["tokens", f"{folder}/pairs.jsonl", "--tokenizer", model, "--output", f"{folder}/tokens"]
    assert forked.command(words, below=folder).code == 0
    steps = [
        "--max_steps",
        "6",
        "--save_steps",
        "2",
        "--save_total_limit",
        "2",
        "--use_cpu",
        "True",
        "--logging_steps",
        "1",
    ]
    return {
        "train": ["train", "--model", model, "--tokens", f"{folder}/tokens", *steps, "--disable_tqdm", "True"],
        "generate": ["generate", f"{folder}/prompts.jsonl", "--model", model, "--max-new-tokens", "6"],
    }


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, but for the database of answers, which has times in it. Of the log of a training its
    steps, whose figures transformers sorts in checkpoints.

    The entry after the last step is a summary of one call, and TRL counts num_tokens from the start of a call.
    """
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("answers.sqlite")
    ]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    if "training.json" in files:
        steps = [entry for entry in json.loads(files["training.json"]) if "loss" in entry]
        files["training.json"] = json.dumps([entry | {"num_tokens": None} for entry in steps], sort_keys=True).encode()
    return files


def trial(words: list[str], folder: Path, whole: dict[str, bytes], event: int, delay: float) -> str:
    """Kills a command at a point and runs it again; what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    call = [*words, "--output", str(folder / "out")]
    killed = forked.command(call, below=folder, event=event, delay=delay)
    if killed.code == 0:
        return "not killed"
    if killed.code != -9:
        return f"ended with {killed.code} before it was killed: {killed.output[-500:]}"
    again = forked.command(call, below=folder)
    if again.code:
        return f"did not go on: {again.output[-1000:]}"
    left = [path.name for path in folder.iterdir() if path.name != "out"]
    if left:
        return f"left {left}"
    if contents(folder / "out") != whole:
        return "other bytes"
    return "the same bytes, after a named fallback" if any(n in again.output for n in NAMED) else "the same bytes"


def kill(folder: Path, points: int, seed: int) -> dict[str, Counter[str]]:
    """What came of each command's points."""
    from mipo.responses.engines import local

    local.BLOCK_ROWS = 4
    folder.mkdir(parents=True, exist_ok=True)
    rng, results = random.Random(seed), {}
    for name, words in prepare(folder).items():
        undisturbed = folder / f"{name}-whole"
        undisturbed.mkdir(exist_ok=True)
        ended = forked.command([*words, "--output", str(undisturbed / "out")], below=undisturbed)
        assert ended.code == 0, ended.output
        whole = contents(undisturbed / "out")
        results[name] = Counter[str]()
        for number in range(points):
            event = 1 + number * ended.events // points
            delay = rng.uniform(0.001, 0.05) if number % 2 else 0.0
            came = trial(words, folder / name, whole, event, delay)
            results[name][came] += 1
            if not came.startswith(("the same bytes", "not killed")):
                print(f"{name}, event {event} of {ended.events}, {delay:.3f} s later: {came}", flush=True)
        print(f"{name}: {ended.events} events, {points} points: {dict(results[name])}", flush=True)
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    forked.load()
    results = kill(arguments.folder.resolve(), arguments.points, arguments.seed)
    good = ("the same bytes", "not killed")
    sys.exit(any(not came.startswith(good) for counter in results.values() for came in counter))


if __name__ == "__main__":
    main()
