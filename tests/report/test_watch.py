"""The watch list: over-optimisation, figures that need a control, and rows that do not add up."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_folder import DEMO, SHUFFLED, make_run, write_json, write_manifest

from mipo.report import page
from mipo.report.results import read
from mipo.report.watch import Item, watch


def items(run: Path, **beside: Path) -> dict[str, Item]:
    controls = {name: read(other) for name, other in beside.items()}
    return {item.title: item for item in watch(read(run), controls)}


def test_a_good_run_has_no_grave_item(tmp_path: Path) -> None:
    good = items(make_run(tmp_path / "run"))
    assert set(good) == {
        "The log-prob of chosen responses fell", "Greedy accuracy needs a control", "Rows dropped in prompts",
        "Rows dropped in pairs",
    }  # fmt: skip
    assert not any(item.grave for item in good.values())


@pytest.mark.parametrize(
    ("figure", "ends", "title"),
    [
        ("malformed", ((0.002, 0.003), (0.27, 0.04)), "Malformed answers rose"),
        ("response_tokens", ((10.0, 0.1), (13.0, 0.1)), "Response length changed"),
        ("truncated", ((0.0, 0.0), (0.08, 0.02)), "More than 5 % of the responses were cut off"),
    ],
)
def test_over_optimisation_is_grave(tmp_path: Path, figure: str, ends: Any, title: str) -> None:
    bad = items(make_run(tmp_path / "run", figures={**DEMO, figure: ends}))
    assert bad[title].grave
    assert bad["The log-prob of chosen responses fell"].grave
    assert title.lower() in bad["The log-prob of chosen responses fell"].text


def test_the_verdict_of_the_watch_list_is_the_paired_one(tmp_path: Path) -> None:
    sides = {**DEMO, "malformed": ((0.10, 0.05), (0.16, 0.06))}
    assert "Malformed answers rose" in items(
        make_run(tmp_path / "a", figures=sides, paired={"malformed": (0.06, 0.02)})
    )
    assert "Malformed answers rose" not in items(make_run(tmp_path / "b", figures=sides, paired={}))


def test_greedy_accuracy_is_compared_with_its_control(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run")
    alone = items(run)["Greedy accuracy needs a control"]
    assert [shlex.split(line) for line in alone.commands] == [
        [
            "mipo",
            "run",
            "my run/recipe.yaml",
            "--control",
            "shuffled",
            "--output",
            "my run-shuffled",
            "--reuse",
            "my run",
        ],
        ["mipo", "report", "my run", "--beside", "shuffled=my run-shuffled"],
    ]
    control = make_run(tmp_path / "c", figures=SHUFFLED, control="shuffled")
    beside = items(run, shuffled=control)["Greedy accuracy needs a control"]
    assert beside.text.endswith("; shuffled: 24.0 % before, 40.0 % after (this run is higher).")
    assert not beside.commands
    assert "Greedy accuracy needs a control" not in items(control)


def test_rows_that_vanish_and_stages_that_stopped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["tokens"]["rows_out"] -= 1
    manifest["stages"]["train"]["state"] = "failed"
    write_manifest(folder, manifest)
    assert items(folder)["Rows of tokens do not add up"].grave
    assert items(folder)["Stage train is not done"].grave
    assert items(folder)["Rows dropped in prompts"].text == "4 of 1,028 (empty prompt: 4)."


def test_a_control_that_is_none_or_of_another_model(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", model="/here/model"), make_run(tmp_path / "c", model="/there/copy")
    assert "other is not a control" in items(run, other=other)
    assert "other is not like this run" not in items(run, other=other), "the same hash is the same model"
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["checksum"] = "00" * 32
    write_manifest(other, manifest)
    assert items(run, other=other)["other is not like this run"].text.startswith("They differ in model")


def test_what_limits_the_figures(tmp_path: Path) -> None:
    near = {**DEMO, "infonce": ((3.2, 0.05), (3.3, 0.05)), "leave_one_out": ((5.0, 0.1), (6.0, 0.1))}
    assert "InfoNCE is close to its cap" in items(make_run(tmp_path / "near", figures=near))
    few = make_run(tmp_path / "few")
    evaluation = json.loads((few / "evaluation.json").read_text())
    evaluation["after"]["infonce"]["rows"] = 8
    write_json(few / "evaluation.json", evaluation)
    assert items(few)["Few held-out rows"].text.startswith("Some figures rest on 8 rows.")


def test_a_file_that_is_not_as_the_run_wrote_it_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert "Files changed since the run" not in items(folder)
    for name in ("evaluation.json", "pairs.parquet", "recipe.yaml", "responses/part-00000.parquet", "manifest.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(b'"seed": 0', b'"seed": 1') + b"\n")
        item = items(folder)["Files changed since the run"]
        assert item.grave
        assert item.text.startswith(f"Not as the run wrote them: {name}.")
        assert f"Not as the run wrote them: {name}." in page.table(folder)
        (folder / name).write_bytes(content)
    (folder / "pairs.parquet").unlink()
    assert items(folder)["Files changed since the run"].text.startswith("Not as the run wrote them: pairs.parquet.")
