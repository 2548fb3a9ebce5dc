"""Laws of groups: their ids are TRL's, the border cannot be shifted, and broken pairs are dropped by name."""

import copy
import itertools
import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import polars as pl
import pytest
from fuzz_tokens import Target
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_pairs import first_difference, nasty_rows
from preferences import HARD, WORDS, chat, mipo_ids, store_of, text, trl_ids, worded

from mipo import _native
from mipo.tokenizer import encoder, template
from mipo.tokenizer.chat import encode_prompts
from mipo.tokens import groups
from mipo.tokens.groups import aligned, encode_responses, tokenize

# The ids are TRL's


@pytest.mark.parametrize("shape", [text, chat])
def test_ids_of_the_demo_are_those_of_trl(demo_tokenizer: Any, shape: Any) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(300)] + HARD
    rows = [shape(a, b, c) for a, b, c in zip(texts, texts[1:] + texts[:1], texts[2:] + texts[:2], strict=True)]
    assert mipo_ids(store_of(rows, demo_tokenizer)) == trl_ids(rows, demo_tokenizer)


@pytest.fixture(scope="session")
def real_triples(rows_of: Any) -> list[tuple[str, str, str]]:
    """Prompts with a response of their own and one to another prompt."""
    math = [(row["question"], row["answer"]) for row in rows_of("math/gsm8k_train.jsonl")[:500]]
    instructions = [row["prompt"] for row in rows_of("prompts/human_instructions.jsonl")]
    persona = ["".join(row["persona"]) for row in rows_of("personal/realpersonachat_users.jsonl.xz")]
    hard = [(a, b) for a in HARD for b in HARD if a != b]
    own = math + list(zip(instructions, reversed(instructions), strict=True)) + list(itertools.pairwise(persona)) + hard
    return [(prompt, chosen, own[(i * 7 + 1) % len(own)][1]) for i, (prompt, chosen) in enumerate(own)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gpt2", text), ("stories260K", text), ("qwen2.5", chat), ("smollm2", chat), ("smollm2", text)],
)
def test_ids_of_real_texts_are_those_of_trl(
    real_tokenizer: Any, real_triples: list[tuple[str, str, str]], name: str, shape: Any
) -> None:
    tokenizer = real_tokenizer(name)
    rows = [shape(*triple) for triple in real_triples]
    assert mipo_ids(store_of(rows, tokenizer)) == trl_ids(rows, tokenizer)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("gpt2", text), ("stories260K", text), ("qwen2.5", chat), ("smollm2", chat), ("smollm2", text)],
)
def test_ids_of_the_fuzzers_strings_are_those_of_trl(real_tokenizer: Any, name: str, shape: Any) -> None:
    tokenizer = real_tokenizer(name)
    target = Target(name, tokenizer.backend_tokenizer, list(tokenizer.get_added_vocab()) or ["<s>"])
    assert first_difference(nasty_rows(200, shape, target), tokenizer) is None


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2"])
def test_a_system_message_is_rendered_as_trl_does(real_tokenizer: Any, name: str) -> None:
    tokenizer = real_tokenizer(name)
    rows = [chat(a, b, "no", system=c) for a, b, c in zip(HARD, HARD[1:], HARD[2:], strict=False)]
    assert mipo_ids(store_of(rows, tokenizer)) == trl_ids(rows, tokenizer)


