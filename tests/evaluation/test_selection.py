"""The best sample of a prompt is the one that is much likelier under it than under its counter-prompts."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mipo import demo
from mipo.demo import world
from mipo.evaluation.selection import select_best
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests, link

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES, NEGATIVES = 3, 2


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Links and responses of some of the demo's prompts."""
    folder = tmp_path_factory.mktemp("world")
    world.write(folder, train=10, test=1, seed=1)
    prompts = pl.read_ndjson(folder / "train.jsonl").select("prompt", "context")
    drawn = contrast(prompts, kind="context", negatives=NEGATIVES, seed=0)
    requests = compose_requests(prompts, drawn, chat=True, samples=SAMPLES)
    responses = generate(
        requests.prompts, Model(str(demo.HERE / "model")), temperature=1.3, top_p=1.0, max_new_tokens=12
    )
    return link(prompts, drawn, requests), responses


def logp(model: Any, tokenizer: Any, prompt: list[dict[str, str]], response: dict[str, Any]) -> float:
    """log π(response | prompt), token by token."""
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
    turns = [*prompt, {"role": "assistant", "content": response["response"]}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert whole[: len(before)] == before
    new = whole[len(before) :][: response["response_tokens"]]
    with torch.inference_mode():
        logits = model(torch.tensor([before + new])).logits[0].log_softmax(-1)
    return sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(new))


def test_the_best_sample_has_the_highest_pmi(
    sampled: tuple[pl.DataFrame, pl.DataFrame], model: Any, tokenizer: Any
) -> None:
    links, responses = sampled
    rows = responses.to_dicts()
    best = select_best(links, responses, Model.of(model, tokenizer))
    for _, group in links.with_columns(best=best).group_by("prompt_id", maintain_order=True):
        pmi = {}
        for (chosen,), pairs in group.group_by("chosen_id", maintain_order=True):
            own = logp(model, tokenizer, rows[pairs["asked_id"][0]]["prompt"], rows[chosen])
            others = [logp(model, tokenizer, rows[other]["prompt"], rows[chosen]) for other in pairs["rejected_id"]]
            pmi[chosen] = own - math.log(sum(map(math.exp, others)) / len(others))
        (kept,) = group.filter("best")["chosen_id"].unique()
        assert pmi[kept] == pytest.approx(max(pmi.values()), abs=1e-4)
        assert group["best"].sum() == NEGATIVES


def test_what_cannot_be_scored_is_not_the_best(
    sampled: tuple[pl.DataFrame, pl.DataFrame], model: Any, tokenizer: Any
) -> None:
    links, responses = sampled
    known = select_best(links, responses, Model.of(model, tokenizer))
    dropped = links["chosen_id"].filter(known)
    emptied = pl.when(pl.col("response_id").is_in(dropped.implode())).then(pl.lit(" ")).otherwise("response")
    best = select_best(links, responses.with_columns(response=emptied), Model.of(model, tokenizer))
    assert best.sum() == known.sum()
    assert not (best & known).any()
    stated = links.with_columns(reason=pl.when(known).then(pl.lit("chosen and rejected are equal")))
    assert not (select_best(stated, responses, Model.of(model, tokenizer)) & known).any()
    nothing = responses.with_columns(response=pl.lit(None, pl.String))
    assert links["chosen_id"].filter(select_best(links, nothing, Model.of(model, tokenizer))).to_list() == [
        chosen for chosen in links["asked_id"].unique(maintain_order=True) for _ in range(NEGATIVES)
    ]


def test_a_run_drops_the_other_samples_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from mipo.run import pipeline

    world.write(tmp_path, train=24, test=8, seed=1)
    recipe = yaml.safe_load((demo.HERE / "recipe.yaml").read_text())
    recipe |= {"model": str(demo.HERE / "model"), "max_dropped": {"chosen and rejected are equal": 1}}
    recipe["evaluation"] |= {"negatives": 3, "rows": 4}
    recipe["responses"] = {"temperature": 1, "max_new_tokens": 16, "samples": 2, "choose": "best"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    folder = pipeline.run_recipe(path, output=tmp_path / "out", until="pairs")
    reasons = pl.read_parquet(folder / "pairs.parquet")["reason"].value_counts()
    counts = dict(reasons.iter_rows())
    assert counts["another sample says more of its prompt"] == 24
    assert "another sample says more of its prompt: 24" in capsys.readouterr().out
