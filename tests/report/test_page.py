"""The report: what it may say, that it is one safe file, and that it says what is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipo.report import findings
from mipo.report import page as room
from mipo.report.findings import Estimate

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

HOSTILE = '</script><script>alert("p0wned")</script><img src=x onerror=alert(1)> & <!--'
BOOTSTRAP = "percentile bootstrap over rows, 2,000 draws"
# value, half width of the interval; before and after, as on a two-core demo run
DEMO = {
    "infonce": ((0.16, 0.03), (0.60, 0.05)),
    "leave_one_out": ((0.20, 0.04), (0.80, 0.07)),
    "logps_chosen": ((-2.15, 0.06), (-2.35, 0.07)),
    "logps_rejected": ((-2.45, 0.06), (-3.2, 0.08)),
    "margin": ((0.30, 0.04), (0.85, 0.06)),
    "response_tokens": ((10.2, 0.1), (10.3, 0.1)),
    "truncated": ((0.0, 0.0), (0.002, 0.003)),
    "accuracy": ((0.33, 0.04), (0.54, 0.043)),
    "accuracy_greedy": ((0.24, 0.037), (0.74, 0.038)),
    "malformed": ((0.002, 0.003), (0.012, 0.008)),
}
STILL = {name: (before, before) for name, (before, _) in DEMO.items()}
SHUFFLED = {**STILL, "accuracy_greedy": ((0.24, 0.037), (0.40, 0.042)), "accuracy": ((0.33, 0.04), (0.345, 0.04))}
OPTIONAL = {
    "recipe.yaml": "the recipe cannot be shown",
    "training.json": "there are no training curves",
    "pairs.parquet": "no pairs can be shown",
}


def make_run(
    folder: Path,
    *,
    figures: dict[str, Any] = DEMO,
    control: str | None = None,
    rows: int = 1009,
    talk: bool = False,
    hostile: str = "",
    name: str = "mipo-demo-0.8M",
) -> Path:
    """Write a folder such as `mipo run` leaves, with the given (value, half width) before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {
        side: {name: _figure(*ends[place]) for name, ends in figures.items()}
        for place, side in enumerate(("before", "after"))
    }
    _dump(folder / "evaluation.json", {**sides, "negatives": 31, "rows": 512})
    _dump(folder / "manifest.json", _manifest(folder, control, rows, name))
    _dump(folder / "training.json", _training())
    (folder / "recipe.yaml").write_text(
        f"# demo\nmodel: {name}\nkind: context\nbeta: 0.3\nlearning_rate: 2.0e-4\n{hostile}\n"
    )
    write_pairs(folder, rows, talk, hostile)
    return folder


def _figure(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "interval": BOOTSTRAP}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _manifest(folder: Path, control: str | None, rows: int, name: str) -> dict[str, Any]:
    def stage(number: int, came: int, out: int, dropped: dict[str, int], *files: str) -> dict[str, Any]:
        return {
            "state": "done",
            "key": f"{number:x}" * 64,
            "rows_in": came,
            "rows_out": out,
            "dropped": dropped,
            "files": {file: f"{number:x}" * 64 for file in files},
            "seconds": 1.25 * number,
            "finished": f"2026-11-24T18:0{number}:00+00:00",
        }

    return {
        "mipo": "0.1.0",
        "command": "mipo run demo.yaml --output runs/demo" + (f" --control {control}" if control else ""),
        "seed": 0,
        "control": control,
        "versions": {
            "python": "3.11.7",
            "torch": "2.15.0",
            "transformers": "5.24.0",
            "trl": "1.16.0",
            "polars": "2.1.0",
        },
        "model": {"name": name, "sha256": "ab" * 32},
        "template_sha256": "cd" * 32,
        "stages": {
            "prompts": stage(1, 1028, 1024, {"empty prompt": 4}, "prompts.parquet"),
            "contrast": stage(2, 1024, 1024, {}, "counterparts.parquet"),
            "responses": stage(3, 1024, 1024, {}, "responses/part-00000.parquet"),
            "pairs": stage(
                4, 1024, rows, {"chosen equals rejected": 1024 - rows} if rows < 1024 else {}, "pairs.parquet"
            ),
            "tokens": stage(5, rows, rows, {}, "tokens/prompts.arrow", "tokens/responses.arrow"),
            "train": stage(6, rows, rows, {}, "model/model.safetensors"),
            "evaluate": stage(7, 512, 512, {}, "evaluation.json"),
        },
    }


