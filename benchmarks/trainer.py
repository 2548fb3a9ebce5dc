"""Training steps of MIPOTrainer beside TRL's DPOTrainer: same model, groups and batch, in turn, in one process.

    python benchmarks/trainer.py [--points 512,64 2048,128] [--negatives 1 4] [--rounds 5] [--into DIR]
    python benchmarks/trainer.py --model qwen2.5-0.5b --dtype bfloat16      # on a GPU
    python benchmarks/trainer.py --small                                    # a self-check, whose times mean nothing

A point is a prompt's and a response's tokens. A step is the batch's forward, loss and backward and the optimizer, with
the reference scored in the step (`online`) or before (`precomputed`). TRL gets the K negatives of a group as K pairs.
The ratios are TRL's seconds, online, over ours. Beside each stands what FLOPs allow: those that TRL spends, counted,
over those of a step in which each prompt token goes through the model once and the head sees response tokens alone.
On a busy machine compare the seconds of a core (`--threads 1`), which the last column has, and not those of the clock.
Peak memory is that of one step: allocated by torch on a GPU, and on a CPU of the storages that come into being.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl import DPOTrainer

from mipo import demo
from mipo.models.loading import load_tokenizer, without_bars
from mipo.trainer import MIPOConfig, MIPOTrainer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from counting import LookInside, PeakMemory  # noqa: E402

MODELS = {
    # 26 million weights, for two cores.
    "26m": LlamaConfig(vocab_size=32_000, hidden_size=384, intermediate_size=1_024, num_hidden_layers=8,
                       num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=True),
    "qwen2.5-0.5b": Qwen2Config(vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24,
                                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2.5-1.5b": Qwen2Config(vocab_size=151_936, hidden_size=1_536, intermediate_size=8_960, num_hidden_layers=28,
                                num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
    "small": LlamaConfig(vocab_size=499, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True),
}  # fmt: skip
CONTENDERS = ("TRL, online", "TRL, precomputed", "mipo, online", "mipo, precomputed")
POINTS = ("128,64", "512,64", "1024,128", "2048,128")


class PlainTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are tokenized already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class Contender:
    """A trainer and its batch."""

    def __init__(self, kind: Any, folder: Path, groups: list[dict[str, Any]], arguments: Any, **fields: Any) -> None:
        several = isinstance(groups[0]["rejected_ids"][0], list)
        rows = groups
        if several and kind is PlainTrainer:
            rows = [{**group, "rejected_ids": ids} for group in groups for ids in group["rejected_ids"]]
        tokenizer = load_tokenizer(str(demo.HERE / "model"))
        args = MIPOConfig(
            output_dir=str(folder / "out"), per_device_train_batch_size=len(rows), max_length=None, save_strategy="no",
            bf16=False, gradient_checkpointing=False, model_init_kwargs={"dtype": arguments.dtype}, **fields,
        )  # fmt: skip
        with without_bars():
            self.trainer = kind(
                str(folder), args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
            )
        self.trainer.create_optimizer_and_scheduler(1_000)
        self.trainer.current_gradient_accumulation_steps = 1  # which train() sets
        rows = [self.trainer.train_dataset[row] for row in range(len(rows))]
        self.batch = self.trainer.data_collator(rows)
        self.seconds: list[float] = []
        self.core_seconds: list[float] = []

    def step(self) -> None:
        self.trainer.training_step(self.trainer.model, dict(self.batch))
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def timed(self) -> None:
        _wait()
        started, used = time.perf_counter(), time.process_time()
        self.step()
        _wait()
        self.seconds.append(time.perf_counter() - started)
        self.core_seconds.append(time.process_time() - used)

    def flops(self) -> int:
        with FlopCounterMode(display=False) as counter, LookInside():
            self.trainer.training_step(self.trainer.model, dict(self.batch))
        self.trainer.optimizer.zero_grad()
        return counter.get_total_flops()

    def peak_bytes(self) -> int:
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        with PeakMemory() as memory:
            self.step()
        return memory.peak


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def draw(config: Any, prompt: int, response: int, groups: int, negatives: int) -> list[dict[str, Any]]:
    """Groups of random ids; prompts and responses of a tenth less, at random."""
    dice = torch.Generator().manual_seed(0)

    def ids(longest: int) -> list[int]:
        size = int(torch.randint(longest - longest // 10, longest + 1, (), generator=dice))
        return torch.randint(3, config.vocab_size, (size,), generator=dice).tolist()

    rows = [(ids(prompt), [ids(response) for _ in range(1 + negatives)]) for _ in range(groups)]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": others if negatives > 1 else others[0]}
        for prompt, (chosen, *others) in rows
    ]


def ideal_flops(config: Any, groups: list[dict[str, Any]], passes: int) -> int:
    """FLOPs of the products of a step: 2 for each weight and token, 4 D for each query and key, forward and backward.

    Queries and keys are counted as torch does, with those that a causal mask leaves out, as for TRL.
    `passes` is 3, or 4 with the reference in the step. A head that is trained takes 3, and 1 for the reference.
    """
    layers, width = config.num_hidden_layers, config.hidden_size
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    heads, shared = config.num_attention_heads * size, config.num_key_value_heads * size
    weights = layers * width * (2 * heads + 2 * shared + 3 * config.intermediate_size)
    total = 0
    for group in groups:
        several = isinstance(group["rejected_ids"][0], list)
        sizes = [
            len(ids) for ids in [group["chosen_ids"], *(group["rejected_ids"] if several else [group["rejected_ids"]])]
        ]
        prompt = len(group["prompt_ids"])
        pairs = prompt**2 + sum(n * (prompt + n) for n in sizes)
        body = 2 * weights * (prompt + sum(sizes)) + 4 * heads * layers * pairs
        total += passes * (body + 2 * sum(sizes) * width * config.vocab_size)
    return total


def contest(config: Any, folder: Path, arguments: Any, prompt: int, response: int, negatives: int) -> dict[str, Any]:
    """All contenders at one point."""
    groups = draw(config, prompt, response, arguments.groups, negatives)
    makers: dict[str, Callable[[], Contender]] = {
        "TRL, online": lambda: Contender(PlainTrainer, folder, groups, arguments, precompute_ref_log_probs=False),
        "TRL, precomputed": lambda: Contender(PlainTrainer, folder, groups, arguments, precompute_ref_log_probs=True),
        "mipo, online": lambda: Contender(
            MIPOTrainer, folder, groups, arguments, precompute_ref_log_probs=False, shared_prompts=True
        ),
        "mipo, precomputed": lambda: Contender(
            MIPOTrainer, folder, groups, arguments, precompute_ref_log_probs=True, shared_prompts=True
        ),
    }
    contenders = {name: make() for name, make in makers.items() if name in arguments.contenders}
    for name in contenders.keys() - CONTENDERS[:2]:
        contenders[name].step()  # checks its first batch
    counted = {name: (contender.flops(), contender.peak_bytes()) for name, contender in contenders.items()}  # warm-ups
    for turn in range(arguments.rounds):
        for contender in list(contenders.values())[:: 1 if turn % 2 == 0 else -1]:
            contender.timed()
    spent, _ = counted[CONTENDERS[0]]
    rows = []
    for name, contender in contenders.items():
        flops, peak_bytes = counted[name]
        row = {"name": name, "seconds": contender.seconds, "core_seconds": contender.core_seconds, "flops": flops,
               "peak_bytes": peak_bytes}  # fmt: skip
        if name.startswith("mipo"):
            ideal = ideal_flops(config, groups, 3 if "precomputed" in name else 4)
            row |= {"allowed": spent / ideal, "flops_over_ideal": flops / ideal}
        rows.append(row)
    return {"prompt": prompt, "response": response, "negatives": negatives, "rows": rows}


def render(result: dict[str, Any]) -> str:
    """A point as lines of a table."""
    lines = []
    for row in result["rows"]:
        ratio, of_cores = (
            statistics.median(result["rows"][0][unit]) / statistics.median(row[unit])
            for unit in ("seconds", "core_seconds")
        )
        cells = [
            f"({result['prompt']}, {result['response']})",
            str(result["negatives"]),
            row["name"],
            f"{statistics.median(row['seconds']):.3f}",
            f"{ratio:.2f}",
            *([f"{row['allowed']:.2f}", f"{ratio / row['allowed']:.0%}", f"{row['flops_over_ideal']:.3f}"]
              if "allowed" in row else [""] * 3),
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{of_cores:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="26m")
    parser.add_argument("--points", nargs="+", default=list(POINTS), help="prompt,response in tokens")
    parser.add_argument("--negatives", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--groups", type=int, default=4, help="groups in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="the first always"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--into", type=Path, help="folder for <date>-trainer.json")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.model, arguments.points, arguments.rounds, arguments.groups = "small", ["24,6"], 1, 2
    torch.set_num_threads(arguments.threads)
    arguments.contenders = {CONTENDERS[0], *arguments.contenders}
    config = MODELS[arguments.model]
    results = []
    print("| point | K | trainer | s a step | TRL / this | FLOPs allow | share | FLOPs / ideal | MiB | by a core's s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        torch.manual_seed(0)
        model = (Qwen2ForCausalLM if isinstance(config, Qwen2Config) else LlamaForCausalLM)(config)
        model.save_pretrained(temporary)
        parameters = model.num_parameters()
        del model
        for negatives in arguments.negatives:
            for point in arguments.points:
                prompt, response = map(int, point.split(","))
                results.append(contest(config, Path(temporary), arguments, prompt, response, negatives))
                print(render(results[-1]), flush=True)
    if arguments.into:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record = {"date": date, "machine": gpu or f"{os.cpu_count()} cores, {platform.machine()}",
                  "model": arguments.model, "parameters": parameters, "dtype": arguments.dtype,
                  "groups": arguments.groups, "threads": arguments.threads, "self_check": arguments.small,
                  "results": results}  # fmt: skip
        (arguments.into / f"{date}-trainer.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