def test_a_token_across_the_border_moves_it_for_the_whole_group_as_in_trl(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("gpt2")
    rows = [text("Say it: ", "hello", "12"), text("She is un", "happy", "🎌"), text("a\n", "\nb", "c")]
    store = store_of(rows, tokenizer)
    assert mipo_ids(store) == trl_ids(rows, tokenizer)
    assert store.merged == sum(len(ids[0]) < len(tokenizer(row["prompt"])["input_ids"]) for ids, row in
                               zip(mipo_ids(store), rows, strict=True)) > 0  # fmt: skip


def test_null_fields_that_a_table_adds_are_not_shown_to_the_template(demo_tokenizer: Any) -> None:
    named = chat("what ?", "soup .", "pizza .")
    named["prompt"] = [{**named["prompt"][0], "name": "ann"}]
    plain = chat("what ?", "soup .", "pizza .")
    demo_tokenizer = copy.deepcopy(demo_tokenizer)
    demo_tokenizer.chat_template = demo_tokenizer.chat_template + "{% if messages[0].name is defined %} you{% endif %}"
    store = store_of([named, plain], demo_tokenizer)
    assert mipo_ids(store)[1] == mipo_ids(store_of([plain], demo_tokenizer))[0]
    assert mipo_ids(store)[0] != mipo_ids(store)[1]


# Groups


@given(st.lists(st.tuples(worded, worded, st.lists(worded, min_size=1, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_rows_of_one_prompt_and_chosen_are_one_group(demo_tokenizer: Any, drawn: list[Any]) -> None:
    rows = [
        {"prompt_id": i, **chat(prompt, chosen, other)}
        for i, (prompt, chosen, rejected) in enumerate(drawn)
        for other in rejected
    ]
    store = store_of(rows, demo_tokenizer)
    assert store.pairs["prompt_id"].to_list() == list(range(len(drawn)))
    assert store.pairs["rejected"].list.len().to_list() == [len(rejected) for *_, rejected in drawn]
    assert store.negatives == max(len(rejected) for *_, rejected in drawn)
    flat = [(ids[0], ids[1], other) for ids in mipo_ids(store) for other in ids[2:]]
    assert flat == mipo_ids(
        store_of([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows], demo_tokenizer)
    )
    for table in (store.prompts, store.responses):
        assert len({tuple(ids.tolist()) for ids in table}) == len(table), "each distinct prompt and response once"


def test_rows_without_prompt_id_are_never_joined(demo_tokenizer: Any) -> None:
    store = store_of([chat("what ?", "soup .", "pizza .")] * 3, demo_tokenizer)
    assert (len(store), store.negatives, len(store.prompts), len(store.responses)) == (3, 1, 1, 2)


# The border


@given(prompt=worded, counter=worded, chosen=worded, tail=worded, middle=st.booleans())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("shape", [text, chat])
def test_a_rejected_response_that_quotes_its_own_prompt_cannot_shift_the_border(
    demo_tokenizer: Any, shape: Any, prompt: str, counter: str, chosen: str, tail: str, middle: bool
) -> None:
    """The pitfall of slicing strings by a prompt's length: here the rejected answer holds its whole counter-prompt."""
    quoted = f"{tail} {counter}" if middle else f"{counter} {tail}"
    separator = " " if shape is text else ""
    row = shape(prompt, separator + chosen, separator + quoted)
    prompt_ids, chosen_ids, rejected_ids = mipo_ids(store_of([row], demo_tokenizer))[0]
    vocabulary = demo_tokenizer.convert_tokens_to_ids
    assert chosen_ids == [*map(vocabulary, chosen.split()), demo_tokenizer.eos_token_id]
    assert rejected_ids == [*map(vocabulary, quoted.split()), demo_tokenizer.eos_token_id]
    assert prompt_ids == encode_prompts(pl.Series([row["prompt"]]), demo_tokenizer)[0].tolist()


def test_a_rejected_response_that_starts_with_its_own_rendered_prompt(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("qwen2.5")
    counter = [{"role": "user", "content": "Another, much longer question about something else entirely?"}]
    rendered = tokenizer.apply_chat_template(counter, tokenize=False, add_generation_prompt=True)
    rows = [chat("Short?", "Yes.", rendered + "An answer."), chat("Short?", "Yes.", "Short? No.")]
    for row, ids in zip(rows, mipo_ids(store_of(rows, tokenizer)), strict=True):
        assert ids[0] == tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert tokenizer.decode(ids[2]) == row["rejected"][0]["content"] + "<|im_end|>\n"


# The end of turn


@given(st.lists(st.tuples(worded, worded, worded, st.booleans(), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("shape", [text, chat])
def test_truncated_responses_have_no_end_of_turn_and_all_others_one(
    demo_tokenizer: Any, shape: Any, rows: list[tuple[str, str, str, bool, bool]]
) -> None:
    marks = ("chosen_truncated", "rejected_truncated")
    pairs = [{**shape(p, c, r), **dict(zip(marks, cut, strict=True))} for p, c, r, *cut in rows]
    for (*_, chosen_cut, rejected_cut), (_, chosen, rejected) in zip(
        rows, mipo_ids(store_of(pairs, demo_tokenizer)), strict=True
    ):
        assert chosen.count(demo_tokenizer.eos_token_id) == (not chosen_cut)
        assert rejected.count(demo_tokenizer.eos_token_id) == (not rejected_cut)


def test_the_line_break_after_qwens_end_of_turn_stays_with_finished_responses_alone(real_tokenizer: Any) -> None:
    tokenizer = real_tokenizer("qwen2.5")
    row = {**chat("Hi", "whole", "half a"), "chosen_truncated": False, "rejected_truncated": True}
    _, chosen, rejected = mipo_ids(store_of([row], tokenizer))[0]
    assert (tokenizer.decode(chosen), tokenizer.decode(rejected)) == ("whole<|im_end|>\n", "half a")


def test_the_end_of_turn_is_the_templates_where_the_eos_token_is_another(real_tokenizer: Any) -> None:
    """Base models often end texts with <|endoftext|>, while their template closes turns with <|im_end|>."""
    tokenizer = copy.deepcopy(real_tokenizer("qwen2.5"))
    tokenizer.eos_token = "<|endoftext|>"
    row = {**chat("Hi", "whole", "half a"), "chosen_truncated": False, "rejected_truncated": True}
    _, chosen, rejected = mipo_ids(store_of([row], tokenizer))[0]
    assert (tokenizer.decode(chosen), tokenizer.decode(rejected)) == ("whole<|im_end|>\n", "half a")


@pytest.mark.parametrize("is_text", [True, False])
def test_single_responses_are_separated_as_in_pairs(demo_tokenizer: Any, is_text: bool) -> None:
    rows = [(text if is_text else chat)(p, c, " soup .") for p, c in [("what ?", " pizza ."), ("i eat", " it .")]]
    store = store_of(rows, demo_tokenizer)
    prompts, responses = encode_responses(
        pl.Series([row["prompt"] for row in rows]),
        pl.Series([" pizza .", " it ."]),
        demo_tokenizer,
        truncated=pl.Series([False, None]),
    )
    assert [ids.tolist() for ids in prompts] == [ids[0] for ids in mipo_ids(store)]
    assert [ids.tolist() for ids in responses] == [ids[1] for ids in mipo_ids(store)]


# Drops


@given(
    st.lists(st.tuples(worded, worded, st.lists(worded, min_size=1, max_size=2)), min_size=1, max_size=6),
    st.integers(0, 24),
)
@settings(max_examples=50, deadline=None)
def test_long_groups_are_dropped_by_name_and_leave_nothing_behind(
    demo_tokenizer: Any, drawn: list[Any], limit: int
) -> None:
    rows = [
        {"prompt_id": i, **chat(prompt, chosen, other)}
        for i, (prompt, chosen, rejected) in enumerate(drawn)
        for other in rejected
    ]
    everything = mipo_ids(store_of(rows, demo_tokenizer))
    store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer, max_length=limit)
    fits = [ids for ids in everything if len(ids[0]) + max(map(len, ids[1:])) <= limit]
    assert mipo_ids(store) == fits
    assert len(rows) == sum(len(ids) - 2 for ids in fits) + sum(dropped.values())
    assert set(dropped) <= {f"longer than {limit} tokens", f"a prompt of {limit} tokens or more"}
    assert set(store.pairs["prompt"]) == set(range(len(store.prompts)))
    assert {*store.pairs["chosen"], *store.pairs["rejected"].explode()} - {None} == set(range(len(store.responses)))


def test_a_response_without_a_token_is_dropped_by_name(demo_tokenizer: Any) -> None:
    rows = [
        {**chat("what ?", "soup .", ""), "rejected_truncated": True},
        {**chat("what ?", "soup .", "pizza ."), "rejected_truncated": False},
    ]
    store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer)
    assert (len(store), dropped) == (1, {"a response without a token of its own": 1})


@pytest.mark.parametrize("shape", [text, chat])
def test_nulls_are_dropped_by_name_wherever_they_are(demo_tokenizer: Any, shape: Any) -> None:
    whole = [shape(f"{word} ?", "soup .", "pizza .") for word in WORDS[:5]]
    for side in ("prompt", "chosen", "rejected"):
        rows = copy.deepcopy(whole)
        rows[0][side] = rows[3][side] = None
        store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer)
        assert dropped == {f"null {side}": 2}
        assert mipo_ids(store) == mipo_ids(store_of([whole[1], whole[2], whole[4]], demo_tokenizer))
        assert store.pairs["prompt_id"].to_list() == [1, 2, 4], "the row, where there is no prompt_id"


def test_a_chat_without_a_message_is_dropped_by_name(demo_tokenizer: Any) -> None:
    rows = [chat("what ?", "soup .", "pizza ."), {**chat("", "soup .", "pizza ."), "prompt": []}]
    store, dropped = tokenize(pl.DataFrame(rows), demo_tokenizer)
    assert (len(store), dropped) == (1, {"a prompt of no message": 1})


# Batches


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_batches_are_aligned_to_groups_and_hold_the_same_rows(ids: list[int], size: int) -> None:
    rows = pl.DataFrame({"prompt_id": ids, "row": range(len(ids))}, schema={"prompt_id": pl.Int64, "row": pl.Int64})
    batches = list(aligned(rows.iter_slices(size)))
    assert [row for batch in batches for row in batch["row"]] == list(range(len(ids)))
    for one, other in itertools.pairwise(batches):
        assert one["prompt_id"][-1] != other["prompt_id"][0]


def test_batches_without_prompt_ids_are_left_as_they_are() -> None:
    for rows in (pl.DataFrame({"prompt_id": [None] * 9}), pl.DataFrame({"row": range(9)})):
        assert [batch.height for batch in aligned(rows.iter_slices(4))] == [4, 4, 1]


def test_a_group_across_batches_is_one_group(demo_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt_id": group, **chat(f"{WORDS[group]} ?", "soup .", f"{other} .")}
        for group in range(6)
        for other in WORDS[: 1 + group % 3]
    ]
    whole = store_of(rows, demo_tokenizer)
    for size in (1, 2, 5):
        monkeypatch.setattr(groups, "BATCH_ROWS", size)
        assert mipo_ids(store_of(rows, demo_tokenizer)) == mipo_ids(whole)


# Refusals


def test_every_batch_notices_a_template_that_rust_renders_otherwise(
    demo_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(a, b, c) for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)]
    wrong = template.open_template(demo_tokenizer).native, _native.Template("{{ (v_messages|item(0)).content }}", [])
    for native, expected in zip(wrong, (False, True), strict=True):
        renderer = template.Renderer(demo_tokenizer, native, None)
        monkeypatch.setattr(groups, "renderer", lambda _, renderer=renderer: renderer)
        refused = pytest.raises(ValueError, match="token ids are not those of transformers")
        with refused if expected else nullcontext():
            store_of(rows, demo_tokenizer)


def test_chats_in_several_chunks_are_refused_by_rust(demo_tokenizer: Any) -> None:
    native = template.open_template(demo_tokenizer).native
    chats = pl.concat([pl.Series([[{"role": "user", "content": "a"}]])] * 2, rechunk=False)
    builder = _native.GroupBuilder(encoder.open_encoder(demo_tokenizer))
    offsets, rows, flags = np.arange(3), np.arange(2, dtype=np.uint64), np.zeros(2, dtype=bool)
    with pytest.raises(ValueError, match="expected an Arrow array in one chunk, got 2; combine them"):
        builder.push_chats(native, (chats, chats, chats), (offsets, rows, flags, flags), end_ids=[])


def test_chats_that_rust_cannot_render_are_rendered_by_transformers_in_their_batch(demo_tokenizer: Any) -> None:
    rows = [chat(a, b, c) for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)]
    rows[3]["prompt"].append({"role": "user", "content": None})
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    assert mipo_ids(store_of(rows, tokenizer)) == trl_ids(rows, tokenizer)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([{"prompt": "a", "chosen": "b"}], "no column 'rejected'; they have prompt, chosen"),
        ([{**chat("a", "b", "c"), "chosen": "b"}], "text or chat messages in all columns, got"),
    ],
)
def test_broken_pairs_are_refused(demo_tokenizer: Any, pairs: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store_of(pairs, demo_tokenizer)


def test_no_pairs_no_template_and_no_end_are_refused(demo_tokenizer: Any) -> None:
    pairs = pl.DataFrame([chat("a", "b", "c")])
    with pytest.raises(ValueError, match="at least one row to tokenize, got none"):
        tokenize(pairs.clear(), demo_tokenizer)
    plain = copy.deepcopy(demo_tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="got messages, and the tokenizer has no chat template"):
        tokenize(pairs, plain)
    plain.eos_token = None
    with pytest.raises(ValueError, match="expected an eos_token, got none"):
        tokenize(pl.DataFrame([text("a", "b", "c")]), plain)
