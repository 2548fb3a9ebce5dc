"""Laws of preparation: every source of pairs becomes TRL's ids, for all sizes of shards and after every stop."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from preferences import WORDS, chat, mipo_ids, text, trl_ids

from mipo import cli, demo
from mipo.tokens import parts, preparation, shards
from mipo.tokens.groups import tokenize
from mipo.tokens.preparation import prepare
from mipo.tokens.store import PairStore


def phrases(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]


def rows_of(count: int, shape: Any, seed: int = 0) -> list[dict[str, Any]]:
    words = iter(phrases(3 * count, seed))
    return [shape(next(words), next(words), next(words)) for _ in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(folder: Path) -> list[tuple[list[int], ...]]:
    return mipo_ids(PairStore.open(folder))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as the kind of source that the name of the path says."""
    frame = pl.DataFrame(rows)
    if path.name == "pairs.parquet":
        frame.write_parquet(path, row_group_size=4)
    elif path.name == "parts":
        path.mkdir()
        for part in range(3):
            frame[part * 9 : (part + 1) * 9].write_parquet(path / f"part-{part}.parquet", row_group_size=4)
    elif path.name == "dataset":
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    else:
        write_jsonl(path.with_name("pairs.jsonl"), rows)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.with_name("pairs.jsonl").read_bytes()))
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, and several writes, in a few rows."""
    monkeypatch.setattr(parts, "BATCH_ROWS", 7)
    monkeypatch.setattr(preparation, "PENDING", 200)


@pytest.mark.parametrize("shape", [text, chat])
@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet", "parts", "dataset"])
@pytest.mark.parametrize("shard_rows", [5, 1_000])
def test_rows_of_any_source_become_trls_ids(
    tmp_path: Path, demo_tokenizer: Any, shape: Any, kind: str, shard_rows: int
) -> None:
    rows = rows_of(23, shape)
    manifest = prepare([write(tmp_path / kind, rows)], demo_tokenizer, tmp_path / "tokens", shard_rows=shard_rows)
    assert ids(tmp_path / "tokens") == trl_ids(rows, demo_tokenizer)
    assert (manifest["rows_in"], manifest["groups"], manifest["dropped"]) == (23, 23, {})
    assert len(manifest["shards"]) == (5 if shard_rows == 5 else 1)


def test_a_prompt_without_a_column_of_its_own_is_what_both_have_in_common(tmp_path: Path, demo_tokenizer: Any) -> None:
    explicit = rows_of(9, chat)
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    prepare([write_jsonl(tmp_path / "chat.jsonl", implicit)], demo_tokenizer, tmp_path / "chat")
    assert ids(tmp_path / "chat") == trl_ids(implicit, demo_tokenizer) == trl_ids(explicit, demo_tokenizer)
    texts = [{"chosen": "what ? soup .", "rejected": "what ? pizza ."}, {"chosen": "i eat it", "rejected": "i eat"}]
    prepare([write_jsonl(tmp_path / "text.jsonl", texts)], demo_tokenizer, tmp_path / "text")
    assert ids(tmp_path / "text") == trl_ids(texts, demo_tokenizer)


def test_the_template_gets_tools_and_arguments_as_in_trl(tmp_path: Path, real_tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    rows = [row | {"tools": json.dumps([tool])} for row in rows_of(3, chat)] + [rows_of(1, chat)[0] | {"tools": None}]
    rows = [row | {"chat_template_kwargs": {"mipo": i}} for i, row in enumerate(rows)]
    tokenizer = real_tokenizer("qwen2.5")
    prepare([write_jsonl(tmp_path / "pairs.jsonl", rows)], tokenizer, tmp_path / "tokens")
    assert ids(tmp_path / "tokens") == trl_ids(rows, tokenizer)
    assert "function" in tokenizer.decode(ids(tmp_path / "tokens")[0][0])


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.parquet"])
@pytest.mark.parametrize("shard_rows", [1, 2, 3, 5, 50])
def test_a_group_is_in_one_shard_whatever_their_size(
    tmp_path: Path, demo_tokenizer: Any, kind: str, shard_rows: int
) -> None:
    draw, rows = random.Random(1), []
    for number, row in enumerate(rows_of(11, chat)):
        rows += [row | {"prompt_id": number, "rejected": one["rejected"]} for one in rows_of(draw.randint(1, 12), chat)]
    pairs = pl.DataFrame(rows)
    manifest = prepare([write(tmp_path / kind, rows)], demo_tokenizer, tmp_path / "tokens", shard_rows=shard_rows)
    whole, _ = tokenize(pairs, demo_tokenizer)
    assert ids(tmp_path / "tokens") == mipo_ids(whole)
    assert manifest["rows_in"] == pairs.height
    assert len(manifest["shards"]) > 1 or shard_rows == 50


def test_a_source_that_is_read_whole_is_one_shard(tmp_path: Path, demo_tokenizer: Any) -> None:
    rows = rows_of(23, text)
    pl.DataFrame(rows).write_csv(tmp_path / "pairs.csv")
    manifest = prepare([tmp_path / "pairs.csv"], demo_tokenizer, tmp_path / "tokens", shard_rows=5)
    assert (ids(tmp_path / "tokens"), len(manifest["shards"])) == (trl_ids(rows, demo_tokenizer), 1)


@pytest.mark.parametrize("numbers", [[None] * 23, [*["a"] * 11, *[5] * 12], [*[4] * 16, *["b"] * 7]])
def test_a_prompt_id_of_nulls_or_of_several_kinds_joins_no_rows(
    tmp_path: Path, demo_tokenizer: Any, numbers: list[Any]
) -> None:
    rows = [row | {"prompt_id": number} for row, number in zip(rows_of(23, text), numbers, strict=True)]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    manifest = prepare([path], demo_tokenizer, tmp_path / "tokens", shard_rows=4)
    assert ids(tmp_path / "tokens") == trl_ids(rows_of(23, text), demo_tokenizer)
    assert len(manifest["shards"]) == 6 or numbers[0] is not None


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_no_rows_and_a_changed_number_of_rows_are_errors(tmp_path: Path, demo_tokenizer: Any, suffix: str) -> None:
    path = tmp_path / f"pairs.{suffix}"
    write(path, rows_of(9, text))
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"none.jsonl: no such file"):
        prepare([tmp_path / "none.jsonl"], demo_tokenizer, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    with pytest.raises(ValueError, match=r"blank.jsonl: expected preference pairs, got no row"):
        prepare([tmp_path / "blank.jsonl"], demo_tokenizer, tmp_path / "tokens")

    def shortened(tasks: list[preparation.ShardTask], tokenizer: Any) -> Iterator[dict[str, Any]]:
        write(path, rows_of(8, text))
        yield from (task(tokenizer) for task in tasks)

    with pytest.raises(ValueError, match=rf"pairs.{suffix}: (expected 9 rows after row 0, got 8; )?was .*changed"):
        prepare([path], demo_tokenizer, tmp_path / "tokens", perform=shortened)
    assert shards.record_of(tmp_path / "tokens", 0) is None


def test_broken_pairs_are_dropped_by_name_and_all_rows_are_accounted_for(tmp_path: Path, demo_tokenizer: Any) -> None:
    good = rows_of(8, text)
    rows = [*good, text("what", "soup", "pizza") | {"chosen": None}, {"prompt": None, "chosen": "a", "rejected": "b"}]
    rows += [text("what " * 30, "soup", "pizza"), text("what", "soup " * 30, "pizza")]
    random.Random(0).shuffle(rows)
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    manifest = prepare([path], demo_tokenizer, tmp_path / "tokens", max_length=25)
    assert manifest["dropped"] == {
        "null chosen": 1, "null prompt": 1, "a prompt of 25 tokens or more": 1, "longer than 25 tokens": 1,
    }  # fmt: skip
    assert manifest["rows_in"] == len(rows) == manifest["groups"] + sum(manifest["dropped"].values())
    assert ids(tmp_path / "tokens") == trl_ids([row for row in rows if row in good], demo_tokenizer)


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path, real_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(real_tokenizer("qwen2.5"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'tool' %}{{ raise_exception('no') }}"
    )
    tokenizer.chat_template += "{% endif %}{% endfor %}"
    rows = rows_of(20, chat)
    rows[17]["prompt"][0]["role"] = "tool"
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ValueError, match=r"pairs.jsonl: row 18: the chat template refuses the conversation: no"):
        prepare([path], tokenizer, tmp_path / "tokens")
    assert shards.record_of(tmp_path / "tokens", 0) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a\xff", "chosen": "b", "rejected": "c"}', r"row 10.*not valid UTF-8"),
        (b'{"prompt": "a", "chosen": ', "row 10.*not valid JSON"),
        (
            b'{"prompt": 7, "chosen": "b", "rejected": "c"}',
            "row 10.*expected text or a list of messages .*, got a number: 7",
        ),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, demo_tokenizer: Any, line: bytes, message: str) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", rows_of(9, text))
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        prepare([path], demo_tokenizer, tmp_path / "tokens")


def test_after_a_stop_it_goes_on_and_makes_no_shard_twice(
    tmp_path: Path, demo_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(23, chat)
    pl.DataFrame(rows).write_parquet(tmp_path / "pairs.parquet")
    call = ([tmp_path / "pairs.parquet"], demo_tokenizer, tmp_path / "tokens")
    numbers, run = [], preparation.ShardTask.__call__

    def stopped(self: preparation.ShardTask, tokenizer: Any) -> dict[str, Any]:
        if len(numbers) == 2:
            raise KeyboardInterrupt
        numbers.append(self.number)
        return run(self, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(preparation.ShardTask, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(*call, shard_rows=5)
    with pytest.raises(FileNotFoundError, match="not finished; run the same command again"):
        PairStore.open(tmp_path / "tokens")
    numbers.clear()
    monkeypatch.setattr(
        preparation.ShardTask,
        "__call__",
        lambda self, tokenizer: (numbers.append(self.number), run(self, tokenizer))[1],
    )
    prepare(*call, shard_rows=5)
    assert numbers == [2, 3, 4]
    assert ids(tmp_path / "tokens") == trl_ids(rows, demo_tokenizer)
    damaged = next(path for path in (tmp_path / "tokens" / "shard-00001").iterdir() if path.suffix == ".arrow")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    numbers.clear()
    prepare(*call, shard_rows=5)
    assert numbers == [1]
    assert f"{tmp_path / 'tokens' / 'shard-00001'}: is damaged, and is made again" in capsys.readouterr().out
    assert damaged.read_bytes() == content


def test_tokens_of_other_pairs_or_settings_are_refused(tmp_path: Path, demo_tokenizer: Any) -> None:
    path, folder = write_jsonl(tmp_path / "pairs.jsonl", rows_of(9, text)), tmp_path / "tokens"
    prepare([path], demo_tokenizer, folder)
    before = ids(folder)
    with pytest.raises(ValueError, match="other pairs, or of another tokenizer or max_length"):
        prepare([path], demo_tokenizer, folder, max_length=9)
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(9, text, seed=1))
    with pytest.raises(ValueError, match="other pairs"):
        prepare([other], demo_tokenizer, folder)
    prepare([path, other], demo_tokenizer, folder)
    assert ids(folder)[:9] == before
    with pytest.raises(ValueError, match="tokens of more pairs"):
        prepare([path], demo_tokenizer, folder)
    (folder / "shard-00001").rename(folder / "shard-00002")  # a gap before what is left over
    with pytest.raises(ValueError, match="tokens of more pairs"):
        prepare([path], demo_tokenizer, folder)


def test_shards_made_elsewhere_are_the_same(tmp_path: Path, demo_tokenizer: Any) -> None:
    """On Ray, as in `mipo tokens --engine ray`."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mipo[ray]'")
    from mipo.io import cluster

    pl.DataFrame(rows_of(23, chat)).write_parquet(tmp_path / "pairs.parquet")
    call = ([tmp_path / "pairs.parquet"], demo_tokenizer)
    prepare(*call, tmp_path / "here", shard_rows=9)
    with cluster.connected(cores=2):
        prepare(*call, tmp_path / "there", shard_rows=9, perform=cluster.perform)
    assert not ray.is_initialized()
    assert ids(tmp_path / "here") == ids(tmp_path / "there")