def _training() -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = []
    for step in range(5, 55, 5):
        learnt = 1 - 0.5 ** (step / 20)
        logs.append(
            {
                "step": step,
                "epoch": step / 54,
                "loss": 0.693 - 0.25 * learnt,
                "rewards/accuracies": 0.5 + 0.3 * learnt,
                "rewards/margins": 0.9 * learnt,
                "rewards/chosen": -0.06 * learnt,
                "rewards/rejected": -0.3 * learnt,
                "logps/chosen": -2.15 - 0.2 * learnt,
                "logps/rejected": -2.45 - 0.75 * learnt,
                "learning_rate": 2e-4,
            }
        )
    return [*logs, {"step": 54, "epoch": 1.0, "train_runtime": 12.3, "train_loss": 0.55}]


def write_pairs(folder: Path, rows: int, talk: bool, hostile: str) -> None:
    """Pairs as row numbers, and the responses that they are of."""
    colours = ("red", "green", "blue", "amber", "violet", "white")

    def asked(row: int) -> Any:
        text = (
            f"I never leave home without my {colours[row % 6]} scarf, and I keep a cat. "
            f"Which colour should I paint my door? {hostile}"
        )
        return [{"role": "user", "content": text}] if talk else text

    ids = polars.Series(range(rows), dtype=polars.UInt64)
    pairs = polars.DataFrame({"prompt_id": ids, "negative": 0, "kind": "context", "asked_id": ids, "chosen_id": ids})
    pairs.with_columns(
        rejected_id=(polars.col("chosen_id") + 7) % rows, reason=polars.lit(None, polars.String)
    ).write_parquet(folder / "pairs.parquet")
    (folder / "responses").mkdir(exist_ok=True)
    answers = [f"A {colours[row % 6]} door would look best on your house. {hostile}" for row in range(rows)]
    responses = polars.DataFrame(
        {"response_id": ids, "prompt": [asked(row) for row in range(rows)], "response": answers}
    )
    responses.write_parquet(folder / "responses" / "part-00000.parquet")


class Page(HTMLParser):
    """What a browser would see of a page: tags with attributes, and text by enclosing tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


def page(folder: Path, **options: Any) -> Page:
    return Page(room.write(folder, **options).read_text(encoding="utf-8"))


def lede(folder: Path, **options: Any) -> str:
    text = room.write(folder, **options).read_text(encoding="utf-8")
    return Page(text.partition('<div class="lede">')[2].partition("</div>")[0]).text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    path = room.write(make_run(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"""(?:https?:)?//[\w.]+\.[a-z]+[^"'<\s]*""", text)) == {"https://arxiv.org/abs/2603.19294"}
    for tag, attributes in Page(text).tags:
        assert "src" not in attributes, tag
        if (target := attributes.get("href")) and tag != "a":
            assert target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in text
    assert {file.name for file in path.parent.iterdir() if file.name.startswith(".")} == set()


def test_ids_are_unique_and_drawings_have_names(tmp_path: Path) -> None:
    tags = page(make_run(tmp_path / "run"), beside={"$x$ <b>": make_run(tmp_path / "c", control="shuffled")}).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 6
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(str(drawing["aria-labelledby"]).split()) <= set(ids)
    assert not any(tag == "b" for tag, _ in tags)


@pytest.mark.parametrize("talk", [False, True])
def test_hostile_text_is_text(tmp_path: Path, talk: bool) -> None:
    ours = page(make_run(tmp_path / "run", talk=talk), sample=20)
    hostile = page(make_run(tmp_path / "run", talk=talk, hostile=HOSTILE, name=HOSTILE), sample=20)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in ours.tags]
    assert HOSTILE in hostile.text
    raw = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    records = json.loads(raw.partition('id="records">')[2].partition("</script>")[0])
    assert len(records) == 20
    assert all(HOSTILE in record["prompt"][0][1] for record in records)


def test_same_files_same_bytes(tmp_path: Path) -> None:
    folder, control = make_run(tmp_path / "run"), make_run(tmp_path / "control", figures=SHUFFLED, control="shuffled")
    first = room.write(folder, beside={"shuffled": control}).read_bytes()
    assert room.write(folder, beside={"shuffled": control}).read_bytes() == first
    # In a process of its own, where hashes of strings and the user's matplotlib settings are others.
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    code = f"from mipo.report import page; page.write({str(folder)!r}, beside={{'shuffled': {str(control)!r}}})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize("missing", OPTIONAL)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (make_run(tmp_path / "run") / missing).unlink()
    text = page(tmp_path / "run").text
    assert f"No {missing} in this run folder, so {OPTIONAL[missing]}." in text
    assert not any(reason in text for file, reason in OPTIONAL.items() if file != missing)


