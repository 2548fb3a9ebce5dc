"""The benchmarks check themselves on a CPU: what they compute, what they name, what they write. Never how fast."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PEERS = {"trl": "trl", "liger": "liger_kernel", "cce": "cut_cross_entropy"}
# Tokens of the tiny points are all in the sample that was calibrated; what is left is rounding to bf16.
MEAN_LOGP_ATOL = 1e-3


def environment(*paths: Path, **more: str) -> dict[str, str]:
    paths_of = os.pathsep.join(map(str, [*paths, ROOT / "python"]))
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": paths_of, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """All of gpu.sh on a CPU, and the result file that it writes to $OUT."""
    out = tmp_path_factory.mktemp("out")
    command = [BENCHMARKS / "gpu.sh", "--self-check"]
    done = subprocess.run(command, env=environment(OUT=str(out)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (record,) = out.glob("*-cpu.json")
    assert record.with_suffix(".md").exists()
    return done, json.loads(record.read_text())


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark's module by name, and forgets it afterwards, since its name is short."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = [path.stem for path in BENCHMARKS.glob("*.py")]

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for point in record["fused_head"] for row in point["rows"]]


def test_a_self_check_says_that_its_times_mean_nothing(run):
    done, record = run
    assert record["self_check"]
    assert done.stdout.count("mean nothing") >= 2
    assert {t["verdict"] for point in record["fused_head"] for t in point["targets"]} == {"not measured"}


def test_a_self_check_leaves_the_checkout_alone(run):
    assert not list((BENCHMARKS / "results").glob("*-cpu.*"))


def test_the_heads_that_are_there_agree(run):
    _, record = run
    assert {row["failure"] for row in rows_of(record)} == {None}
    assert not any(point["broken"] for point in record["fused_head"])
    compared = [row for row in rows_of(record) if row["name"] != "floor"]
    assert all({"loss_error", "hidden_error"} <= set(row) for row in compared)
    assert all("weight_error" in row for row in compared if row["setting"] == "trained")


def test_every_peer_is_there_or_named(run):
    for point in run[1]["fused_head"]:
        there = {row["name"] for row in point["rows"]}
        for peer, package in PEERS.items():
            assert (peer in there) != (peer in point["left_out"])
            assert find_spec(package) or package in point["left_out"][peer]


def test_flops_are_as_claimed(run):
    expected = {name: (3, 2) for name in ("ours", "ours+statistics", "ours+fp32", "floor", "M1", "M3")}
    expected |= {"trl": (4, 3), "trl+statistics": (4, 3)}
    for row in rows_of(run[1]):
        if row["name"] in expected:
            assert row["flops"] == expected[row["name"]][row["setting"] == "frozen"], row["name"]


def test_inputs_are_as_peaked_as_claimed(run):
    for point in run[1]["fused_head"]:
        facts = point["facts"]
        assert facts["mean_logp"] == pytest.approx(-1, abs=MEAN_LOGP_ATOL)
        # Neither all words nor one: most tokens easy, some hard, few of the words likely.
        assert facts["logp_of_the_hardest_tenth"] < -2 < -0.5 < facts["median_logp"]
        assert 1e-3 < facts["share_of_probabilities_above_filter"] < 0.05


def test_the_record_has_what_the_tables_need(run):
    record = run[1]
    assert record["missing"] == []
    assert record["kernel_tests"] == "not run on a CPU"
    assert {"device", "torch", "triton", "python", "commit"} <= set(record["machine"])
    needed = {"name", "label", "setting", "flops", "forward_ms", "backward_ms", "total_ms", "rounds", "extra_bytes"}
    assert all(needed <= set(row) for row in rows_of(record))
    steps = record["train_step"]["rows"]
    assert all(needed - {"flops"} <= set(row) and row["failure"] is None for row in steps)
    assert {(r["name"], r["setting"]) for r in steps} >= {
        (n, s) for n in ("ours", "naive") for s in ("trained", "frozen")
    }


# A peer with wrong results, and one that kills its process.
WRONG = """
import torch
class LigerFusedLinearScaledCrossEntropyFunction:
    @staticmethod
    def apply(hidden, weight, targets):
        return 1.5 * torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none").float()
