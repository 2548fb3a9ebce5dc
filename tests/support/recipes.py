"""Recipes of the tests: YAML texts, what is wrong in them, and those that mipo ships."""

from pathlib import Path

import pytest

from mipo import demo
from mipo.errors import InputError, NotThereError
from mipo.run import recipe

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted((ROOT / "recipes").glob("*.yaml")), demo.HERE / "recipe.yaml"]
HEAD = "model: some/model\nprompts: {source: prompts.jsonl}\n"


def write_recipe(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(head + text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, head: str = HEAD) -> str:
    path = write_recipe(folder, text, head)
    with pytest.raises((InputError, NotThereError)) as error:
        recipe.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# (what is written, the setting's full name, what is allowed, what it got)
WRONG = [
    ("contrast: {kind: foo}", "contrast.kind", "context, dropped, partial or random", "'foo'"),
    ("contrast: {kind: }", "contrast.kind", "context, dropped, partial or random", "null"),
    ("contrast: {negatives: 0}", "contrast.negatives", "a whole number of at least 1", "0"),
    ("contrast: {negatives: 1.0}", "contrast.negatives", "a whole number of at least 1", "1.0"),
    ("contrast: {negatives: '1'}", "contrast.negatives", "a whole number of at least 1", "'1'"),
    ("contrast: {negatives: yes}", "contrast.negatives", "a whole number of at least 1", "true"),
    ("contrast: {match: 5}", "contrast.match", "text or a list of texts", "5"),
    ("contrast: {match: [task, 5]}", "contrast.match[1]", "text", "5"),
    ("contrast: {differ: {user: 1}}", "contrast.differ", "text or a list of texts", "{'user': 1}"),
    ("contrast: {near: prompt}", "contrast.near", "[text, a number of at least 0] or null", "'prompt'"),
    ("contrast: {near: [prompt]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt']"),
    ("contrast: {near: [prompt, -1]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt', -1]"),
    ("contrast: {near: [prompt, .inf]}", "contrast.near", "[text, a number of at least 0] or null", "['prompt', inf]"),
    ("contrast: {near_duplicates: 0}", "contrast.near_duplicates", "a number above 0 and at most 1 or null", "0"),
    ("contrast: {kind: dropped, negatives: 2}", "contrast.negatives", "1 with kind 'dropped'", "2"),
    ("responses: {top_p: 7}", "responses.top_p", "a number above 0 and at most 1", "7"),
    ("responses: {top_p: 0}", "responses.top_p", "a number above 0 and at most 1", "0"),
    ("responses: {top_p: .nan}", "responses.top_p", "a number above 0 and at most 1", "nan"),
    ("responses: {temperature: -0.1}", "responses.temperature", "a number of at least 0", "-0.1"),
    ("responses: {samples: 0}", "responses.samples", "a whole number of at least 1", "0"),
    ("responses: {choose: good}", "responses.choose", "best or each", "'good'"),
    ("responses: {prices: {input: -1}}", "responses.prices.input", "a number of at least 0", "-1"),
    ("responses: {prices: 3}", "responses.prices", "settings as `name: value`", "3"),
    ("responses: {temperature: .inf}", "responses.temperature", "a number of at least 0", "inf"),
    ("responses: {temperature: warm}", "responses.temperature", "a number of at least 0", "'warm'"),
    ("responses: {max_new_tokens: 1e3}", "responses.max_new_tokens", "a whole number of at least 1", "1000.0"),
    ("responses: {batch_size: }", "responses.batch_size", "a whole number of at least 1", "null"),
    ("responses: 5", "responses", "settings as `name: value`", "5"),
    ("responses: [temperature]", "responses", "settings as `name: value`", "['temperature']"),
    ("tokens: {max_length: 0}", "tokens.max_length", "a whole number of at least 1 or null", "0"),
    ("trainer: {learning_rate: fast}", "trainer.learning_rate", "a number of at least 0", "'fast'"),
    ("trainer: {learning_rate: '5e-7'}", "trainer.learning_rate", "a number of at least 0", "'5e-7'"),
    ("trainer: {learning_rate: -1}", "trainer.learning_rate", "a number of at least 0", "-1"),
    ("trainer: {beta: .nan}", "trainer.beta", "a number of at least 0", "nan"),
    ("trainer: {max_steps: many}", "trainer.max_steps", "a whole number", "'many'"),
    ("trainer: {num_train_epochs: 0}", "trainer.num_train_epochs", "a number above 0", "0"),
    ("trainer: {bf16: 'no'}", "trainer.bf16", "true or false or null", "'no'"),
    ("trainer: {trust_remote_code: 1}", "trainer.trust_remote_code", "true or false", "1"),
    ("trainer: {lr_scheduler_type: cosin}", "trainer.lr_scheduler_type", "cosine_with_min_lr", "'cosin'"),
    ("trainer: {save_strategy: no}", "trainer.save_strategy", "best, epoch, no or steps", "false"),
    ("trainer: {seed: 4294967296}", "trainer.seed", "a whole number from 0 to 4294967295", "4294967296"),
    ("trainer: {report_to: [wandb, 5]}", "trainer.report_to[1]", "text", "5"),
    ("trainer: [beta, 0.1]", "trainer", "settings", "['beta', 0.1]"),
    ("trainer: false", "trainer", "settings", "false"),
    ("lora: {r: 0}", "lora.r", "a whole number of at least 1", "0"),
    ("lora: {r: sixteen}", "lora.r", "a whole number of at least 1", "'sixteen'"),
    ("lora: {bias: some}", "lora.bias", "all, lora_only or none", "'some'"),
    ("lora: {lora_dropout: 1.5}", "lora.lora_dropout", "a number of at least 0 and below 1", "1.5"),
    ("lora: {target_modules: 5}", "lora.target_modules", "a list of texts, text or null", "5"),
    ("lora: true", "lora", "settings or null", "true"),
    ("evaluation: {rows: 0}", "evaluation.rows", "a whole number of at least 1", "0"),
    ("evaluation: {negatives: 0}", "evaluation.negatives", "a whole number of at least 1 or null", "0"),
    ("evaluation: {rule: strict}", "evaluation.rule", "settings as `name: value`", "'strict'"),
    ("evaluation: {rule: {answer: a, pattern: '['}}", "evaluation.rule.pattern", "a regular expression", "'['"),
    ("evaluation: {rule: {answer: a, pattern: 'x{99999999999}'}}", "evaluation.rule.pattern", "a regular expression", "'x{99999999999}'"),  # noqa: E501
    ("evaluation: {rule: {answer: a, pattern: '(.)'}}", "evaluation.rule.pattern", "a group `answer`", "'(.)'"),
    ("evaluation: {rule: {answer: a, pattern: 5}}", "evaluation.rule.pattern", "text or null", "5"),
    ("seed: 4294967296", "seed", "a whole number from 0 to 4294967295", "4294967296"),
    ("seed: -1", "seed", "a whole number from 0 to 4294967295", "-1"),
    ("seed: '0'", "seed", "a whole number from 0 to 4294967295", "'0'"),
    ("control: random", "control", "sft, shuffled or null", "'random'"),
    ("max_dropped: {x: often}", "max_dropped.x", "a number from 0 to 1", "'often'"),
    ("max_dropped: {x: 1.5}", "max_dropped.x", "a number from 0 to 1", "1.5"),
    ("max_dropped: .nan", "max_dropped", "a number from 0 to 1 or settings", "nan"),
    ("max_dropped: 1%", "max_dropped", "a number from 0 to 1 or settings", "'1%'"),
    ("trust_remote_code: 'no'", "trust_remote_code", "true or false", "'no'"),
    ("trust_remote_code: 'false'", "trust_remote_code", "true or false", "'false'"),
    ("trust_remote_code: 0", "trust_remote_code", "true or false", "0"),
]  # fmt: skip
