"""What a run's figures support: the verdict of every change, and the sentences at the head of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import DEMO, SHUFFLED, STILL, make_run, write_json

from mipo.evaluation.figures import Figure
from mipo.report import findings
from mipo.report.results import Results, read

UNCLEAR = "not distinguishable"
OPPOSITE = {"up": "down", "down": "up", UNCLEAR: UNCLEAR}
ends = st.tuples(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
figures = ends.map(lambda part: Figure(part[0], part[0] - part[1], part[0] + part[2], "", 512))


def negative(figure: Figure) -> Figure:
    return Figure(-figure.value, -figure.high, -figure.low, figure.interval, figure.rows)


def results(before: Figure, after: Figure, paired: Figure | None) -> Results:
    return Results(Path(), {}, {"margin": before}, {"margin": after}, {"margin": paired} if paired else {}, 31, 512)


# The verdict


@given(figures, figures, figures)
def test_the_verdict_is_whether_the_paired_interval_excludes_zero(
    before: Figure, after: Figure, paired: Figure
) -> None:
    run = results(before, after, paired)
    assert findings.change(run, "margin") is paired
    assert (findings.direction_of(run, "margin") == UNCLEAR) == (paired.low <= 0 <= paired.high)
    if paired.low > 0 or paired.high < 0:
        assert findings.direction_of(run, "margin") == ("up" if paired.value > 0 else "down")


@given(figures, figures, figures)
def test_swapping_before_and_after_flips_the_verdict(before: Figure, after: Figure, paired: Figure) -> None:
    for change, opposite in ((paired, negative(paired)), (None, None)):
        there, back = results(before, after, change), results(after, before, opposite)
        assert findings.change(back, "margin") == negative(findings.change(there, "margin"))
        assert findings.direction_of(back, "margin") == OPPOSITE[findings.direction_of(there, "margin")]


@given(figures, figures)
def test_side_by_side_the_verdict_is_whether_the_intervals_are_apart(here: Figure, there: Figure) -> None:
    overlap = here.low <= there.high and there.low <= here.high
    assert (findings.direction(findings.far_ends(here, there)) == UNCLEAR) == overlap


@given(figures)
def test_the_written_change_shows_its_verdict(change: Figure) -> None:
    for name in ("infonce", "accuracy", "response_tokens"):
        _, interval = findings.cell(name, change, signed=True)
        low, high = map(float, interval.strip("[]").split(", "))
        if findings.direction(change) == UNCLEAR:
            assert low <= 0 <= high
        elif min(abs(change.low), abs(change.high)) > 1e-7:
            assert low > 0 or high < 0


def test_a_change_too_small_for_its_measure_gets_more_decimals() -> None:
    change = Figure(0.039, 0.016, 0.063, "", 512)
    assert findings.cell("response_tokens", change, signed=True) == ("+0.04", "[+0.02, +0.06]")
    assert findings.cell("response_tokens", Figure(-0.006, -0.023, 0.014, "", 9), signed=True)[1] == "[-0.02, +0.01]"
    assert findings.cell("accuracy", Figure(0.0, 0.0, 0.0, "", 9), signed=True) == ("+0.0 pts", "[+0.0, +0.0]")


def test_a_paired_change_tells_more_than_the_far_ends(tmp_path: Path) -> None:
    sides = {**DEMO, "logps_chosen": ((-2.74, 0.10), (-2.96, 0.13))}
    paired = make_run(tmp_path / "paired", figures=sides, paired={"logps_chosen": (-0.22, 0.08)})
    assert findings.direction_of(read(paired), "logps_chosen") == "down"
    alone = make_run(tmp_path / "alone", figures=sides, paired={})
    assert findings.direction_of(read(alone), "logps_chosen") == UNCLEAR
    assert findings.change(read(alone), "logps_chosen").interval == findings.FAR_ENDS


def test_one_side_alone_makes_no_change(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["before"]["accuracy"]
    write_json(folder / "evaluation.json", evaluation)
    assert findings.change(read(folder), "accuracy") is None


# The sentences


def sentences(folder: Path, **controls: Path) -> str:
    return " ".join(findings.state(read(folder), {name: read(path) for name, path in controls.items()}, None))


def test_what_went_up_is_up(tmp_path: Path) -> None:
    text = sentences(make_run(tmp_path / "run"))
    assert text.startswith(
        "The information is up: between 0.160 and 0.200 nats before, between 0.600 and 0.800 nats after. "
        "Between the closest bounds, the change is +0.400 nats [+0.350, +0.450]."
    )
    assert (
        "Accuracy, sampled as in training, is up: 33.0 % [29.0, 37.0] before, 54.0 % [49.7, 58.3] after, "
        "a change of +21.0 pts [+16.7, +25.3]." in text
    )
    assert "Not distinguishable from before: malformed answers, response length, truncated responses." in text


def test_what_went_down_is_down(tmp_path: Path) -> None:
    text = sentences(make_run(tmp_path / "run", figures={name: (new, old) for name, (old, new) in DEMO.items()}))
    assert "The information is down" in text
    assert "Between the closest bounds, the change is -0.400 nats [-0.450, -0.350]." in text
    assert not re.search(r"\b(up|rose|higher)\b", text)


@pytest.mark.parametrize("paired", [None, {}])
def test_what_stayed_is_not_distinguishable(tmp_path: Path, paired: dict[str, tuple[float, float]] | None) -> None:
    text = sentences(make_run(tmp_path / "run", figures=STILL, paired=paired))
    assert "The information is not distinguishable from before" in text
    assert "Accuracy, sampled as in training, is not distinguishable from before" in text
    assert not re.search(r"\b(up|down|higher|rose)\b", text)


def test_two_higher_bounds_do_not_make_the_information_higher(tmp_path: Path) -> None:
    bounds = {"infonce": ((2.0, 0.05), (2.4, 0.05)), "leave_one_out": ((4.0, 0.1), (5.0, 0.1))}
    text = sentences(make_run(tmp_path / "run", figures=bounds))
    assert "The information is not distinguishable from before, although both of its bounds are up" in text


def test_bounds_that_cross_claim_nothing(tmp_path: Path) -> None:
    """If a model hardly depends on its prompts, leave-one-out may lie below InfoNCE; then every pair of ends counts."""
    bounds = {"infonce": ((0.05, 0.01), (0.08, 0.01)), "leave_one_out": ((-0.05, 0.01), (0.03, 0.01))}
    text = sentences(make_run(tmp_path / "run", figures=bounds))
    assert "not distinguishable from before, although both of its bounds are up" in text


def test_the_information_is_between_what_the_kind_says(tmp_path: Path) -> None:
    for about in {*findings.INFORMATION_ABOUT.values()}:
        first = findings.state(read(make_run(tmp_path / "run", rows=9)), {}, about)[0]
        assert re.match(rf"The information {re.escape(about)},? is up: ", first)


def test_a_control_is_compared_side_by_side(tmp_path: Path) -> None:
    shuffled = make_run(tmp_path / "c", figures=SHUFFLED, control="shuffled")
    assert (
        "Compared with the control shuffled after training, InfoNCE is higher (0.600 against 0.160) and "
        "sampled accuracy is higher (54.0 % against 34.5 %)."
        in sentences(make_run(tmp_path / "run"), shuffled=shuffled)
    )
    same = sentences(make_run(tmp_path / "still", figures=STILL), shuffled=shuffled)
    assert "InfoNCE is not distinguishable (0.160 against 0.160)" in same


@pytest.mark.parametrize("control", ["shuffled", "sft"])
def test_a_control_is_called_a_control(tmp_path: Path, control: str) -> None:
    assert sentences(make_run(tmp_path / "run", control=control)).startswith(f"This is a control run ({control})")
    assert "control run" not in sentences(make_run(tmp_path / "method"))
