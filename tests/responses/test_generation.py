"""Responses: one seed, the same answers, however often it is stopped; nothing is drawn but from the model itself.

Examples on the demo's own model; the plain-text ones need ../shared/models/stories260K.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from failed import failures
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import mipo.demo
from mipo.errors import InputError, StoppedError
from mipo.models import model as record
from mipo.models.loading import load_model, load_tokenizer
from mipo.models.model import Model
from mipo.responses import generation
from mipo.responses.answers import keys_of
from mipo.responses.engines import decoding, local
from mipo.responses.engines.contract import Answer
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests, distinct
from mipo.tokenizer.chat import encode_prompts

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
CONTEXTS = [
    f"my favourite food is {food} . i always wanted a {pet} ." for food in ("soup", "ramen") for pet in ("cat", "dog")
] + ["i only dance to folk .", "my favourite colour is red . all my clothes are red . i feel strong after yoga ."]
QUESTIONS = ["what should i eat tonight ?", "which pet should i get ?"]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, "batch_size": 4}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 16}

needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(), reason=f"{STORIES} is not there: a text model without template"
)


@pytest.fixture(scope="module")
def prompts() -> pl.DataFrame:
    rows = [(question, context) for context in CONTEXTS for question in QUESTIONS]
    frame = pl.DataFrame(rows, schema=["prompt", "context"], orient="row")
    return compose_requests(frame, chat=True).prompts


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each block had that was decoded."""
    calls: list[int] = []
    decode: Callable[..., Any] = decoding.decode

    def count(model: Any, prompts: list[list[int]], *arguments: Any, **named: Any) -> Any:
        calls.append(len(prompts))
        return decode(model, prompts, *arguments, **named)

    monkeypatch.setattr(decoding, "decode", count)
    return calls


texts = st.lists(st.sampled_from(["a", "b", "c d", None]), max_size=6)


@given(texts, texts)
@settings(max_examples=50, deadline=None)
def test_each_distinct_prompt_is_asked_once_in_order_of_appearance(
    own: list[str | None], counter: list[str | None]
) -> None:
    requests = distinct(pl.Series(own, dtype=pl.String), pl.Series(counter, dtype=pl.String))
    expected = list(dict.fromkeys(text for text in [*own, *counter] if text))
    assert requests.prompts["prompt"].to_list() == expected
    assert requests.prompts["response_id"].to_list() == list(range(len(expected)))
    assert requests.own.to_list() == [expected.index(text) if text else None for text in own]
    assert requests.counter.to_list() == [expected.index(text) if text else None for text in counter]


def test_equal_messages_are_one_prompt(prompts: pl.DataFrame) -> None:
    assert distinct(prompts["prompt"], prompts["prompt"].reverse()).prompts.equals(prompts)


def test_each_prompt_has_one_generation(
    prompts: pl.DataFrame, model: Any, tokenizer: Any, generations: list[int]
) -> None:
    responses = generate(distinct(prompts["prompt"], prompts["prompt"]).prompts, Model.of(model, tokenizer), **SAMPLED)
    assert sum(generations) == responses.height == prompts.height
    assert responses.columns == [
        "response_id",
        "prompt",
        "response",
        "response_tokens",
        "truncated",
        "failure",
        "detail",
    ]
    assert responses.select("response_id", "prompt").equals(prompts)


