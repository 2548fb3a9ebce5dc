"""The page and the table: one safe file that says what is missing, and names no folder of the machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folder import DEMO, SHUFFLED, STILL, make_run, write_json

from mipo.report import findings
from mipo.report import page as report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

HOSTILE = '</script><script>alert("p0wned")</script><img src=x onerror=alert(1)> & <!--'
OPTIONAL = {
    "recipe.yaml": "the recipe cannot be shown",
    "training.json": "there are no training curves",
    "pairs.parquet": "no pairs can be shown",
}


class Page(HTMLParser):
    """What a browser would see of a page: tags with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")


def html(folder: Path, **options: Any) -> str:
    return report.write(folder, **options).read_text(encoding="utf-8")


def page(folder: Path, **options: Any) -> Page:
    return Page(html(folder, **options))


def verdicts(text: str) -> dict[str, str]:
    """The word in each row's cell of changes, by measure."""
    rows = re.findall(r'role="rowheader">([^<]+)</th>.*?class="direction[^"]*">([^<]+)<', text, flags=re.S)
    return {label.replace("\N{MINUS SIGN}", "-"): word.strip("↑↓ ") for label, word in rows}


def records(text: str) -> list[dict[str, Any]]:
    return json.loads(text.partition('id="records">')[2].partition("</script>")[0])  # type: ignore[no-any-return]


# One file, safe to open, the same each time


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    path = report.write(make_run(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"""(?:https?:)?//[\w.]+\.[a-z]+[^"'<\s]*""", text)) == {"https://arxiv.org/abs/2603.19294"}
    for tag, attributes in Page(text).tags:
        assert "src" not in attributes, tag
        if (target := attributes.get("href")) and tag != "a":
            assert target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in text
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]