def test_a_bare_run_has_a_page(tmp_path: Path) -> None:
    few = {name: DEMO[name] for name in ("infonce", "leave_one_out")}
    for file in OPTIONAL:
        (make_run(tmp_path / "run", figures=few) / file).unlink()
    _dump(tmp_path / "run" / "manifest.json", {})
    text = page(tmp_path / "run").text
    assert "No rule judged answers" in text
    assert "not recorded" in text


def test_apart_is_up(tmp_path: Path) -> None:
    text = lede(make_run(tmp_path / "run"))
    assert "The information interval between the user's context and the response, given the question is up" in text
    assert "Accuracy, sampled as in training, is up: 33.0 % [29.0, 37.0] before, 54.0 % [49.7, 58.3] after." in text
    assert "Not distinguishable from before: malformed answers, response length, truncated responses." in text


def test_apart_the_other_way_is_down(tmp_path: Path) -> None:
    text = lede(make_run(tmp_path / "run", figures={name: (after, before) for name, (before, after) in DEMO.items()}))
    assert "is down" in text
    assert not re.search(r"\bup\b", text)


def test_overlap_is_not_distinguishable(tmp_path: Path) -> None:
    text = lede(make_run(tmp_path / "run", figures=STILL))
    assert "is not distinguishable from the one before" in text
    assert "Accuracy, sampled as in training, is not distinguishable from before" in text
    assert not re.search(r"\b(up|down|higher|rose)\b", text)


def test_two_higher_ends_do_not_make_the_information_higher(tmp_path: Path) -> None:
    ends = {"infonce": ((2.0, 0.05), (2.4, 0.05)), "leave_one_out": ((4.0, 0.1), (5.0, 0.1))}
    text = lede(make_run(tmp_path / "run", figures=ends))
    assert "both ends higher" in text
    assert "whether the information itself changed is not distinguishable" in text
    assert not re.search(r"\bup\b", text)


estimates = st.tuples(st.floats(-5, 5), st.floats(0, 3)).map(lambda v: Estimate(v[0], v[0] - v[1], v[0] + v[1]))


@given(estimates, estimates)
def test_moved_never_claims_more_than_the_intervals(before: Estimate, after: Estimate) -> None:
    overlap = before.low <= after.high and after.low <= before.high
    assert (findings.moved(before, after) == "not distinguishable") == overlap
    opposite = {"up": "down", "down": "up"}.get(findings.moved(before, after), "not distinguishable")
    assert findings.moved(after, before) == opposite


@pytest.mark.parametrize("control", ["shuffled", "sft"])
def test_a_control_is_called_a_control(tmp_path: Path, control: str) -> None:
    folder = make_run(tmp_path / "run", figures=SHUFFLED, control=control)
    assert lede(folder).strip().startswith(f"This is a control run ({control})")
    assert room.table(folder).startswith(f"This is a control run ({control})")
    assert "control run" not in lede(make_run(tmp_path / "method"))


