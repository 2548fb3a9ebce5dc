"""Launch: a run starts the processes of its training, ends with what one process gives, and goes on after a kill."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_recipe import write_recipe

from mipo.errors import InputError
from mipo.run.launcher import check_launch, command, configuration_file, is_partitioned
from mipo.run.recipe import Launch, load
from mipo.trainer.metrics import CAP, INFONCE

# Sums of a batch in two parts, in float32, carried on through three steps of Adam.
LOSS_ATOL = 1e-4
# Sums of a batch in two parts, in bfloat16.
BF16_ATOL = 5e-3
# DeepSpeed's weights are bfloat16 themselves.
WEIGHTS_ATOL = 1e-2
FIRST_ATOL = 1e-4
FIGURE_ATOL = 0.02
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def mipo_run(recipe: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "mipo", "run", recipe, "--output", output, *options]
    return subprocess.run(call, capture_output=True, text=True, check=False, env=ONE_THREAD)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and one of two that ended before its training: three steps of 16 groups.

    The last batch of an epoch, which has fewer, accelerate fills up for two processes and not for one.
    """
    folder = tmp_path_factory.mktemp("launch")
    one = write_recipe(folder, trainer={"per_device_train_batch_size": 16, "max_steps": 3}).rename(folder / "one.yaml")
    done = mipo_run(one, folder / "one")
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(one.read_text())
    settings["trainer"]["per_device_train_batch_size"] = 8
    (folder / "two.yaml").write_text(yaml.safe_dump({**settings, "launch": {"processes": 2}}))
    done = mipo_run(folder / "two.yaml", folder / "two", "--until", "baseline", "--reuse", str(folder / "one"))
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(one: Path, other: Path, loss_atol: float = LOSS_ATOL) -> None:
    logs = [json.loads((path / "training.json").read_text()) for path in (one, other)]
    rows, others = ([row for row in log if "loss" in row] for log in logs)
    assert len(rows) == len(others) == 3
    for row in (rows[0], others[0]):  # the reference is the policy, to the bit or nearly
        assert row["loss"] == pytest.approx(math.log(2), abs=FIRST_ATOL)
    for row, its in zip(rows, others, strict=True):
        assert set(row) - {INFONCE, CAP} == set(its) - {INFONCE, CAP}  # which TRL's own head does not log
        for name in ("loss", "rewards/margins", "logps/chosen", "entropy"):
            assert its[name] == pytest.approx(row[name], rel=1e-5, abs=loss_atol), name
    sides = [json.loads((path / "evaluation.json").read_text())["after"] for path in (one, other)]
    for name in ("infonce", "logps_chosen", "margin", "accuracy_greedy"):
        assert sides[1][name]["value"] == pytest.approx(sides[0][name]["value"], abs=FIGURE_ATOL), name