"""
DEADLY = """
import os
class ChunkedLogProbFunction:
    @staticmethod
    def apply(*arguments):
        os._exit(9)
"""


def test_a_wrong_peer_is_not_timed_and_a_deadly_one_is_named(tmp_path: Path) -> None:
    for name, text in {"liger_kernel/ops": WRONG, "trl/kernels": DEADLY, "trl/trainer/utils": ""}.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    (tmp_path / "trl/__init__.py").touch()
    out = tmp_path / "out.json"
    command = [sys.executable, BENCHMARKS / "fused_head.py", "--tiny", "--rounds", "1", "--out", out]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for point in json.loads(out.read_text())["fused_head"]:
        assert "exit status 9" in point["left_out"]["trl"]
        wrong = [row for row in point["rows"] if row["name"] == "liger"]
        assert len(wrong) == 2
        assert all(row["failure"].startswith("wrong, not timed: ") and "total_ms" not in row for row in wrong)
        assert all(row["failure"] is None for row in point["rows"] if row["name"] != "liger")


def test_a_target_is_met_from_its_limit_on(rooms):
    table = rooms("table")

    def verdicts(trl: float, floor: float, spare: int) -> list[str]:
        seen = {"ours": (100.0, 10 << 20), "trl": (trl, (10 << 20) + spare), "floor": (floor, 0)}
        # With statistics both are twice as slow, and only ours is far from the floor.
        seen |= {f"{name}+statistics": (2 * seen[name][0], seen[name][1]) for name in ("ours", "trl")}
        rows = [
            {"name": name, "setting": setting, "failure": None, "total_ms": ms, "extra_bytes": size}
            for setting in ("trained", "frozen")
            for name, (ms, size) in seen.items()
        ]
        return [t["verdict"].split(" (")[0] for t in table.judge(rows, measured=True)]

    statistics = ["met", "met", "NOT met"]
    assert verdicts(150.0, 85.0, 0) == (["met"] * 3 + statistics) * 2
    assert verdicts(134.0, 84.0, -1) == ["NOT met"] * 12
    assert verdicts(140.0, 90.0, 1) == ["met"] * 3 + statistics + ["NOT met", "met", "met", "NOT met", "met", "NOT met"]
    assert {t["verdict"] for t in table.judge([], measured=True)} == {"not measured"}


def test_trl_must_be_timed(rooms):
    fused_head = rooms("fused_head")
    rows = [
        {"name": name, "setting": setting, "total_ms": 1.0}
        for name in ("trl", "trl+statistics", "ours")
        for setting in ("trained", "frozen")
    ]
    whole = {"point": "large", "rows": rows, "left_out": {}}
    assert fused_head._untimed([whole]) == []
    failed = [row for row in rows if row != rows[2]] + [{"name": "trl+statistics", "setting": "trained"}]
    assert fused_head._untimed([whole | {"rows": failed}]) == ["trl+statistics at large, head trained: see its row"]
    absent = {"point": "short", "rows": rows[4:], "left_out": {"trl": "ModuleNotFoundError: trl"}}
    untimed = fused_head._untimed([whole, absent])
    assert len(untimed) == 4
    assert all("at short" in line and "ModuleNotFoundError" in line for line in untimed)


def test_a_batch_is_a_function_of_its_seed(rooms):
    inputs = rooms("inputs")
    one, two, other = (inputs.make(inputs.TINY_POINTS[0], "cpu", seed=seed) for seed in (0, 0, 1))
    assert one.hidden.equal(two.hidden)
    assert one.ref_logps.equal(two.ref_logps)
    assert not one.hidden.equal(other.hidden)
    assert one.lengths.sum() == len(one.targets) == len(other.targets)
    assert one.sequence_ids.bincount().tolist() == one.lengths.flatten().tolist()


def test_without_a_gpu_nothing_is_timed_by_accident(
    rooms: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["fused_head.py", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="2"):
        rooms("fused_head").main()
    assert "--tiny" in capsys.readouterr().err