def test_greedy_accuracy_is_read_beside_its_control(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    alone = page(folder).text
    assert "Shuffled pairs move greedy accuracy too" in alone
    assert f"--control shuffled --output {folder}-shuffled --reuse {folder}" in alone
    beside = page(folder, beside={"shuffled": make_run(tmp_path / "c", figures=SHUFFLED, control="shuffled")}).text
    assert "shuffled 24.0 % before, 40.0 % after, and this run ends above it." in beside
    assert "--reuse" not in beside


def titles(run: Path, **beside: Path) -> dict[str, bool]:
    controls = {name: findings.read(other) for name, other in beside.items()}
    return {item.title: item.grave for item in findings.watch(findings.read(run), controls)}


def test_watch_is_calm_about_a_good_run(tmp_path: Path) -> None:
    found = titles(make_run(tmp_path / "run"))
    assert set(found) == {
        "Chosen log-prob fell",
        "Greedy accuracy is no clean measure",
        "Rows dropped in prompts",
        "Rows dropped in pairs",
    }
    assert not any(found.values())


@pytest.mark.parametrize(
    ("figure", "ends", "title"),
    [
        ("malformed", ((0.002, 0.003), (0.27, 0.04)), "Malformed answers rose"),
        ("response_tokens", ((10.0, 0.1), (13.0, 0.1)), "Response length changed"),
        ("truncated", ((0.0, 0.0), (0.08, 0.02)), "More than 5 % of the responses were cut off"),
    ],
)
def test_watch_sees_over_optimisation(tmp_path: Path, figure: str, ends: Any, title: str) -> None:
    found = titles(make_run(tmp_path / "run", figures={**DEMO, figure: ends}))
    assert found[title]
    assert found["Chosen log-prob fell"]


def test_watch_sees_rows_that_vanish_and_stages_that_stopped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["tokens"]["rows_out"] -= 1
    manifest["stages"]["train"]["state"] = "failed"
    _dump(folder / "manifest.json", manifest)
    found = titles(folder)
    assert found["Rows of tokens do not add up"]
    assert found["Stage train is not done"]


def test_watch_sees_a_control_that_is_none(tmp_path: Path) -> None:
    assert "other is not a control" in titles(make_run(tmp_path / "run"), other=make_run(tmp_path / "c"))
    cap = {**DEMO, "infonce": ((3.2, 0.05), (3.3, 0.05)), "leave_one_out": ((5.0, 0.1), (6.0, 0.1))}
    assert "InfoNCE is close to its cap" in titles(make_run(tmp_path / "near", figures=cap))


def cells_of(lines: list[str], start: str) -> list[str]:
    line = next(line for line in lines if line.startswith(start))
    return re.split(r" {2,}", re.sub(r" +\[", " [", line))


def test_the_table(tmp_path: Path) -> None:
    folder, control = make_run(tmp_path / "run"), make_run(tmp_path / "c", figures=SHUFFLED, control="shuffled")
    lines = room.table(folder, beside={"shuffled": control}).splitlines()
    assert lines[0].split() == ["measure", "before", "after", "change", "shuffled", "(after)"]
    assert [line.partition("  ")[0] for line in lines[1:11]] == [
        measure.label for measure in findings.MEASURES.values()
    ]
    cells = cells_of(lines, "accuracy, sampled")
    assert cells[1:] == [
        "33.0 % [29.0, 37.0]",
        "54.0 % [49.7, 58.3]",
        "+21.0 pts [+12.7, +29.3]",
        "34.5 % [30.5, 38.5]",
    ]
    # A change's interval leaves out zero exactly where the two intervals are apart.
    assert len({len(line) for line in lines[:11]}) == 1
    assert room.table(folder).isascii()


def test_a_figure_that_is_not_ours_is_shown_and_one_side_claims_no_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", figures={**DEMO, "self_bleu": ((0.5, 0.01), (0.6, 0.01))})
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["before"]["accuracy"]
    _dump(folder / "evaluation.json", evaluation)
    lines = room.table(folder).splitlines()
    assert any(line.startswith("self_bleu") for line in lines)
    assert cells_of(lines, "accuracy, sampled")[1:] == ["-", "54.0 % [49.7, 58.3]", "-"]


@pytest.mark.parametrize(
    "content",
    [
        '{"before": ',
        "[]",
        '{"before": {}, "after": {}, "negatives": 31, "rows": 512}',
        '{"before": {"infonce": 1, "leave_one_out": 2}, "after": {}, "negatives": 31, "rows": 512}',
        '{"before": {"infonce": {"value": NaN, "low": 0, "high": 1}, "leave_one_out": 0}, "negatives": 1, "rows": 1}',
        '{"before": {}, "after": {}, "negatives": "many", "rows": 512}',
    ],
)
def test_a_broken_evaluation_is_named(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "evaluation.json").write_text(content)
    for call in (room.write, room.table):
        with pytest.raises(ValueError, match=r"evaluation\.json: .*delete .*run.* again"):
            call(folder)


@pytest.mark.parametrize("name", ["evaluation.json", "manifest.json"])
def test_a_run_that_never_finished_is_named(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        room.write(folder)


def test_broken_pairs_and_logs_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    _dump(folder / "training.json", {"loss": 1})
    with pytest.raises(ValueError, match=r"training\.json: expected a list of objects"):
        room.write(folder)
    _dump(folder / "training.json", [])
    (folder / "pairs.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"pairs\.parquet: expected the pairs of a run"):
        room.write(folder)


def test_the_sample_is_evenly_spaced(tmp_path: Path) -> None:
    raw = room.write(make_run(tmp_path / "run"), sample=10).read_text(encoding="utf-8")
    records = json.loads(raw.partition('id="records">')[2].partition("</script>")[0])
    assert [int(record["about"].split()[1]) for record in records] == [index * 1009 // 10 for index in range(10)]
    few = page(make_run(tmp_path / "few", rows=3)).text
    assert "3 of 3 pairs, evenly spaced" in few


def test_importing_the_report_imports_no_plotting(tmp_path: Path) -> None:
    code = "import sys, mipo.report.page; print(sorted({'torch', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
