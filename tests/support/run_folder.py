"""A folder such as `mipo run` leaves, with figures of one's choice, for tests of what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from mipo.io import checksum

BOOTSTRAP = "95 %, percentile bootstrap over rows, 2000 resamples"
Ends = tuple[tuple[float, float], tuple[float, float]]
# (value, half width of the interval) before and after, as in a run of the demo
DEMO: dict[str, Ends] = {
    "infonce": ((0.16, 0.03), (0.60, 0.05)),
    "leave_one_out": ((0.20, 0.04), (0.80, 0.07)),
    "logps_chosen": ((-2.15, 0.06), (-2.35, 0.07)),
    "logps_rejected": ((-2.45, 0.06), (-3.2, 0.08)),
    "margin": ((0.30, 0.04), (0.85, 0.06)),
    "response_tokens": ((10.2, 0.1), (10.25, 0.1)),
    "truncated": ((0.0, 0.0), (0.002, 0.003)),
    "accuracy": ((0.33, 0.04), (0.54, 0.043)),
    "accuracy_greedy": ((0.24, 0.037), (0.74, 0.038)),
    "malformed": ((0.006, 0.006), (0.012, 0.008)),
}
STILL: dict[str, Ends] = {name: (before, before) for name, (before, _) in DEMO.items()}
SHUFFLED: dict[str, Ends] = {
    **STILL, "accuracy_greedy": ((0.24, 0.037), (0.40, 0.042)), "accuracy": ((0.33, 0.04), (0.345, 0.04)),
}  # fmt: skip


def make_run(
    folder: Path,
    *,
    figures: dict[str, Ends] = DEMO,
    paired: dict[str, tuple[float, float]] | None = None,
    control: str | None = None,
    rows: int = 1009,
    chat: bool = False,
    hostile: str = "",
    model: str = "mipo-demo-0.8M",
) -> Path:
    """Write the folder; `paired` replaces the changes, which else are as sure as the wider of their two sides."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {
        side: {name: figure(*ends[place]) for name, ends in figures.items()}
        for place, side in enumerate(("before", "after"))
    }
    changes = changes_of(figures) if paired is None else paired
    change = {name: figure(*ends) for name, ends in changes.items()}
    write_json(folder / "evaluation.json", {**sides, "change": change, "negatives": 31, "rows": 512})
    write_json(folder / "training.json", training())
    (folder / "recipe.yaml").write_text(
        f"model: {json.dumps(model)}\ncontrast:\n  kind: context\ntrainer:\n  beta: 0.3\n{hostile}\n"
    )
    write_pairs(folder, rows, chat, hostile)
    write_manifest(folder, manifest(control, rows, model))
    return folder


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest with its checksum and those of the files that are there."""
    for stage in content.get("stages", {}).values():
        for name in stage["files"]:
            stage["files"][name] = checksum.of_file(folder / name) if (folder / name).exists() else "0" * 32
    content["recipe_checksum"] = checksum.of_file(folder / "recipe.yaml")
    write_json(folder / "manifest.json", checksum.signed(content))


def changes_of(figures: dict[str, Ends]) -> dict[str, tuple[float, float]]:
    compared = {name: (before, after) for name, (before, after) in figures.items()}
    compared["information_at_least"] = (figures["leave_one_out"][0], figures["infonce"][1])
    compared["information_at_most"] = (figures["infonce"][0], figures["leave_one_out"][1])
    return {name: (new[0] - old[0], max(old[1], new[1])) for name, (old, new) in compared.items()}


def figure(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "interval": BOOTSTRAP, "rows": 512}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def manifest(control: str | None, rows: int, model: str) -> dict[str, Any]:
    def stage(number: int, rows_in: int, rows_out: int, dropped: dict[str, int], *files: str) -> dict[str, Any]:
        return {
            "state": "done",
            "key": f"{number:x}" * 64,
            "rows_in": rows_in,
            "rows_out": rows_out,
            "dropped": dropped,
            "files": {file: f"{number:x}" * 64 for file in files},
            "seconds": 1.25 * number,
            "finished": f"2026-11-24T18:0{number}:00+00:00",
        }

    equal = {"chosen and rejected are equal": 1024 - rows} if rows < 1024 else {}
    return {
        "mipo": "0.1.0",
        "command": "mipo run demo.yaml --output runs/demo" + (f" --control {control}" if control else ""),
        "seed": 0,
        "control": control,
        "versions": {"python": "3.11.7", "torch": "2.15.0", "polars": "2.1.0"},
        "model": {"name": model, "checksum": "ab" * 16},
        "template_checksum": "cd" * 16,
        "stages": {
            "prompts": stage(1, 1028, 1024, {"empty prompt": 4}, "prompts.parquet"),
            "contrast": stage(2, 1024, 1024, {}, "counterparts.parquet"),
            "responses": stage(3, 1024, 1024, {}, "responses/part-00000.parquet"),
            "pairs": stage(4, 1024, rows, equal, "pairs.parquet"),
            "tokens": stage(5, rows, rows, {}, "tokens/prompts.arrow", "tokens/responses.arrow"),
            "train": stage(6, rows, rows, {}, "model/model.safetensors"),
            "evaluate": stage(7, 512, 512, {}, "evaluation.json"),
        },
    }


def training() -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = []
    for step in range(5, 55, 5):
        progress = 1 - 0.5 ** (step / 20)
        logs.append(
            {
                "step": step,
                "epoch": step / 54,
                "loss": 0.693 - 0.25 * progress,
                "rewards/accuracies": 0.5 + 0.3 * progress,
                "rewards/margins": 0.9 * progress,
                "rewards/chosen": -0.06 * progress,
                "rewards/rejected": -0.3 * progress,
                "logps/chosen": -2.15 - 0.2 * progress,
                "logps/rejected": -2.45 - 0.75 * progress,
                "learning_rate": 2e-4,
            }
        )
    return [*logs, {"step": 54, "epoch": 1.0, "train_runtime": 12.3, "train_loss": 0.55}]


def write_pairs(folder: Path, rows: int, chat: bool, hostile: str) -> None:
    """Pairs as row numbers, and the responses that they are of."""
    colours = ("red", "green", "blue", "amber", "violet", "white")

    def prompt(row: int) -> Any:
        text = (
            f"I never leave home without my {colours[row % 6]} scarf, and I keep a cat. "
            f"Which colour should I paint my door? {hostile}"
        )
        return [{"role": "user", "content": text}] if chat else text

    ids = pl.Series(range(rows), dtype=pl.UInt64)
    pairs = pl.DataFrame({"prompt_id": ids, "negative": 0, "kind": "context", "asked_id": ids, "chosen_id": ids})
    pairs.with_columns(rejected_id=(pl.col("chosen_id") + 7) % rows, reason=pl.lit(None, pl.String)).write_parquet(
        folder / "pairs.parquet"
    )
    (folder / "responses").mkdir(exist_ok=True)
    answers = [f"A {colours[row % 6]} door would look best on your house. {hostile}" for row in range(rows)]
    responses = pl.DataFrame({"response_id": ids, "prompt": [prompt(row) for row in range(rows)], "response": answers})
    responses.write_parquet(folder / "responses" / "part-00000.parquet")
