"""Fixtures for tests of several folders: the demo's tokenizer and model, and real texts and tokenizers."""

import functools
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import shapes

# Before torch and transformers load. Tensors are small here, and several processes run tests side by side, so
# threads of torch would only compete. And no test needs the hub.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
shapes.check_calls("mipo.loss", "mipo.fused")
# Without a deadline: on a busy machine any example may be slow.
hypothesis.settings.register_profile("mipo", deadline=None)
hypothesis.settings.load_profile("mipo")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def demo_tokenizer() -> Any:
    """The demo's word-level tokenizer, with its chat template."""
    from mipo import demo
    from mipo.models.loading import load_tokenizer

    return load_tokenizer(str(demo.HERE / "model"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The same, which the tests of one module may change."""
    from mipo import demo
    from mipo.models.loading import load_tokenizer

    return load_tokenizer(str(demo.HERE / "model"))


@pytest.fixture(scope="module")
def model() -> Any:
    """The demo's model."""
    from mipo import demo
    from mipo.models.loading import load_model

    return load_model(str(demo.HERE / "model"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: sums in one order, whatever the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What reads memory that nobody has written gives NaN. On a GPU, cuBLAS refuses torch's deterministic mode."""
    import torch

    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, tokenizers and models; tests that need it are skipped if it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and tokenizers are not here ({SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def rows_of(shared: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Reads the rows of a JSON lines file under `shared/data`, packed or not."""

    def read(name: str) -> list[dict[str, Any]]:
        path = shared / "data" / name
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        return [json.loads(line) for line in data.splitlines()]

    return read


@pytest.fixture(scope="session")
def real_tokenizer(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Loads the tokenizer gpt2, qwen2.5 or smollm2, or the model stories260K's, once: copy it to change it."""
    from transformers import AutoTokenizer

    @functools.cache
    def load(name: str) -> Any:
        if (shared / "models" / name).is_dir():
            return AutoTokenizer.from_pretrained(str(shared / "models" / name))
        folder = tmp_path_factory.mktemp(name)
        for file in (shared / "tokenizers" / name).iterdir():
            data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            (folder / file.name.removesuffix(".xz")).write_bytes(data)
        return AutoTokenizer.from_pretrained(str(folder))

    return load
