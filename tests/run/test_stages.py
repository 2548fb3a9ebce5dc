"""Stages: what makes them stale besides their settings: a data set's revision, and libraries if the recipe says so."""

from pathlib import Path
from typing import Any

import pytest
from hub_cache import HubCache
from recipes import write_recipe

from mipo import demo
from mipo.io import files
from mipo.models.model import Model
from mipo.run import provenance, recipe
from mipo.run.stages import Rows, RunFolder

NOW = {"mipo": "0.1.0", "versions": {"python": "3.11.7", "torch": "2.15.0", "trl": "1.16.0"}}
UPGRADED = {"mipo": "0.2.0", "versions": {"python": "3.11.7", "torch": "2.16.0", "trl": "1.16.0", "peft": "0.19.0"}}
CHANGES = "mipo 0.1.0 → 0.2.0, torch 2.15.0 → 2.16.0, peft None → 0.19.0"


class Run:
    """A run of two stages that count how often they are done."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, list[str]()

    def carry_out(self, versions: dict[str, Any], redo: bool = False, reuse: Path | None = None) -> list[str]:
        """The stages that are done in one call."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / ".mipo.json").write_text('{"mipo": "run"}')
        settings = recipe.load(write_recipe(self.folder, f"redo_after_upgrade: {str(redo).lower()}"))
        run, before = RunFolder(self.folder, settings, versions, reuse=reuse), len(self.done)
        for stage in ("prompts", "contrast"):
            run.do(stage, {"stage": stage}, (f"{stage}.txt",), lambda stage=stage: self.work(stage))
        return self.done[before:]

    def work(self, stage: str) -> Rows:
        self.done.append(stage)
        (self.folder / f"{stage}.txt").write_text(stage)
        return Rows(1, 1)


def test_an_upgrade_is_said_in_one_line_and_stages_are_kept(tmp_path: Path, capsys: Any) -> None:
    run = Run(tmp_path / "run")
    assert run.carry_out(NOW) == ["prompts", "contrast"]
    assert run.carry_out(NOW, redo=True) == []
    assert "other versions" not in capsys.readouterr().out
    assert run.carry_out(UPGRADED) == []
    lines = [line for line in capsys.readouterr().out.splitlines() if "other versions" in line]
    assert lines == [
        f"prompts and what follows: done with other versions ({CHANGES}), and kept; redo_after_upgrade: true in the "
        "recipe does it again"
    ]


def test_a_setting_makes_stages_of_other_versions_stale(tmp_path: Path, capsys: Any) -> None:
    run = Run(tmp_path / "run")
    run.carry_out(NOW)
    capsys.readouterr()
    assert run.carry_out(UPGRADED, redo=True) == ["prompts", "contrast"]
    assert f"contrast: done with other versions ({CHANGES}), so it is done again" in capsys.readouterr().out
    assert run.carry_out(UPGRADED, redo=True) == []
    assert files.read_json(run.folder / "manifest.json")["stages"]["prompts"]["versions"]["torch"] == "2.16.0"


@pytest.mark.parametrize("redo", [True, False])
def test_what_is_taken_over_has_these_versions_if_the_recipe_says_so(tmp_path: Path, redo: bool) -> None:
    Run(tmp_path / "old").carry_out(NOW)
    new = Run(tmp_path / "new")
    assert new.carry_out(UPGRADED, redo=redo, reuse=tmp_path / "old") == (["prompts", "contrast"] if redo else [])


def test_another_revision_of_a_data_set_or_another_split_is_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, model = HubCache(tmp_path, monkeypatch), Model(str(demo.HERE / "model"))
    splits: dict[str, Any] = {name: [{"prompt": f"{name} {n}"} for n in range(3)] for name in ("train", "test")}

    def inputs(**prompts: Any) -> dict[str, Any]:
        source = {"source": "owner/name", "test": "owner/name", "test_split": "test", **prompts}
        settings = recipe.load(write_recipe(tmp_path, "", f"model: some/model\nprompts: {source}\n"))
        own = provenance.inputs("prompts", settings, model, None)  # type: ignore[arg-type]
        return dict(own["sources"])

    hub.publish("owner/name", "1" * 40, **splits)
    first = inputs()
    assert first == inputs(), "the same revision is the same input"
    assert first["source"] != first["test"]
    assert inputs(split="test")["source"] == first["test"]
    hub.publish("owner/name", "2" * 40, **splits)
    assert inputs()["source"] != first["source"]
    assert inputs()["test"] != first["test"]
