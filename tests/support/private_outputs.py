"""A program for test_outputs.py, within `unshare -m`: commands whose output is a device, read-only or on a full disk.

    unshare -m python private_outputs.py FOLDER COMMANDS        (the commands as JSON: name → words)

Prints JSON: for each command and output its exit code and what it wrote to standard error, and whether everything that
was there before is as it was.
"""

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import traceback
from pathlib import Path

from mipo import cli


def prepare(folder: Path) -> list[Path]:
    """Makes the places; returns an output in each."""
    os.mknod(folder / "node.parquet", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (folder / "link.parquet").symlink_to(folder / "node.parquet")
    for name, options in (("full", "size=64k"), ("nearly", "size=64k"), ("fixed", "size=1m")):
        (folder / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder / name], check=True)
        (folder / name / "inner").mkdir()
        (folder / name / "mine.txt").write_text("mine")
    fill(folder / "full" / "inner" / "mine.bin", 0)
    fill(folder / "nearly" / "inner" / "mine.bin", 8_192)
    subprocess.run(["mount", "-o", "remount,ro", folder / "fixed"], check=True)
    places = [folder / "fixed", folder / "fixed" / "inner"]
    new = [folder / name / "new.parquet" for name in ("fixed", "full", "nearly")]
    return [folder / "node.parquet", folder / "link.parquet", *places, *new]


def fill(path: Path, left: int) -> None:
    """A file that leaves so many bytes of its file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4_096))
    os.truncate(path, path.stat().st_size - left)


def state(folder: Path) -> dict[str, object]:
    """What is somebody's: its contents, and kinds of devices and links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.name.startswith("mine"):
            found[str(path)] = path.read_bytes().hex()
        elif not stat.S_ISDIR(status.st_mode) and "new.parquet" not in str(path):
            found[str(path)] = (stat.S_IFMT(status.st_mode), status.st_rdev, status.st_ino)
    return found


def main() -> None:
    """Runs every command with every output."""
    folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    outputs = prepare(folder)
    before, results = state(folder), []
    for name, words in commands.items():
        for output in outputs:
            error = io.StringIO()
            with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
                try:
                    code = cli.main([*words, "--output", str(output)])
                except Exception:
                    code = traceback.format_exc()
            place = str(output.relative_to(folder))
            results.append([name, place, code, error.getvalue(), state(folder) == before])
            if "new.parquet" in place and output.parent.name != "fixed":
                subprocess.run(["rm", "-rf", *output.parent.glob("*new.parquet*")], check=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