def test_the_seed_decides(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    first, again, other = (generate(prompts, Model.of(model, tokenizer), seed=seed, **SAMPLED) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_sampled_answers_do_not_depend_on_the_order_or_the_batch(
    prompts: pl.DataFrame, model: Any, tokenizer: Any
) -> None:
    sampled = {**SAMPLED, "seed": 5}
    whole = generate(prompts, Model.of(model, tokenizer), **sampled)
    again = generate(prompts.reverse(), Model.of(model, tokenizer), **{**sampled, "batch_size": 3})
    assert again.reverse().equals(whole)


def test_what_is_missing_is_asked_again_and_nothing_else(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BLOCK_ROWS", 5)
    monkeypatch.setattr(generation, "PART_ROWS", 5)
    whole = generate(prompts, Model(DEMO), folder=tmp_path, seed=3, **SAMPLED)
    parts = sorted(tmp_path.glob("part-*.parquet"))
    assert [pl.read_parquet(part).height for part in parts] == [5, 5, 2]
    before = [part.read_bytes() for part in parts]
    parts[1].unlink()
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        keys = [key.tobytes() for key in keys_of(prompts)[7:9]]
        assert database.execute("DELETE FROM answers WHERE prompt IN (?, ?)", keys).rowcount == 2
    database.close()
    generations.clear()
    again = generate(prompts, Model(DEMO), folder=tmp_path, seed=3, **SAMPLED)
    assert sum(generations) == 5  # the block that they belong to, for its rounding
    assert again.equals(whole)
    assert [part.read_bytes() for part in parts] == before


def test_a_damaged_answer_is_asked_again(
    prompts: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED)
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute("UPDATE answers SET response = 'edited' WHERE prompt = ?", [keys_of(prompts)[3].tobytes()])
    database.close()
    assert generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED).equals(whole)
    assert "1 answers were damaged, and are asked for again" in capsys.readouterr().out


def test_a_damaged_database_is_named_and_kept(prompts: pl.DataFrame, tmp_path: Path) -> None:
    generate(prompts[:2], Model(DEMO), folder=tmp_path, **SAMPLED)
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(InputError, match=r"answers\.sqlite: expected a database of answers, got a damaged file"):
        generate(prompts[:2], Model(DEMO), folder=tmp_path, **SAMPLED)
    assert path.read_bytes().startswith(b"not a database")


def test_other_settings_and_prompts_add_answers_and_keep_the_old(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int]
) -> None:
    first = generate(prompts[:4], Model(DEMO), folder=tmp_path, **SAMPLED)
    generations.clear()
    generate(prompts[:4], Model(DEMO), folder=tmp_path, **{**SAMPLED, "temperature": 0.5})
    generate(prompts[:4], Model(DEMO), folder=tmp_path, seed=9, **SAMPLED)
    assert sum(generations) == 8
    generations.clear()
    assert generate(prompts[:4], Model(DEMO), folder=tmp_path, **SAMPLED).equals(first)
    assert generations == []
    more = generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED)
    assert more[:4].equals(first)
    assert pl.read_parquet(tmp_path / "part-*.parquet").equals(more)


def test_answers_of_another_folder_are_not_asked_again(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int]
) -> None:
    first = generate(prompts, Model(DEMO), folder=tmp_path / "a", **SAMPLED)
    before = (tmp_path / "a" / "answers.sqlite").read_bytes()
    generations.clear()
    again = generate(prompts, Model(DEMO), folder=tmp_path / "b", reuse=tmp_path / "a", **SAMPLED)
    assert again.equals(first)
    assert generations == []
    assert (tmp_path / "a" / "answers.sqlite").read_bytes() == before


def test_a_damaged_answer_of_another_folder_is_not_taken_over(
    prompts: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate(prompts, Model(DEMO), folder=tmp_path / "a", **SAMPLED)
    with closing(sqlite3.connect(tmp_path / "a" / "answers.sqlite")) as database:
        database.execute("UPDATE answers SET response = 'edited' WHERE prompt = ?", [keys_of(prompts)[3].tobytes()])
        database.commit()
    for folder in (tmp_path / "b", None):
        assert generate(prompts, Model(DEMO), folder=folder, reuse=tmp_path / "a", **SAMPLED).equals(whole)
        place = folder / "answers.sqlite" if folder else tmp_path / "a"
        assert f"{place}: 1 answers were damaged, and are asked for again" in capsys.readouterr().out


def test_a_folder_s_own_answers_are_there_without_being_taken_over(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int]
) -> None:
    whole = generate(prompts, Model(DEMO), folder=tmp_path / "a", **SAMPLED)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    generations.clear()
    for reuse in (tmp_path / "a", tmp_path / "link"):
        assert generate(prompts, Model(DEMO), folder=tmp_path / "a", reuse=reuse, **SAMPLED).equals(whole)
    assert generations == []


def test_a_model_is_loaded_only_where_rows_are_missing(
    prompts: pl.DataFrame, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED)
    monkeypatch.setattr(record, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED).equals(responses)


