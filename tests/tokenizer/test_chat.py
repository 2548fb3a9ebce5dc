"""Laws of chat: generation and training see the same ids for a composed prompt."""

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest

import mipo.demo
from mipo import contrast
from mipo.io.rowfile import open_rows
from mipo.models.model import Model
from mipo.pairing.filter import ResponseStates, add_reasons, keep
from mipo.pairing.texts import texts_of, with_texts
from mipo.responses import generation
from mipo.responses.engines.contract import Answer, Work
from mipo.responses.engines.local import Local
from mipo.responses.requests import compose_requests, link
from mipo.tokenizer import chat
from mipo.tokens.groups import tokenize

PROMPTS = ["Name a fruit.", "  Two spaces  ", "Größe?\n\n日本語 👍🏽", "[INST] <|im_end|> {{ x }}", "a" * 300]


@pytest.mark.parametrize("name", ["demo", "qwen2.5", "smollm2", "gpt2", "stories260K"])
@pytest.mark.parametrize("with_context", [True, False])
def test_generation_and_training_give_the_same_ids_for_the_same_prompt(
    real_tokenizer: Callable[[str], Any], demo_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str,
    with_context: bool,
) -> None:  # fmt: skip
    tokenizer = demo_tokenizer if name == "demo" else real_tokenizer(name)
    contexts = {"context": [f"I like {i}." for i in range(len(PROMPTS))]} if with_context else {}
    prompts = pl.DataFrame({"prompt": PROMPTS, **contexts})
    model = Model.of(Model(str(mipo.demo.HERE / "model")).weights, tokenizer)
    requests = compose_requests(prompts, drawn := contrast(prompts), chat=model.is_chat)

    seen: list[list[int]] = []

    class Listening(Local):
        """An engine that keeps the ids that it gets."""

        def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
            seen.extend(ids.tolist() for block in work.blocks(work.rows) for ids in block.ids)
            yield [(row, Answer(f" answer {row}", response_tokens=3)) for row in work.missing.tolist()]

    monkeypatch.setitem(model.__dict__, "config", _Endless())
    responses = generation.generate(requests.prompts, model, engine=Listening())
    pairs = keep(add_reasons(link(prompts, drawn, requests), states := ResponseStates.of(responses, 99)))
    with open_rows(texts_of(responses), 99) as texts:
        store, dropped = tokenize(with_texts(pairs, states.ids, texts), tokenizer)
    assert not dropped
    for row in range(len(store)):
        assert store[row]["prompt_ids"] == seen[int(pairs["asked_id"][row])]


class _Endless:
    """The config of a model with no bound on its context."""

    max_position_embeddings = None

    def get_text_config(self) -> "_Endless":
        return self


def test_a_template_is_opened_once_for_equal_tokenizers(demo_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat._opened.clear()
    opened: list[Any] = []
    plain = chat.open_template
    monkeypatch.setattr(chat, "open_template", lambda tokenizer: opened.append(tokenizer) or plain(tokenizer))
    composed = pl.Series([[{"role": "user", "content": "Name a fruit."}]])
    first = chat.render(composed, demo_tokenizer)
    again = mipo.models.loading.load_tokenizer(str(mipo.demo.HERE / "model"))
    assert chat.render(composed, again).equals(first)
    assert len(opened) == 1
    again.chat_template = again.chat_template + "!"
    assert chat.render(composed, again)[0] == first[0] + "!"
    assert len(opened) == 2
