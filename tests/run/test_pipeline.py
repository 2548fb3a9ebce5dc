"""A whole run on the demo's model: what it writes, how it resumes after a kill, what it refuses."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import yaml
from small_recipe import write_recipe

from mipo import demo
from mipo.errors import InputError
from mipo.io import checksum
from mipo.pairing.filter import keep
from mipo.pairing.stored import StoredPairs
from mipo.run import pipeline, recipe
from mipo.run.preview import dry_run
from mipo.tokens.store import PairStore

KILLED_RUN = Path(__file__).with_name("killed_run.py")
FIGURES = {
    "infonce", "leave_one_out", "logps_chosen", "logps_rejected", "margin", "response_tokens", "truncated",
    "accuracy", "accuracy_greedy", "malformed",
}  # fmt: skip


def die_at(point: str, recipe: Path, output: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(KILLED_RUN), str(recipe), str(output), point], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("run")
    result = die_at("never", write_recipe(folder / "in"), folder / "out")
    assert result.returncode == 0, result.stderr
    (folder / "printed.txt").write_text(result.stdout)
    return folder


def test_a_run_leaves_every_artefact_and_no_other(done):
    names = {path.name for path in (done / "out").iterdir()}
    assert names == {
        ".mipo.json", "answers.sqlite", "recipe.yaml", "manifest.json", "prompts.parquet", "test.parquet",
        "counterparts.parquet", "responses", "links.parquet", "pairs.parquet", "tokens", "evaluation", "model",
        "training.json", "evaluation.json", "report.html",
    }  # fmt: skip
    everything = {path.suffix for path in (done / "out").rglob("*")}
    assert not everything & {".pt", ".bin", ".pkl", ".pth", ".tmp"}


def test_evaluation_json_is_the_contract(done):
    evaluation = json.loads((done / "out" / "evaluation.json").read_text())
    assert evaluation.keys() == {"before", "after", "change", "negatives", "rows"}
    assert evaluation["change"].keys() == FIGURES | {"information_at_least", "information_at_most"}
    for name in FIGURES:
        difference = evaluation["after"][name]["value"] - evaluation["before"][name]["value"]
        assert evaluation["change"][name]["value"] == pytest.approx(difference, abs=1e-9)
    assert (evaluation["negatives"], evaluation["rows"]) == (3, 24)
    for side in ("before", "after"):
        assert evaluation[side].keys() == FIGURES
        for figure in evaluation[side].values():
            assert figure.keys() == {"value", "low", "high", "interval", "rows"}
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_what_is_published_names_no_folder_of_this_machine(done):
    table = (done / "printed.txt").read_text().partition("\nmeasure ")[2].partition("report: ")[0]
    assert "InfoNCE" in table
    page, evaluation = ((done / "out" / name).read_text() for name in ("report.html", "evaluation.json"))
    for published in (page, evaluation, table):
        assert str(done) not in published
        assert str(demo.HERE) not in published
    assert "<h1>out: model</h1>" in page


def test_rows_in_are_rows_out_and_named_drops(done):
    manifest = json.loads((done / "out" / "manifest.json").read_text())
    counted = [stage for stage in manifest["stages"].values() if "rows_in" in stage]
    assert len(counted) >= 5
    for stage in counted:
        assert stage["rows_in"] == stage["rows_out"] + sum(stage["dropped"].values())
    printed = (done / "printed.txt").read_text()
    assert "prompts: 88 rows in, 88 out" in printed
    assert "InfoNCE" in printed.splitlines()[-20:][3] or "InfoNCE" in printed
    assert printed.strip().endswith("report.html")


def test_pairs_are_what_the_responses_say(done):
    stored = StoredPairs.find(done / "out")
    assert stored is not None
    pairs, responses = pl.concat(stored.batches(7)), pl.read_parquet(done / "out" / "responses/*.parquet")
    texts = dict(responses.select("response_id", "response").iter_rows())
    prompts = dict(responses.select("response_id", "prompt").iter_rows())
    for row in pairs.iter_rows(named=True):
        assert row["chosen"] == [{"role": "assistant", "content": texts[row["chosen_id"]]}]
        assert row["rejected"] == [{"role": "assistant", "content": texts[row["rejected_id"]]}]
        assert row["prompt"] == prompts[row["chosen_id"]]
        other = prompts[row["rejected_id"]]
        assert other[1] == row["prompt"][1], "the same question"
        assert other[0] != row["prompt"][0], "another user"


def test_a_run_stores_each_text_once(done):
    """Prompts are in prompts.parquet, composed prompts and responses in responses; all else is row numbers."""
    texts = {"prompts.parquet", "test.parquet", "recipe.yaml", "report.html"}
    for path in (done / "out").rglob("*.parquet"):
        inside = path.relative_to(done / "out").as_posix()
        columns = {name for name, kind in pl.read_parquet_schema(path).items() if kind not in (pl.UInt64, pl.UInt32)}
        if inside not in texts and "responses/" not in inside and not inside.startswith("evaluation/"):
            numbers = {"ref_chosen_logps", "ref_rejected_logps"}
            assert columns <= {"kind", "reason", "part", *numbers}, inside


def test_a_killed_run_continues_and_writes_the_same_pairs(done, tmp_path):
    path, output = write_recipe(tmp_path / "in"), tmp_path / "out"
    for point in ("generation", "pairs", "training"):
        assert die_at(point, path, output).returncode == -9, point
        assert not (output / "evaluation.json").exists()
        assert (output / "pairs.parquet").exists() == (point == "training")
    finished = die_at("never", path, output)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from checkpoint-2" in finished.stdout
    assert (output / "pairs.parquet").read_bytes() == (done / "out" / "pairs.parquet").read_bytes()
    assert not list(output.rglob("*.tmp"))
    assert not (output / "checkpoints").exists()
    steps = [entry["step"] for entry in json.loads((output / "training.json").read_text())]
    assert steps == sorted(steps)
    assert {1, 2, 3} <= set(steps)


def test_an_unchanged_run_does_nothing_again(done, capsys):
    before = {path: path.stat().st_mtime_ns for path in (done / "out" / "responses").iterdir()}
    pipeline.run_recipe(done / "in" / "recipe.yaml", output=done / "out", until="evaluate")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line] == [
        f"{stage}: done before with the same inputs" for stage in pipeline.STAGES
    ]
    assert before == {path: path.stat().st_mtime_ns for path in (done / "out" / "responses").iterdir()}


def test_other_settings_are_refused_by_name(done, tmp_path):
    path = write_recipe(tmp_path, trainer={"beta": 0.5})
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copyfile(done / "in" / name, tmp_path / name)
    with pytest.raises(ValueError, match=r"other settings:[\s\S]*trainer\.beta: 0\.3 there, 0\.5 now[\s\S]*--output"):
        pipeline.run_recipe(path, output=done / "out")


def test_reuse_takes_over_what_stays_the_same(done, tmp_path, capsys):
    output = pipeline.run_recipe(
        done / "in" / "recipe.yaml", output=tmp_path / "control", control="shuffled", reuse=done / "out", until="tokens"
    )
    printed = capsys.readouterr().out
    assert f"responses: taken over from {done / 'out'}" in printed
    assert "pairs: taken over" not in printed
    method, control = (keep(pl.read_parquet(folder / "pairs.parquet")) for folder in (done / "out", output))
    assert method["asked_id"].equals(control["asked_id"])
    swapped = (method["chosen_id"] != control["chosen_id"]).sum()
    assert swapped == method.height // 2
    assert (control["chosen_id"] + control["rejected_id"]).equals(method["chosen_id"] + method["rejected_id"])


def test_a_damaged_file_is_written_again(done, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(done / "out", folder)
    good = (folder / "pairs.parquet").read_bytes()
    (folder / "pairs.parquet").write_bytes(good[:-10])
    pipeline.run_recipe(done / "in" / "recipe.yaml", output=folder, until="pairs")
    assert (folder / "pairs.parquet").read_bytes() == good
    assert "responses: done before" in capsys.readouterr().out


def test_too_many_drops_stop_the_run_and_can_be_allowed(tmp_path, capsys):
    path = write_recipe(tmp_path / "in")
    rows = [json.loads(line) for line in (tmp_path / "in" / "train.jsonl").read_text().splitlines()]
    rows[4]["prompt"] = "  "
    (tmp_path / "in" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"prompts: more rows .*88 rows in, 87 out \(empty prompt: 1, first in row 5\)"
    ):
        pipeline.run_recipe(path, output=tmp_path / "out", until="contrast")
    allowed = write_recipe(tmp_path / "in2", max_dropped={"empty prompt": 0.1})
    shutil.copyfile(tmp_path / "in" / "train.jsonl", tmp_path / "in2" / "train.jsonl")
    pipeline.run_recipe(allowed, output=tmp_path / "out2", until="contrast")
    assert "empty prompt: 1" in capsys.readouterr().out


def test_a_dry_run_shows_three_pairs_and_writes_nothing(tmp_path):
    path = write_recipe(tmp_path)
    before = sorted(tmp_path.iterdir())
    shown = dry_run(path)
    assert shown.count("── what the rejected one answers") == 3
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert first["context"] in shown
    assert first["prompt"] in shown
    assert "64 prompts, 64 pairs of kind context, 122 responses by the engine local, 0 of them there already" in shown
    assert "4,595 in, at most 2,928 out" in shown
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_that_asks_some_prompts_keeps_their_answers(tmp_path):
    path, output = write_recipe(tmp_path), tmp_path / "out"
    shown = dry_run(path, output=output, ask=5)
    assert "122 responses by the engine local, 5 of them there already" in shown
    assert "by the 5 answers that are there: about " in shown
    pipeline.run_recipe(path, output=output, until="responses")
    assert "122 of them there already" in dry_run(path, output=output, ask=5)


def test_several_fresh_samples_are_groups_of_their_own(tmp_path):
    path = write_recipe(
        tmp_path,
        contrast={"kind": "random", "negatives": 2},
        responses={"temperature": 0.7, "max_new_tokens": 24, "samples": 3, "fresh": True},
        max_dropped={"chosen and rejected are equal": 0.9},
    )
    folder = pipeline.run_recipe(path, output=tmp_path / "out", until="tokens")
    rows = pl.read_parquet(folder / "pairs.parquet")
    assert rows.height == 64 * 3 * 2
    groups = rows.filter(pl.col("reason").is_null()).group_by("prompt_id", "chosen_id").len()
    store = PairStore.open(folder / "tokens")
    assert len(store) == groups.height > 64
    assert sorted(store.pairs["rejected"].list.len()) == sorted(groups["len"])
    once = write_recipe(
        tmp_path, contrast={"kind": "random", "negatives": 2}, responses={"temperature": 0.7, "max_new_tokens": 24}
    )
    asked = Counter(part["sample"] for part in pl.read_parquet(folder / "responses/*.parquet").iter_rows(named=True))
    assert asked == dict.fromkeys(range(6), 64)
    assert "64 responses by the engine local, 64 of them there already" in dry_run(once, output=folder)


def test_every_kind_and_several_negatives_run_to_the_report(tmp_path):
    for kind, negatives in (("random", 2), ("dropped", 1)):
        path = write_recipe(
            tmp_path / kind,
            contrast={"kind": kind, "negatives": negatives},
            max_dropped={"chosen and rejected are equal": 0.9},
            trainer={"max_steps": 1, "save_strategy": "no"},
            evaluation={"negatives": 2, "rows": 4, "rule": None},
        )
        folder = pipeline.run_recipe(path, output=tmp_path / kind / "out")
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert "accuracy" not in evaluation["after"]
        assert evaluation["negatives"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/model"}, "no/such/model: no such folder"),
        ({"prompts": {"source": "absent.jsonl"}}, "absent.jsonl: no such file"),
        ({"prompts": {"context": "absent"}}, "no column 'absent'; it has prompt, context, user"),
        ({"contrast": {"negatives": 64}}, "negatives: expected 1 to 63"),
        ({"contrast": {"kind": "other"}}, "recipe.yaml: contrast.kind: expected context, dropped"),
        ({"contrast": {"negativs": 2}}, "contrast.negativs: no such setting; did you mean contrast.negatives?"),
        (
            {"trainer": {"learning_rat": 2}},
            "trainer.learning_rat: no such setting; did you mean trainer.learning_rate?",
        ),
        ({"responses": {"max_new_tokens": 4096}}, "the model's whole context is"),
        ({"evaluation": {"rule": {"answer": "answer"}}}, "evaluation.rule.pattern: is missing"),
        ({"control": "other"}, "control: expected sft, shuffled or null, got 'other'"),
        ({"seed": "1"}, "seed: expected a whole number from 0 to 4294967295, got '1'"),
        ({"lora": True}, "lora: expected settings or null, got true"),
        ({"max_dropped": "1%"}, "max_dropped: expected a number from 0 to 1 or settings"),
        ({"responses": {"temperature": -1}}, "responses.temperature: expected a number of at least 0, got -1"),
        ({"evaluation": {"negatives": 24}}, "evaluation.negatives: expected 1 to 23 (24 held-out prompts), got 24"),
        ({"evaluation": {"rule": {"answer": "nope", "pattern": "(?P<answer>.)"}}}, "got 'nope'"),
        (
            {"evaluation": {"rule": {"answer": "answer", "pattern": "("}}},
            "evaluation.rule.pattern: expected a regular expression, got '('",
        ),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
    path = write_recipe(tmp_path, **changes)
    with pytest.raises((ValueError, OSError)) as error:
        pipeline.run_recipe(path, output=tmp_path / "out", until="contrast")
    assert message in str(error.value)


def test_a_column_that_only_the_training_prompts_have_is_found_before_generation(tmp_path):
    path = write_recipe(tmp_path)
    settings = yaml.safe_load(path.read_text())
    for name, more in (("train", {"task": "a"}), ("test", {})):
        rows = [{"prompt": f"what {name} {i} ?", **more} for i in range(30)]
        (tmp_path / f"{name}-only.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings["prompts"] = {"source": "train-only.jsonl", "test": "test-only.jsonl"}
    settings["contrast"] = {"match": ["task"]}
    path.write_text(yaml.safe_dump(settings))
    for refused in (lambda: pipeline.run_recipe(path, output=tmp_path / "out"), lambda: dry_run(path)):
        with pytest.raises(InputError, match="held-out prompts: kind 'random' needs the column 'task'"):
            refused()
    assert not (tmp_path / "out" / "responses").exists()


def test_the_run_folder_s_recipe_repeats_the_run(done):
    first, second = recipe.load(done / "in" / "recipe.yaml"), recipe.load(done / "out" / "recipe.yaml")
    assert second == first
    assert Path(second.model) == demo.HERE / "model"


def test_a_number_may_be_written_as_in_the_readme(tmp_path):
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("learning_rate: 0.00015", "learning_rate: 5e-7"))
    assert recipe.load(path).trainer["learning_rate"] == 5e-7


def test_a_mistake_before_the_first_stage_can_be_corrected_in_place(tmp_path):
    wrong = write_recipe(tmp_path / "in", prompts={"prompt": "promt"})
    with pytest.raises(ValueError, match="no column 'promt'"):
        pipeline.run_recipe(wrong, output=tmp_path / "out", until="prompts")
    mended = write_recipe(tmp_path / "in")
    assert pipeline.run_recipe(mended, output=tmp_path / "out", until="prompts") == tmp_path / "out"


def test_the_default_folder_names_the_seed_and_the_control(tmp_path, monkeypatch):
    path = write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    for options, name in (({}, "recipe"), ({"seed": 3}, "recipe-seed-3"), ({"control": "sft"}, "recipe-sft")):
        assert pipeline.run_recipe(path, until="prompts", **options) == Path("runs") / name
        assert (tmp_path / "runs" / name / "prompts.parquet").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    path = write_recipe(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    (tmp_path / "mine" / ".notes.tmp").write_text("words")
    with pytest.raises(ValueError, match="expected a new or empty folder, or one for run that mipo made"):
        pipeline.run_recipe(path, output=tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"thesis.txt", ".notes.tmp"}


def test_a_manifest_that_names_files_elsewhere_is_refused(done, tmp_path):
    """Somebody's run, taken over: its names must not lead out of the folder, in reading or in writing."""
    theirs = tmp_path / "theirs"
    shutil.copytree(done / "out", theirs)
    (tmp_path / "secret.txt").write_text("mine")
    manifest = json.loads((theirs / "manifest.json").read_text())
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "inner/../../secret.txt"):
        manifest["stages"]["prompts"]["files"] = {name: checksum.of_file(tmp_path / "secret.txt")}
        (theirs / "manifest.json").write_text(json.dumps(checksum.signed(manifest)))
        with pytest.raises(ValueError, match=rf"names '{name}', which is not inside it"):
            pipeline.run_recipe(done / "in" / "recipe.yaml", output=tmp_path / "new", reuse=theirs, until="prompts")
    with pytest.raises(ValueError, match="expected a new or empty folder, or one for run that mipo made"):
        pipeline.run_recipe(done / "in" / "recipe.yaml", output=tmp_path / "new", reuse=tmp_path, until="prompts")


def test_a_broken_manifest_is_no_manifest(done, tmp_path):
    shutil.copytree(done / "out", tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text('{"stages":')
    with pytest.raises(ValueError, match=r"manifest\.json: not valid JSON .*delete it and run again"):
        pipeline.run_recipe(done / "in" / "recipe.yaml", output=tmp_path / "copy")


def test_a_changed_manifest_is_refused(done, tmp_path):
    shutil.copytree(done / "out", tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    path.write_text(path.read_text().replace('"rows_in": ', '"rows_in": 1', 1))
    with pytest.raises(ValueError, match=r"manifest\.json: changed since it was written; put it back, or delete it"):
        pipeline.run_recipe(done / "in" / "recipe.yaml", output=tmp_path / "copy")
