"""Kills `mipo generate --engine server` at random moments, and counts by the server what was asked again.

    python tests/support/kill_generation.py --points 100 --folder /tmp/kills

One job after another is killed until it is done. After each kill the database says what is kept: none of that may be
asked again, and what the server answered and is not kept may be no more than was in flight. Prints a line of counts;
exits with 1 if either does not hold. Knows nothing of pytest.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import forked
from demo_server import DemoServer

PROMPTS, IN_FLIGHT = 120, 4
SEEDS = 2**31 - 1  # a request carries the 31 bits of its prompt's key that are its seed


def kept(folder: Path, seed: int) -> set[int]:
    """The seeds of the requests whose answers are in the database, under this seed of the job."""
    path = folder / "out" / "answers.sqlite"
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if "answers" not in tables:
            return set()
        rows = database.execute(
            "SELECT prompt FROM answers JOIN settings ON answers.settings = settings.id "
            "WHERE json_extract(settings.value, '$.seed') = ?",
            (seed,),
        ).fetchall()
    return {(int.from_bytes(prompt[:8], "little") ^ seed) & SEEDS for (prompt,) in rows}


def kill(folder: Path, points: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """The counts of all jobs, and what did not hold."""
    from mipo import demo
    from mipo.models.loading import load_model, load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    name, rng, wrong = str(demo.HERE / "model"), random.Random(seed), list[str]()
    tokenizer = load_tokenizer(name)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())[:PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"i like {word} ."}) for word in words))
    counts = dict.fromkeys(("kills", "jobs", "answers", "asked again", "most unkept"), 0)
    forked.load()
    site = DemoServer(load_model(name), tokenizer)
    with site.running():
        while counts["kills"] < points:
            job = counts["jobs"]
            counts["jobs"] += 1
            site.bodies.clear()
            site.answered.clear()
            call = [
                "generate", str(folder / "prompts.jsonl"), "--model", name, "--output", str(folder / "out"),
                "--engine", "server", "--urls", site.url, "--concurrency", str(IN_FLIGHT), "--seed", str(job),
                "--temperature", "0.5", "--max-new-tokens", "4",
            ]  # fmt: skip
            before, start = set[int](), 0
            while True:
                left = counts["kills"] < points
                ended = forked.command(call, below=folder, seconds=rng.uniform(0.05, 0.8) if left else 300)
                asked = [body["seed"] for body in site.bodies[start:]]
                if again := before & set(asked):
                    wrong.append(f"job {job}: {len(again)} kept answers were asked for again")
                start, after = len(site.bodies), kept(folder, job)
                if not before <= after:
                    wrong.append(f"job {job}: {len(before - after)} kept answers are gone")
                before = after
                if ended.code == 0:
                    break
                if ended.code != -9:
                    return counts, [*wrong, ended.output[-2000:]]
                counts["kills"] += 1
                seeds = {json.dumps(body["prompt"]): body["seed"] for body in site.bodies}
                unkept = {seeds[prompt] for prompt in site.answered} - after
                counts["most unkept"] = max(counts["most unkept"], len(unkept))
            if len(before) != PROMPTS:
                wrong.append(f"job {job}: {len(before)} answers of {PROMPTS} are kept at its end")
            counts["answers"] += len(before)
            counts["asked again"] += site.answered.total() - len(site.answered)
    if counts["most unkept"] > IN_FLIGHT:
        wrong.append(f"{counts['most unkept']} answers were not kept when it was killed, with {IN_FLIGHT} in flight")
    return counts, wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    counts, wrong = kill(arguments.folder.resolve(), arguments.points, arguments.seed)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print("\n".join(wrong), end="")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