def test_ids_are_unique_and_drawings_have_names(tmp_path: Path) -> None:
    tags = page(make_run(tmp_path / "run"), beside={"$x$ <b>": make_run(tmp_path / "c", control="shuffled")}).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 6
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(str(drawing["aria-labelledby"]).split()) <= set(ids)
    links = [str(attributes["href"]) for tag, attributes in tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert not any(tag == "b" for tag, _ in tags)


@pytest.mark.parametrize("chat", [False, True])
def test_hostile_text_is_text(tmp_path: Path, chat: bool) -> None:
    ours = page(make_run(tmp_path / "run", chat=chat), sample=20)
    hostile = page(make_run(tmp_path / "run", chat=chat, hostile=HOSTILE, model=HOSTILE), sample=20)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in ours.tags]
    assert HOSTILE in hostile.text
    pairs = records((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert len(pairs) == 20
    assert all(HOSTILE in pair["prompt"][0][1] for pair in pairs)


def test_same_files_same_bytes(tmp_path: Path) -> None:
    folder, control = make_run(tmp_path / "run"), make_run(tmp_path / "control", figures=SHUFFLED, control="shuffled")
    first = report.write(folder, beside={"shuffled": control}).read_bytes()
    assert report.write(folder, beside={"shuffled": control}).read_bytes() == first
    # In a process of its own, where hashes of strings, the user's matplotlib settings and the folder are others.
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    code = "from pathlib import Path\nfrom mipo.report import page\n"
    code += "page.write(Path('run'), beside={'shuffled': Path('control')})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (folder / "report.html").read_bytes() == first


# What is missing or broken


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
    write_json(tmp_path / "run" / "manifest.json", {})
    text = page(tmp_path / "run").text
    assert "run: unnamed model" in text
    assert "No rule judged answers" in text
    assert "not recorded" in text


def test_broken_pairs_and_logs_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_json(folder / "training.json", {"loss": 1})
    with pytest.raises(ValueError, match=r"training\.json: expected a list of objects.*, got \{"):
        report.write(folder)
    write_json(folder / "training.json", [])
    (folder / "pairs.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"pairs\.parquet: expected the pairs of a run, got"):
        report.write(folder)


# Nobody's folders


def test_no_folder_of_a_machine_is_published(tmp_path: Path) -> None:
    home = tmp_path / "somebody"
    folder = make_run(home / "runs" / "demo", model=f"{home}/models/tiny")
    control = make_run(home / "runs" / "demo" / "control", figures=SHUFFLED, control="shuffled")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["command"] = f"mipo run '{home}/my recipes/demo.yaml' --output {folder} --beside shuffled={control}"
    manifest["stages"]["responses"]["taken_over_from"] = f"{home}/runs/first"
    write_json(folder / "manifest.json", manifest)
    settings = {
        "model": f"{home}/models/tiny",
        "prompts": {"source": f"{folder}/inputs/x y.jsonl", "test": "~/t.jsonl"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    text = html(folder, beside={"shuffled": control})
    published = [text, report.table(folder, beside={"shuffled": control}), (folder / "evaluation.json").read_text()]
    for part in published:
        assert "somebody" not in part
        assert str(tmp_path) not in part
    shown = Page(text).text
    assert "mipo run demo.yaml --output demo --beside shuffled=control" in shown
    assert "source: inputs/x y.jsonl" in shown
    assert "taken over from first" in shown


def test_the_title_is_the_run_s_and_the_model_s_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "gsm8k", model="/home/somebody/models/tiny")
    assert "<title>gsm8k: tiny</title>" in html(folder)
    assert "<h1>gsm8k: tiny</h1>" in html(folder)
    control = make_run(tmp_path / "gsm8k-sft", control="sft", model="/home/somebody/models/tiny")
    assert "<title>gsm8k-sft: tiny, control run (sft)</title>" in html(control)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"] = {"name": "org/tiny", "revision": "0" * 40}
    write_json(folder / "manifest.json", manifest)
    assert "<title>gsm8k: org/tiny</title>" in html(folder)


# The figures


def test_the_page_s_verdicts_are_those_of_the_paired_changes(tmp_path: Path) -> None:
    changes = {"infonce": (0.1, 0.05), "leave_one_out": (-0.1, 0.05), "accuracy": (0.01, 0.02), "margin": (-0.4, 0.5)}
    text = html(make_run(tmp_path / "run", figures=STILL, paired=changes))
    words = {label.partition(",")[0]: word for label, word in verdicts(text).items() if "greedy" not in label}
    assert words["InfoNCE"] == "up"
    assert words["leave-one-out"] == "down"
    assert words["accuracy"] == words["margin"] == "not distinguishable"
    assert len(verdicts(text)) == len(STILL)


@pytest.mark.parametrize("paired", [True, False])
def test_the_note_says_which_rule_was_used(tmp_path: Path, paired: bool) -> None:
    folder = make_run(tmp_path / "run", paired=None if paired else {"infonce": (0.44, 0.05)})
    control = make_run(tmp_path / "c", control="shuffled")
    for text in (page(folder).text, " ".join(report.table(folder).split())):
        assert report.RULE in text
        assert (report.RULE_FAR_ENDS in text) != paired
        assert report.RULE_BESIDE not in text
    assert report.RULE_BESIDE in " ".join(report.table(folder, beside={"shuffled": control}).split())
    starred = [line.partition("  ")[0] for line in report.table(folder).splitlines() if "]*" in line]
    assert len(starred) == (0 if paired else len(DEMO) - 1)
    assert not any(label.startswith("InfoNCE") for label in starred)


def cells_of(lines: list[str], start: str) -> list[str]:
    line = next(line for line in lines if line.startswith(start))
    return re.split(r" {2,}", re.sub(r" +\[", " [", line))


def test_the_table(tmp_path: Path) -> None:
    folder, control = make_run(tmp_path / "run"), make_run(tmp_path / "c", figures=SHUFFLED, control="shuffled")
    lines = report.table(folder, beside={"shuffled": control}).splitlines()
    assert lines[0].split() == ["measure", "before", "after", "change", "shuffled", "(after)"]
    labels = [measure.label for measure in findings.MEASURES.values()]
    assert [line.partition("  ")[0] for line in lines[1:11]] == labels
    assert cells_of(lines, "accuracy, sampled")[1:] == [
        "33.0 % [29.0, 37.0]", "54.0 % [49.7, 58.3]", "+21.0 pts [+16.7, +25.3]", "34.5 % [30.5, 38.5]",
    ]  # fmt: skip
    assert len({len(line) for line in lines[:11]}) == 1
    assert all(len(line) <= 100 for line in lines[11:])
    assert report.table(folder).isascii()
    assert report.table(control).startswith("This is a control run (shuffled)")


def test_without_a_paired_change_the_table_goes_from_far_end_to_far_end(tmp_path: Path) -> None:
    lines = report.table(make_run(tmp_path / "run", paired={"margin": (0.55, 0.05)})).splitlines()
    assert cells_of(lines, "accuracy, sampled")[3] == "+21.0 pts [+12.7, +29.3]*"
    assert cells_of(lines, "margin")[3] == "+0.55 [+0.50, +0.60]"


def test_a_figure_that_is_not_ours_is_shown_and_one_side_claims_no_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", figures={**DEMO, "self_bleu": ((0.5, 0.01), (0.6, 0.01))})
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["before"]["accuracy"]
    write_json(folder / "evaluation.json", evaluation)
    lines = report.table(folder).splitlines()
    assert any(line.startswith("self_bleu") for line in lines)
    assert cells_of(lines, "accuracy, sampled")[1:] == ["-", "54.0 % [49.7, 58.3]", "-"]


def test_every_figure_says_how_its_interval_was_computed(tmp_path: Path) -> None:
    text = page(make_run(tmp_path / "run", paired={})).text.partition("How the intervals were computed.")[2]
    nouns = "InfoNCE, leave-one-out, log-prob of chosen, log-prob of rejected, margin, response length, "
    nouns += "truncated responses, accuracy, malformed answers"
    assert f"{nouns}: 95 %, percentile bootstrap" in text
    assert f"change of {nouns}: {findings.FAR_ENDS}" in text


# The pairs


def test_the_sample_is_evenly_spaced(tmp_path: Path) -> None:
    pairs = records(html(make_run(tmp_path / "run"), sample=10))
    assert [int(pair["about"].split()[1]) for pair in pairs] == [index * 1009 // 10 for index in range(10)]
    few = page(make_run(tmp_path / "few", rows=3)).text
    assert "3 of 3 pairs, evenly spaced" in few


# What a report loads

HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate"}


def loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(shown.splitlines()[-1].split())


def test_importing_the_report_loads_nothing_heavy() -> None:
    ours = loaded("import mipo.evaluation.figures, mipo.evaluation, mipo.report.page")
    assert not ours & {*HEAVY, "numpy", "polars", "pyarrow", "matplotlib", "jinja2", "yaml"}


def test_a_report_loads_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rows=9)
    ours = loaded(f"from mipo.cli import main\nassert main(['report', {str(folder)!r}]) == 0")
    assert "matplotlib" in ours
    assert not ours & HEAVY