def test_two_processes_end_with_the_table_of_one(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "two", tmp_path / "two")
    done = mipo_run(prepared / "two.yaml", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "InfoNCE" in done.stdout
    assert_same(prepared / "one", tmp_path / "two")


def bf16_run(prepared: Path, name: str, launch: dict[str, Any] | None = None) -> Path:
    """The folder of a run in bfloat16, in one process or as `launch` says; its answers are those of `one`."""
    settings = yaml.safe_load((prepared / ("two.yaml" if launch else "one.yaml")).read_text())
    settings["trainer"]["bf16"] = True
    settings |= {"launch": launch} if launch else {}
    path, output = prepared / f"bf16-{name}.yaml", prepared / f"bf16-{name}"
    path.write_text(yaml.safe_dump(settings))
    done = mipo_run(path, output, "--reuse", str(prepared / "one"))
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def bf16(prepared: Path) -> Path:
    return bf16_run(prepared, "one")


def configuration(folder: Path, name: str, **changes: Any) -> str:
    """A configuration of TRL's, for two processes on a CPU; the name of its file."""
    settings = yaml.safe_load(configuration_file(name).read_text()) | {"use_cpu": True, "num_processes": 2}
    for section, values in changes.items():
        settings[section] |= values
    (folder / f"cpu_{name}.yaml").write_text(yaml.safe_dump(settings))
    return f"cpu_{name}.yaml"


def test_two_processes_of_fsdp2_in_bfloat16_end_with_the_table_of_one(prepared: Path, bf16: Path) -> None:
    # Weights are loaded by all: accelerate would broadcast them with NCCL.
    fsdp2 = configuration(prepared, "fsdp2", fsdp_config={"fsdp_cpu_ram_efficient_loading": False})
    output = bf16_run(prepared, "fsdp2", {"processes": 2, "config": fsdp2})
    assert_same(bf16, output, loss_atol=BF16_ATOL)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_two_processes_of_deepspeed_end_with_the_table_of_one(
    prepared: Path, bf16: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed and ninja, which are no part of the lock")
    monkeypatch.setitem(ONE_THREAD, "DS_ACCELERATOR", "cpu")
    launch = {"processes": 2, "config": configuration(prepared, name)}
    assert_same(bf16, bf16_run(prepared, name, launch), loss_atol=WEIGHTS_ATOL)


def test_a_run_that_is_killed_in_training_takes_its_processes_along_and_goes_on(prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    shutil.copytree(prepared / "two", output)
    call = [sys.executable, "-m", "mipo", "run", prepared / "two.yaml", "--output", output]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD)
    end = time.monotonic() + 120
    children: list[psutil.Process] = []
    while len(children) < 3 and time.monotonic() < end:  # the launcher and two that train
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    while not (output / "checkpoints" / "checkpoint-2" / "mipo.json").exists() and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.005)
    # They look for their parent once a second, in which a training as short as this one could end: they wait it out.
    for child in children:
        child.suspend()
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    for child in children:
        child.resume()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not (output / "evaluation.json").exists()
    done = mipo_run(prepared / "two.yaml", output)
    assert done.returncode == 0, done.stderr
    assert "resuming from checkpoint-" in done.stdout
    assert_same(prepared / "one", output)


def test_what_the_processes_refuse_is_one_line(prepared: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((prepared / "two.yaml").read_text())
    settings["trainer"] |= {"learning_rate": 1e30, "warmup_steps": 0}
    (prepared / "diverging.yaml").write_text(yaml.safe_dump(settings))
    done = mipo_run(prepared / "diverging.yaml", tmp_path / "out", "--reuse", str(prepared / "two"))
    assert done.returncode == 2
    assert "the training diverged: weights are NaN or infinite" in done.stderr.splitlines()[-1]


def test_configurations_are_files_or_trl_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configuration_file("fsdp2").name == "fsdp2.yaml"
    own = tmp_path / "mine.yaml"
    own.write_text("num_processes: 2")
    assert configuration_file(str(own)) == own
    with pytest.raises(InputError, match=r"launch\.config: expected a file, or one of TRL's, .*fsdp2.*; got 'fsdp9'"):
        check_launch(Launch(config="fsdp9"))
    assert command(Launch(processes=2))[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    started = command(Launch(processes=2, config="zero2"))
    assert started[1:3] == ["-m", "accelerate.commands.launch"]
    assert started[3].endswith("zero2.yaml")
    assert started[4:] == ["--num_processes=2"]
    assert command(Launch(config=str(own)))[3:] == [f"--config_file={own}"]
    with monkeypatch.context() as patch:
        patch.setattr("torch.accelerator.device_count", lambda: 4)
        assert command(Launch(config="fsdp2"))[4:] == ["--num_processes=4"]
        assert command(Launch())[-1] == "--nproc-per-node=4"
        check_launch(Launch(processes=4))
        with pytest.raises(InputError, match=r"launch\.processes: expected at most 4, .* got 5"):
            check_launch(Launch(processes=5))
    with pytest.raises(InputError, match="expected a number on a machine without GPUs"):
        check_launch(Launch())


@pytest.mark.parametrize(
    ("text", "partitioned"),
    [
        ("num_processes: 2", False),
        ("deepspeed_config:", False),
        ("deepspeed_config: {zero_stage: 2}", False),
        ("deepspeed_config: {zero_stage: 3}", True),
        ("a: [", "expected YAML"),
        ("", "expected settings of accelerate, name: value, got None"),
        ("- 2", "expected settings of accelerate"),
    ],
)
def test_zero_3_is_read_from_a_configuration(text: str, partitioned: bool | str, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    if isinstance(partitioned, bool):
        assert is_partitioned(Launch(config=str(own))) == partitioned
    else:
        with pytest.raises(InputError, match=f"launch.config: .*mine.yaml: {partitioned}"):
            is_partitioned(Launch(config=str(own)))


def test_a_configuration_beside_the_recipe_is_found_from_anywhere(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, launch={"config": "mine.yaml"})
    (tmp_path / "mine.yaml").write_text("num_processes: 2")
    launch = load(path).launch
    assert launch is not None
    assert launch.config == str(tmp_path / "mine.yaml")