def test_answers_of_other_weights_or_of_another_template_under_the_same_path_are_not_taken(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int]
) -> None:
    path, folder = tmp_path / "model", tmp_path / "responses"
    shutil.copytree(DEMO, path)
    generate(prompts[:2], Model(str(path)), folder=folder, **SAMPLED)
    weights = load_file(path / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, path / "model.safetensors", metadata={"format": "pt"})
    generate(prompts[:2], Model(str(path)), folder=folder, **SAMPLED)
    shutil.copyfile(Path(DEMO) / "model.safetensors", path / "model.safetensors")
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    generate(prompts[:2], Model(str(path)), folder=folder, **SAMPLED)
    loaded = Model.of(load_model(DEMO), load_tokenizer(DEMO))
    generate(prompts[:2], loaded, folder=tmp_path / "loaded", **SAMPLED)
    with torch.no_grad():
        loaded.weights.lm_head.weight.mul_(2)
    generate(prompts[:2], Model.of(loaded.weights, loaded.tokenizer), folder=tmp_path / "loaded", **SAMPLED)
    assert sum(generations) == 10


def argmax_loop(model: Any, prompt: list[int], ends: list[int], new: int) -> list[int]:
    """Greedy decoding with no cache, no padding and no library."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new and (len(ids) == len(prompt) or ids[-1] not in ends):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_a_plain_argmax_loop(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    responses = generate(prompts, Model.of(model, tokenizer), **GREEDY)
    for prompt, response, count in responses.select("prompt", "response", "response_tokens").iter_rows():
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = argmax_loop(model, tokenizer(text)["input_ids"], Model.of(model, tokenizer).end_ids, 16)
        assert count == len(ids)
        assert response == tokenizer.decode(ids, skip_special_tokens=True)


def test_left_padding_does_not_change_greedy_answers(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    assert len(set(encode_prompts(prompts["prompt"], tokenizer).lengths())) > 2
    alone, together = (
        generate(prompts, Model.of(model, tokenizer), batch_size=n, **GREEDY) for n in (1, prompts.height)
    )
    assert alone.equals(together)


def test_greedy_does_not_heed_the_seed(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    one, other = (generate(prompts, Model.of(model, tokenizer), seed=seed, **GREEDY) for seed in (0, 1))
    assert one.equals(other)


def test_the_maker_s_sampling_knobs_are_not_applied(prompts: pl.DataFrame, tokenizer: Any) -> None:
    plain, knobs = load_model(DEMO), load_model(DEMO)
    knobs.generation_config.update(repetition_penalty=5.0, top_k=1, suppress_tokens=[97], min_new_tokens=15)
    config = knobs.generation_config.to_dict()
    for how in (SAMPLED, GREEDY):
        ours = generate(prompts, Model.of(knobs, tokenizer), **how)
        assert ours.equals(generate(prompts, Model.of(plain, tokenizer), **how))
    assert knobs.generation_config.to_dict() == config


def test_a_cut_off_answer_is_flagged(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    cut = generate(prompts, Model.of(model, tokenizer), **{**GREEDY, "max_new_tokens": 3})
    assert cut["truncated"].all()
    assert set(cut["response_tokens"]) == {3}
    whole = generate(prompts, Model.of(model, tokenizer), **GREEDY)
    assert not whole["truncated"].any()
    for short, long in zip(cut["response"], whole["response"], strict=True):
        assert long.startswith(short)


def test_every_end_of_the_generation_config_ends(prompts: pl.DataFrame, tokenizer: Any) -> None:
    model = load_model(DEMO)
    word = tokenizer.convert_tokens_to_ids("some")
    model.generation_config.eos_token_id = [word, tokenizer.eos_token_id]
    assert Model.of(model, tokenizer).end_ids == sorted([word, tokenizer.eos_token_id])
    responses = generate(prompts, Model.of(model, tokenizer), **GREEDY)
    ended = responses.filter(pl.col("response").str.contains("some"))
    assert ended.height
    assert ended["response"].str.ends_with("some").all()
    assert not ended["truncated"].any()


def test_chat_answers_hold_no_special_token(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    responses = generate(prompts, Model.of(model, tokenizer), **{**SAMPLED, "temperature": 1.5})
    for token in tokenizer.all_special_tokens:
        assert not responses["response"].str.contains(token, literal=True).any()
    assert (responses["response"] == responses["response"].str.strip_chars()).all()


@needs_stories
def test_a_plain_text_answer_keeps_its_leading_space() -> None:
    tokenizer, story = load_tokenizer(str(STORIES)), load_model(str(STORIES))
    prompts = compose_requests(
        pl.DataFrame({"prompt": ["Once upon a time", "Lily and Tom went to the", "One day, a cat"]}), chat=False
    ).prompts
    responses = generate(prompts, Model.of(story, tokenizer), **{**GREEDY, "max_new_tokens": 20})
    for prompt, response in responses.select("prompt", "response").iter_rows():
        ids = argmax_loop(story, tokenizer(prompt)["input_ids"], Model.of(story, tokenizer).end_ids, 20)
        assert tokenizer.decode(tokenizer(prompt)["input_ids"] + ids, skip_special_tokens=True) == prompt + response
        # What training will see: the same words, and a border at most one token away.
        again = tokenizer(prompt + response)["input_ids"]
        assert again == tokenizer(prompt)["input_ids"] + ids
    assert responses["response"].str.contains("^[ ,.]").all()


def test_a_prompt_with_no_room_has_a_reason_and_no_response(
    prompts: pl.DataFrame, generations: list[int], tmp_path: Path
) -> None:
    longest = compose_requests(pl.DataFrame({"prompt": ["i " * 120]}), chat=True).prompts.with_columns(
        response_id=pl.lit(77, pl.UInt64)
    )
    long = pl.concat([prompts, longest])
    responses = generate(long, Model(DEMO), folder=tmp_path, **SAMPLED)
    assert (
        responses[:-1]
        .drop("failure", "detail")
        .equals(generate(prompts, Model(DEMO), **SAMPLED).drop("failure", "detail"))
    )
    last = responses.row(-1, named=True)
    assert last["failure"] == "longer than the 112 tokens that the model's context leaves"
    assert [last[name] for name in ("response", "response_tokens", "truncated")] == [None] * 3
    assert failures(responses) == {last["failure"]: 1}


def test_generation_stops_when_too_many_fail_and_keeps_the_answers(
    prompts: pl.DataFrame, tmp_path: Path, generations: list[int]
) -> None:
    class Failing(local.Local):
        def answers(self, work: Any) -> Any:
            failed = Answer(failure="the server failed", detail="500: oh", final=False)
            for batch in super().answers(work):
                for number, (row, answer) in enumerate(batch):
                    yield [(row, failed if number % 3 == 1 else answer)]

    with pytest.raises(
        StoppedError, match=r"2 of 12 prompts failed, .*\(0\.1\): the server failed: 2; the last: 500: oh"
    ):
        generate(prompts, Model(DEMO), folder=tmp_path, engine=Failing(), **SAMPLED)
    some = generate(prompts, Model(DEMO), folder=tmp_path, engine=Failing(), max_failures=0.5, **SAMPLED)
    assert 0 < some["failure"].count() <= 3
    assert some["response"].null_count() == some["failure"].count()
    whole = generate(prompts, Model(DEMO), folder=tmp_path, **SAMPLED)
    assert whole.equals(generate(prompts, Model(DEMO), **SAMPLED))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a number of at least 0, got -1.0"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and at most 1, got 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(
    prompts: pl.DataFrame, model: Any, tokenizer: Any, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(prompts, Model.of(model, tokenizer), **{**SAMPLED, **wrong})


def test_no_prompt_is_refused(prompts: pl.DataFrame, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no prompt to answer"):
        generate(prompts[:0], Model.of(model, tokenizer))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_not_there_is_named(load: Callable[[str], Any], tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "./nothing", "some/where/nothing"):
        with pytest.raises(FileNotFoundError, match="nothing: no such folder") as caught:
            load(name)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(FileNotFoundError, match="a folder without "):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no (tokenizer|causal language model) found there that can be read \(\S"
    ):
        load(str(tmp_path))


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=r"1 weights of its architecture are missing, for example lm_head\.weight"):
        load_model(str(tmp_path / "model"))


def test_dtypes_are_torch_s_names() -> None:
    assert load_model(DEMO).dtype == torch.float32
    assert load_model(DEMO, dtype="float64").dtype == torch.float64
    with pytest.raises(ValueError, match="dtype: expected auto"):
        load_model(DEMO, dtype="fp8please")


def test_bfloat16_weights_are_float32_on_a_cpu(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("on an accelerator a model keeps the dtype it was saved in")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DEMO)).bfloat16().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32


def test_loading_shows_no_bar_and_leaves_bars_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    load_model(DEMO)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == shown


def test_a_tokenizer_pads_on_the_left_and_has_an_end(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None
    endless = load_tokenizer(DEMO)
    endless.eos_token = None
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no eos_token"):
        load_tokenizer(str(tmp_path))
