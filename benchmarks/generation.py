"""The local engine beside loops of `model.generate`: tokens a second on the same prompts, and the same greedy answers.

    python benchmarks/generation.py --model FOLDER --prompts FILE [FILE ...] [--rows 128] [--into benchmarks/results]
    python benchmarks/generation.py --small      # a self-check on the demo's model, whose times mean nothing

Each FILE is JSON Lines with a column `prompt`; an equal share of the rows is taken from each, then shuffled.
The contenders take turns in one process: mipo's `generate` with all that it does (ids, decoding, the database of
answers, the parts); the loop that people write (batches in the order of the file); and the same loop over prompts
sorted by length. All have the same batch size, and are compared by processor time. A text may differ where two tokens
are nearly as likely, since sums are rounded otherwise in a batch of another shape.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from mipo import demo
from mipo.models.model import Model
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests
from mipo.tokenizer.chat import encode_prompts


def read(paths: list[Path], rows: int, longest: int, seed: int) -> pl.DataFrame:
    """An equal share of rows from each file, shuffled."""
    fits = pl.col("prompt").str.len_chars() <= longest
    tables = [pl.read_ndjson(path, infer_schema_length=None).select("prompt").filter(fits) for path in paths]
    some = pl.concat(table.sample(rows // len(tables), seed=seed) for table in tables)
    return compose_requests(some.sample(fraction=1.0, shuffle=True, seed=seed), chat=True).prompts


def by_mipo(model: Model, prompts: pl.DataFrame, settings: dict[str, Any]) -> list[str]:
    """The texts of mipo's answers."""
    with tempfile.TemporaryDirectory() as folder:
        return generate(prompts, model, folder=Path(folder), **settings)["response"].to_list()


def by_loop(model: Model, prompts: pl.DataFrame, settings: dict[str, Any], *, is_sorted: bool) -> list[str]:
    """The texts of a loop of `generate`."""
    tokenizer, weights, size = model.tokenizer, model.weights, settings["batch_size"]
    ids = [row.tolist() for row in encode_prompts(prompts["prompt"], tokenizer)]
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row])) if is_sorted else list(range(len(ids)))
    hot = settings["temperature"] > 0
    sampled = {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0} if hot else {}
    texts = [""] * len(ids)
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = weights.generate(
                **batch.to(weights.device), do_sample=hot, max_new_tokens=settings["max_new_tokens"],
                eos_token_id=model.end_ids, pad_token_id=tokenizer.pad_token_id, **sampled,
            )  # fmt: skip
        new = out[:, batch["input_ids"].shape[1] :]
        for row, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[row] = text
    return texts


CONTENDERS = {
    "mipo": by_mipo,
    "generate": lambda *arguments: by_loop(*arguments, is_sorted=False),
    "generate, sorted": lambda *arguments: by_loop(*arguments, is_sorted=True),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo.HERE / "model"))
    parser.add_argument("--prompts", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--longest", type=int, default=1_000, help="characters of a prompt; longer ones are left out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    settings = {
        "temperature": arguments.temperature, "top_p": 0.9, "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens,
    }  # fmt: skip
    if arguments.small:
        foods = pl.DataFrame({"prompt": [f"what should number {n} eat {'tonight ' * (n % 7)}?" for n in range(40)]})
        prompts = compose_requests(foods, chat=True).prompts
        settings |= {"max_new_tokens": 24, "batch_size": 8}
    else:
        prompts = read(arguments.prompts, arguments.rows, arguments.longest, arguments.seed)
    model = Model(arguments.model)
    report(arguments, settings, measure(model, prompts, settings, arguments.rounds))


def measure(model: Model, prompts: pl.DataFrame, settings: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each contender in each round, and how many of its texts are not mipo's."""
    results = [{"name": name, "seconds": list[float](), "core_seconds": list[float]()} for name in CONTENDERS]
    lengths = encode_prompts(prompts["prompt"], model.tokenizer).lengths()
    print(f"{len(lengths)} prompts of {lengths.min()} to {lengths.max()} tokens, {settings}", flush=True)
    by_loop(model, prompts[:1], {**settings, "max_new_tokens": 2}, is_sorted=False)  # loads the model
    for number in range(rounds):
        for result in results if number % 2 == 0 else results[::-1]:
            started, used = time.perf_counter(), time.process_time()
            texts = CONTENDERS[result["name"]](model, prompts, settings)
            result["seconds"].append(round(time.perf_counter() - started, 2))
            result["core_seconds"].append(round(time.process_time() - used, 2))
            print(f"{result['name']}: {result['seconds'][-1]} s", flush=True)
            result["texts"] = texts
    ours = results[0]["texts"]
    counts = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ours]
    for result in results:
        texts = result.pop("texts")
        result["differing"] = sum(one != other for one, other in zip(ours, texts, strict=True))
        result["tokens"] = sum(counts)
    results[0]["lengths"] = [int(pl.Series(counts).quantile(q)) for q in (0, 0.25, 0.5, 0.75, 1)]
    return results


def report(arguments: argparse.Namespace, settings: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Prints and writes the table."""
    ours = min(results[0]["core_seconds"])
    print("a self-check, the times mean nothing" * arguments.small)
    print(f"answers of {', '.join(map(str, results[0]['lengths']))} tokens (quartiles)")
    print(
        "| | seconds | tokens a second | of a core's second | mipo is | texts that differ |\n|---|---|---|---|---|---|"
    )
    for result in results:
        best, core = min(result["seconds"]), min(result["core_seconds"])
        rates = f"{result['tokens'] / best:,.0f} | {result['tokens'] / core:,.0f}"
        print(f"| {result['name']} | {best:.1f} | {rates} | {core / ours:.2f}x | {result['differing']} |")
    if arguments.into:
        date = datetime.date.today().isoformat()
        record = {
            "date": date, "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "model": Path(arguments.model).name, "prompts": [path.name for path in arguments.prompts or ()],
            "rows": arguments.rows, "settings": settings, "torch": torch.__version__, "self_check": arguments.small,
            "results": results,
        }  # fmt: skip
        path = arguments.into / f"{date}-generation{'-sampled' * (settings['temperature'] > 0)}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
