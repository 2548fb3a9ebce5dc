"""`mipo doctor`: what is installed, and which code paths this machine takes. Changes nothing."""

import importlib.metadata
import importlib.util
import os
import platform

PARTS = {
    "core": ("cyclopts", "msgspec", "numpy", "polars", "pyarrow", "pyyaml", "tqdm"),
    "train": ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "jinja2", "matplotlib"),
    "eval": ("lm-eval",),
    "server": ("aiohttp",),
    "ray": ("ray",),
}


def command() -> None:
    """Prints versions, processors, and what they mean for each stage."""
    lines = [f"mipo {importlib.metadata.version('mipo')}, Python {platform.python_version()}, {platform.platform()}"]
    for part, libraries in PARTS.items():
        versions = {library: _version(library) for library in libraries}
        missing = [library for library, version in versions.items() if version is None]
        installed = ", ".join(f"{library} {version}" for library, version in versions.items() if version)
        lines.append(f"{part:6} {installed}" + (f"  missing: {', '.join(missing)}" if missing else ""))
        if missing and part != "core":
            lines.append(f"       pip install 'mipo[{part}]'")
    lines.append(f"threads {os.cpu_count()} for contrast and tokens (RAYON_NUM_THREADS sets another number)")
    print("\n".join([*lines, *_device()]))


def _device() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["training: not possible without torch"]
    import torch

    if not torch.accelerator.is_available():
        return ["device  CPU: float32, no gradient checkpointing; kernels run as plain PyTorch"]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
    triton = "Triton kernels" if _version("triton") else "kernels run as plain PyTorch, triton is missing"
    return [f"device  {torch.accelerator.device_count()} x {name}: bfloat16, gradient checkpointing; {triton}"]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
