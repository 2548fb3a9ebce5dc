"""The result file: which machine, which versions, which commit, and the parts that the benchmarks wrote.

    python benchmarks/record.py --machine machine.json
    python benchmarks/record.py --into FOLDER machine.json part.json ...

Knows the machine and files. Does not know what the parts mean, except how `table.py` prints them.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import table

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "triton", "trl", "transformers", "liger_kernel", "cut-cross-entropy", "nvidia-cutlass-dsl")
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
WORTHLESS = "SELF-CHECK ON A CPU: the code ran and the heads agree. The times and ratios below mean nothing."


def machine() -> dict[str, Any]:
    """What a reader needs to know to repeat the measurement."""
    # Imported here, because the rest of this file does not need it.
    import torch

    on_gpu = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        facts |= {"memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "driver": _ask_gpu("driver_version")}
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


def clocks() -> dict[str, str]:
    """Clocks, temperature and power as they are now; empty without nvidia-smi."""
    answer = _ask_gpu(",".join(CLOCKS))
    return {} if answer is None else dict(zip(CLOCKS, answer.split(", "), strict=False))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", type=Path, help="print the machine and write it to this JSON file")
    parser.add_argument("--into", type=Path, help="folder for <date>-<device>.json and .md")
    parser.add_argument("parts", type=Path, nargs="*", help="JSON files to combine; missing ones are named")
    arguments = parser.parse_args()
    if arguments.machine is not None:
        facts = machine()
        print("\n".join(f"{k}: {v}" for k, v in facts.items()))
        arguments.machine.write_text(json.dumps({"machine": facts}) + "\n")
    if arguments.into is not None:
        _write(arguments.parts, arguments.into)
    return 0


def _write(parts: list[Path], folder: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    record: dict[str, Any] = {"made": now.isoformat(timespec="seconds")}
    record["missing"] = [p.stem for p in parts if not p.exists()]
    for part in parts:
        record |= json.loads(part.read_text()) if part.exists() else {}
    record["self_check"] = record["machine"]["device"] == "cpu"
    device = re.sub(r"[^a-z0-9]+", "-", record["machine"]["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-{device}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    text = _render(record)
    path.with_suffix(".md").write_text(text)
    print(text)
    print(f"wrote {path} and {path.with_suffix('.md').name}")
    if out := os.environ.get("OUT"):
        for file in (path, path.with_suffix(".md")):
            shutil.copy(file, out)
        print(f"copied both to {out}")


def _render(record: dict[str, Any]) -> str:
    lines = [f"# {record['machine']['device']}, {record['made']}", ""]
    lines += [f"**{WORTHLESS}**", ""] * record["self_check"]
    lines += [", ".join(f"{k} {v}" for k, v in record["machine"].items() if v is not None), ""]
    lines += [f"Kernel tests: {record.get('kernel_tests', 'not run')}", ""]
    lines += [table.render_point(point) for point in record.get("fused_head", [])]
    lines += [table.render_steps(record["train_step"])] * ("train_step" in record)
    lines += [f"- not run: {name}" for name in record["missing"]]
    lines += ["`*`: counted on the peer's PyTorch fallback, not on the kernels that are timed.", ""]
    lines += [table.render_summary(record), ""]
    lines += [f"**{WORTHLESS}**", ""] * record["self_check"]
    return "\n".join(lines)


def _commit() -> str:
    """MIPO_COMMIT, for a copy without .git; else git's commit, with + for uncommitted changes."""
    if named := os.environ.get("MIPO_COMMIT"):
        return named
    head = _output(["git", "-C", str(HERE), "rev-parse", "--short=12", "HEAD"])
    if head is None:
        return "unknown: no git here; set MIPO_COMMIT"
    return head + "+" * bool(_output(["git", "-C", str(HERE), "status", "--porcelain", "--untracked-files=no"]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ask_gpu(fields: str) -> str | None:
    answer = _output(["nvidia-smi", "-i", "0", f"--query-gpu={fields}", "--format=csv,noheader"])
    return answer.splitlines()[0] if answer else None


def _output(command: list[str]) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
