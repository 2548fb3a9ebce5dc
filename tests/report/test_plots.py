"""The plots: what they draw, that they can share a page, and that the same numbers give the same bytes."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from mipo.evaluation.figures import Figure

pytest.importorskip("matplotlib")
from mipo.report import plots

CAP = 3.47


def figure(value: float, half: float = 0.05) -> Figure:
    return Figure(value, value - half, value + half, "", 512)


def intervals(scale: float = 1.0) -> dict[str, tuple[Figure, Figure]]:
    return {"before": (figure(0.16), figure(0.2)), "after": (figure(0.6 * scale), figure(0.8 * scale))}


def parse(plot: plots.Plot) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg)


def words(plot: plots.Plot) -> list[str]:
    return ["".join(node.itertext()).strip() for node in parse(plot).iter("text")]


def test_the_information_is_drawn_and_described() -> None:
    plot = plots.information(intervals(), CAP)
    assert {"before", "after", "nats", "cap of InfoNCE, log(K+1) = 3.47"} <= set(words(plot))
    description = parse(plot).findtext("desc")
    assert description == (
        "before 0.16 [0.11, 0.21] to 0.2 [0.15, 0.25]; after 0.6 [0.55, 0.65] to 0.8 [0.75, 0.85]; "
        "cap of InfoNCE 3.47 nats"
    )


def test_the_axis_is_broken_only_where_the_cap_is_far() -> None:
    far, near = plots.information(intervals(), CAP), plots.information(intervals(3.5), CAP)
    assert len(re.findall(r'id="information-axes_\d', far.svg)) == 2
    assert len(re.findall(r'id="information-axes_\d', near.svg)) == 1


def test_accuracies_are_percent() -> None:
    plot = plots.accuracies({"sampled": {"before": figure(0.33), "after": figure(0.54)}, "greedy": {"x": figure(0.7)}})
    assert {"sampled, before", "sampled, after", "greedy, x", "100", "% of answers that are right"} <= set(words(plot))
    assert "sampled, after 0.54 [0.49, 0.59]" in str(parse(plot).findtext("desc"))


def test_only_what_was_logged_has_a_panel() -> None:
    logs: list[dict[str, Any]] = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6, "logps/chosen": -2.0}, {"step": 3}]
    drawn = plots.curves(logs)
    assert [plot.title for plot in drawn] == ["Loss", "Log-probs of chosen and rejected"]
    assert parse(drawn[0]).findtext("desc") == "loss from 0.7 to 0.6 over 2 logged steps"
    assert plots.curves([{"step": 1, "loss": True}, {"epoch": 1.0}]) == []


def test_names_are_text() -> None:
    name = "$x$ <b> & co"
    plot = plots.information({name: (figure(0.1), figure(0.2))}, CAP)
    assert name in words(plot)
    assert not list(parse(plot).iter("b"))


def test_ids_of_different_plots_never_meet_and_all_references_hold() -> None:
    drawn = [plots.information(intervals(), CAP), plots.accuracies({"sampled": {"before": figure(0.3)}})]
    drawn += plots.curves([{"step": 1, "loss": 0.7, "rewards/margins": 0.1}])
    ids = [value for plot in drawn for value in re.findall(r'\bid="([^"]+)"', plot.svg)]
    assert len(ids) == len(set(ids))
    references = {value for plot in drawn for value in re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg)}
    assert references <= set(ids)


def test_every_colour_can_be_restyled() -> None:
    for plot in [plots.information(intervals(), CAP), *plots.curves([{"step": 1, "logps/chosen": -1, "loss": 1}])]:
        bare = re.sub(r"var\(--plot-\w+, #[0-9a-f]{6}\)", "", plot.svg)
        assert not re.search(r"#[0-9a-f]{6}\b", bare)


def test_the_same_numbers_give_the_same_bytes_whatever_the_user_s_settings() -> None:
    import matplotlib as mpl

    first = plots.information(intervals(), CAP)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.information(intervals(), CAP) == first