def test_what_the_tasks_share_is_sent_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mipo[ray]'")
    from mipo.io import cluster

    pickled = tmp_path / "pickled"

    class Shared:  # a local one, which the workers need not import
        def __reduce__(self) -> Any:
            with pickled.open("ab") as file:
                file.write(b".")
            return str, ("shared",)

    with cluster.connected(cores=2):
        done = cluster.perform([lambda shared, n=n: (n, shared) for n in range(5)], Shared())
        assert sorted(done) == [(n, "shared") for n in range(5)]
    assert pickled.read_bytes() == b"."


def test_the_command_accounts_for_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [*rows_of(9, chat), rows_of(1, chat)[0] | {"chosen": None}])
    model = str(demo.HERE / "model")
    command = ["tokens", str(path), "--tokenizer", model, "--output", str(tmp_path / "tokens")]
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert "10 rows in, 9 out; null chosen: 1" in output
    assert "tokenized by tokenizers, which is slow, since" in output
    assert cli.main([*command, "--encoder", "fastokens"]) == 0, "existing shards are kept"
    assert cli.main([*command, "--address", "auto"]) == 2


def beside(path: Path, rows: list[dict[str, Any]], tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `mipo tokens` prints about the prompts of a file."""
    model = str(demo.HERE / "model")
    arguments = [str(write_jsonl(path, rows)), "--tokenizer", model, "--output", str(path.with_suffix(".tokens"))]
    assert cli.main(["tokens", *arguments]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{path.name}: ")]


@pytest.mark.parametrize("shape", [text, chat])
@pytest.mark.parametrize("shard_rows", [5, 1_000])
def test_a_missing_prompt_means_the_same_in_every_batch(
    tmp_path: Path, demo_tokenizer: Any, shape: Any, shard_rows: int
) -> None:
    """One row has the field, so all rows without one are dropped by name; as in TRL no row's prompt is extracted."""
    rows = rows_of(23, shape)
    whole = shape("what", "soup", "pizza")
    bare = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    for place in (0, 11, 22):
        mixed = [*bare[:place], whole, *bare[place:]]
        path = write_jsonl(tmp_path / f"{place}.jsonl", mixed)
        manifest = prepare([path], demo_tokenizer, tmp_path / f"tokens-{place}", shard_rows=shard_rows)
        assert manifest["dropped"] == {"null prompt": 23}
        assert ids(tmp_path / f"tokens-{place}") == trl_ids([whole], demo_tokenizer)
    path = write_jsonl(tmp_path / "bare.jsonl", bare)
    manifest = prepare([path], demo_tokenizer, tmp_path / "bare", shard_rows=shard_rows)
    assert (manifest["dropped"], ids(tmp_path / "bare")) == ({}, trl_ids(bare, demo_tokenizer))
    without = [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in rows]
    path = write_jsonl(tmp_path / "chosen.jsonl", [*without, whole])
    manifest = prepare([path], demo_tokenizer, tmp_path / "chosen", shard_rows=shard_rows)
    assert manifest["dropped"] == {"null rejected": 23}


def test_a_text_prompt_beside_messages_is_refused_with_what_to_do(tmp_path: Path, demo_tokenizer: Any) -> None:
    """UltraFeedback's shape, which TRL's DPOTrainer does not take either."""
    explicit = rows_of(9, chat)
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    asked = [row["prompt"][-1]["content"] for row in explicit]
    for sides, what in (
        (implicit, "begin with the prompt, so leave the column prompt out"),
        (explicit, "write prompt"),
    ):
        rows = [{**row, "prompt": prompt} for row, prompt in zip(sides, asked, strict=True)]
        path = write_jsonl(tmp_path / "pairs.jsonl", [rows[0] | {"prompt": None}, *rows])
        with pytest.raises(ValueError, match=rf"pairs\.jsonl: row 2: prompt is text, and .* are messages; .*{what}"):
            prepare([path], demo_tokenizer, tmp_path / "tokens")
    prepare([write_jsonl(path, implicit)], demo_tokenizer, tmp_path / "tokens")
    assert ids(tmp_path / "tokens") == trl_ids(explicit, demo_tokenizer)


@pytest.mark.parametrize("shape", [text, chat])
def test_a_prompt_that_stands_twice_is_said_and_kept_as_in_trl(
    tmp_path: Path, demo_tokenizer: Any, capsys: pytest.CaptureFixture[str], shape: Any
) -> None:
    rows = rows_of(20, shape)
    twice = [row | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    mixed = [row if place % 2 else repeated for place, (row, repeated) in enumerate(zip(rows, twice, strict=True))]
    (said,) = beside(tmp_path / "twice.jsonl", mixed, demo_tokenizer, capsys)
    assert "in 10 rows chosen and rejected begin with the prompt, which so stands twice, as in TRL; if" in said
    assert ids(tmp_path / "twice.tokens") == trl_ids(mixed, demo_tokenizer)
    assert beside(tmp_path / "once.jsonl", rows, demo_tokenizer, capsys) == []


def test_a_prompt_under_another_name_is_said(
    tmp_path: Path, demo_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": 1, "question": row["prompt"], **row} for row in rows_of(9, text)]
    for row in rows:
        del row["prompt"]
    (said,) = beside(tmp_path / "question.jsonl", rows, demo_tokenizer, capsys)
    assert said == (
        "question.jsonl: no column 'prompt', so a prompt is what chosen and rejected begin with in common, as in TRL; "
        "if the prompt is in 'question', rename that column to 'prompt'"
    )


def test_a_run_has_one_split(tmp_path: Path, demo_tokenizer: Any) -> None:
    run = tmp_path / "run"
    (run / "responses").mkdir(parents=True)
    links = {"prompt_id": [0], "asked_id": [0], "chosen_id": [0], "rejected_id": [0], "reason": [None]}
    pl.DataFrame(links).write_parquet(run / "pairs.parquet")
    with pytest.raises(ValueError, match="run: no split 'test'; the pairs of a run are one split, train"):
        prepare([run], demo_tokenizer, tmp_path / "tokens", split="test")
