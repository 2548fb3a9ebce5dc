"""The demo: its world, its shipped model, and its recipe as an ordinary one."""

import json
import random
import re

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from mipo import demo
from mipo.demo import train_base, world
from mipo.run.training_settings import load_checked

MODEL = demo.HERE / "model"


def test_the_weights_are_what_the_script_describes():
    config = json.loads((MODEL / "config.json").read_text())
    assert {name: config[name] for name in train_base.CONFIG} == train_base.CONFIG
    from transformers import AutoConfig, AutoModelForCausalLM

    described = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL)).state_dict()
    described = {name: tuple(value.shape) for name, value in described.items()}
    with safe_open(MODEL / "model.safetensors", "np") as shipped:
        shapes = {name: tuple(shipped.get_slice(name).get_shape()) for name in sorted(shipped.keys())}
    if config["tie_word_embeddings"]:
        del described["lm_head.weight"]
    assert shapes == described


def test_what_is_shipped_is_small_and_has_no_pickle():
    files = list(MODEL.iterdir())
    assert sum(file.stat().st_size for file in files) < 2_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]


def test_the_tokenizer_is_the_script_s():
    shipped = Tokenizer.from_file(str(MODEL / "tokenizer.json")).get_vocab()
    assert set(world.vocabulary()) <= set(shipped)
    assert len(shipped) == json.loads((MODEL / "config.json").read_text())["vocab_size"]


def test_test_users_are_unseen_combinations(tmp_path):
    train, test = world.write(tmp_path, seed=7)
    users = {f"user-{number:05d}": user for number, user in enumerate(world.users())}
    rows = {
        name: [json.loads(line) for line in path.read_text().splitlines()]
        for name, path in (("train", train), ("test", test))
    }
    assert (len(rows["train"]), len(rows["test"])) == (1024, 512)
    assert all(world.held_out(users[row["user"]]) for row in rows["test"])
    assert not any(world.held_out(users[row["user"]]) for row in rows["train"])


def test_every_row_states_the_answer_and_its_pattern_accepts_it(tmp_path):
    for path in world.write(tmp_path, train=200, test=200, seed=8):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["answer"] in row["context"]
            topic = next(name for name, topic in world.TOPICS.items() if row["answer"] in topic.values)
            answer = world.answer(topic, row["answer"], random.Random(0))
            assert re.search(row["pattern"], answer)["answer"] == row["answer"]
            assert not re.search(row["pattern"], f"{answer} and more")
            assert not re.search(row["pattern"], "something else")


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first, second = (world.write(tmp_path / name, train=20, test=20, seed=5) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert world.write(tmp_path / "c", train=20, test=20, seed=6)[0].read_bytes() != first[0].read_bytes()


def test_the_recipe_is_one_like_any_other(tmp_path):
    loaded = load_checked(demo.HERE / "recipe.yaml", tmp_path)
    assert loaded.model == str(MODEL.resolve())


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_the_demo_runs_to_its_report(control, tmp_path, monkeypatch):
    write = world.write
    monkeypatch.setattr(world, "write", lambda folder, *, seed: write(folder, train=48, test=40, seed=seed))
    folder = demo.run_demo(seed=11, output=tmp_path, control=control)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["control"] == control
    page = (folder / "report.html").read_text()
    assert (folder / "control-shuffled").exists() == (control is None)
    assert "shuffled" in page
