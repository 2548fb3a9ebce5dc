# ruff: noqa: E501 (templates stand in one line)
"""Templates: what Rust renders is what transformers renders, to the byte and to the error, or the room says why not."""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import template_grammar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mipo import _native
from mipo.tokenizer import template
from mipo.tokenizer.template import CONTENTS, EVERY, open_template

# What TRL's templates demand of every chat and Rust does not have; all others are rendered by Rust. Shorter is better.
LEFT = dict.fromkeys(("gptoss", "gptoss_training", "llama3_2"), "the function 'strftime_now'")
LOOP = "{% for message in messages %}"
# Hand-made templates that Rust must render.
NASTY = {
    "strips": LOOP + "[{{ message['content'].strip() }}|{{ message.content | trim }}|{{ message.content.rstrip('\\n ') }}"
    "|{{ message.content.lstrip('<a') }}]{% endfor %}",
    "a prompt alone is another": "{% if messages[-1].role == 'assistant' %}A{% else %}B{% endif %}{{ messages|length }}"
    "{{ messages[-1]['content'] if messages|length > 1 else messages[0].content|upper }}",
    "a default system prompt": "{% if messages[0].role != 'system' %}{{ bos_token + 'Be kind.\\n' }}{% endif %}"
    + LOOP + "{{ message.role ~ ': ' ~ message.content ~ '\n' }}{% endfor %}",
    "no system role": LOOP + "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ message.content }}{% endfor %}",
    "roles alternate": LOOP + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must ' + 'alternate, not ' + message.role) }}{% endif %}{{ message.content }}{% endfor %}",
    "the last one asks": LOOP + "<{{ message.role }}>{{ message.content }}{% if loop.last and add_generation_prompt %}"
    "<assistant>{% elif not loop.last %};{% endif %}{% endfor %}",
    "a namespace counts": "{% set ns = namespace(n=0, said='', done=false, seen=none) %}" + LOOP +
    "{% set ns.n = ns.n + 1 %}{% if not ns.done and message.content %}{% set ns.said = message.content %}"
    "{% set ns.done = true %}{% endif %}{% set ns.seen = message.role %}{% endfor %}"
    "{% set ns.count = ns.n %}{{ ns.count }}{{ ns.items is defined }}{{ ns.n }}{{ ns.said }}{{ ns.done }}{{ ns.seen }}{{ ns.seen is none }}{{ ns.more is defined }}",
    "backwards": "{% for m in messages[::-1] %}{{ loop.revindex }}{{ m.content[::-1] }}{% endfor %}{{ messages[1:]|length }}"
    "{% for m in messages[1:-1] %}{{ m.content[1:3] }}{{ m.content[-2:] }}{{ m.content[0] }}{% endfor %}",
    "white space control": "  {%- if true %}\n  a  \n{%- endif -%}\n\n  b\n" + LOOP + "\n   {{- message.content -}}   \n\t{% endfor %}\n\n",
    "white space kept": "{%+ if true %} a\n {% endif +%}\n" + LOOP + "\n  {{ message.content }}\n  {% set x = 1 %}\n{% endfor %}  z\n\n",
    "comments and raw": "{# {{ no }} #}{% raw %}{{ raw }} {% x %} {# y #}{% endraw %}{{ '{{' }}{{ '{%' }}\r\n{ " + LOOP +
    "{#- cut -#} {{ message.content }}{% endfor %}{",
    "loops in loops": LOOP + "{% set i = loop.index0 %}{% for other in messages %}{{ i }}{{ loop.index0 }}{{ loop.first }}"
    "{% if other.content == message.content %}={% endif %}{% endfor %}{{ loop.index }}{% endfor %}{{ i is defined }}",
    "scopes": "{% set x = 'out' %}" + LOOP + "{{ x }}{% if loop.first %}{% set x = message.role %}{% set y = 'in' %}{% endif %}"
    "{{ x }}{{ y }}{% generation %}{% set x = 'gen' %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}{{ x }}{{ y }}"
    "{% with x = 'w', z = x %}{{ x }}{{ z }}{% set x = 'v' %}{% endwith %}{{ x }}{% set q %}<{{ x }}>{% endset %}{{ q }}",
    "json": LOOP + "{{ message.content | tojson }}{{ message.role|tojson(ensure_ascii=false) }}{{ 3|tojson }}"
    "{{ none|tojson }}{{ true|tojson }}{% endfor %}",
    "what is defined": "{{ tools is defined }}{{ tools is none }}{{ x is defined }}{{ x }}{{ documents }}{{ bos_token is defined }}"
    "{{ strftime_now is defined }}" + LOOP + "{{ message.tool_calls is defined }}{{ message.content is string }}"
    "{{ message is mapping }}{{ message['content'] is iterable }}{{ 'name' in message }}{{ message.get('name', 'nobody') }}"
    "{{ message.reasoning_content is defined }}{{ message.thinking|default('none') }}{{ message.name or 'x' }}{% endfor %}",
    "ternaries": LOOP + "{{ 'a' if message.role == 'user' else 'b' if loop.first else 'c' }}{{ 'd' if loop.last }}"
    "{{ message.content and 'full' or 'empty' }}{{ not message.content }}{{ (message.content or none) is none }}{% endfor %}",
    "macros": "{% macro say(m, end='.', n=1) %}{% set t = m.content %}{{ t|trim }}{{ end * n }}{% endmacro %}"
    "{% macro twice(m) %}{{ say(m, '!') }}{{ say(m, n=3) }}{% endmacro %}" + LOOP + "{{ twice(message) }}"
    "{% set s = say(message, end='') ~ '' %}{{ s|length }}{% endfor %}",
    "sums and products": LOOP + "{{ '-' * loop.index }}{{ loop.index // 2 }}{{ loop.index % 3 }}{{ 7 - loop.index * 2 }}"
    "{{ -loop.index0 }}{{ 'ab' * 2 }}{{ 'x' * (loop.index0 - 1) }}{% endfor %}{{ 1 + 2 * 3 }}",
    "methods": LOOP + "{% set c = message.content %}{{ c.split('</think>')[-1] }}{{ c.split('\n')[0] }}{{ c.split('a')|length }}"
    "{{ c.split()|join('+') }}{{ c.replace('a', 'bb') }}{{ c|replace('\n', '\\\\n') }}{{ c.startswith('<') }}{{ c.endswith('\n') }}"
    "{{ c.find('l') }}{{ c.count('l') }}{{ '|'.join(c.split('l')) }}{{ 'think' in c }}{{ c not in ['', ' '] }}"
    "{{ c.removeprefix('<think>').removesuffix('\n') }}{{ c|length }}{{ c == 'Hello' }}{{ c < 'a' }}{% endfor %}",
    "letters": LOOP + "{{ message.role|capitalize }}{{ message.role.upper() }}{{ message.content|lower }}"
    "{{ message.content.title() }}{% endfor %}",
    "lists": "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|map(attribute='content')|join('|') }}"
    "{% for m in messages|rejectattr('role', 'equalto', 'user') %}{{ m.content }}{% else %}none{% endfor %}"
    "{{ (messages|last).content }}{{ (messages|selectattr('role', 'eq', 'system')|first).content }}",
    "only some": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{% for i in range(messages|length) %}"
    "{{ i }}{{ messages[i].role }}{% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
    "neighbours": LOOP + "{{ loop.previtem.role if loop.previtem }}<{{ message.content }}>{% if loop.nextitem is defined and "
    "loop.nextitem.role == 'tool' %}T{% endif %}{% endfor %}",
    "raises on what is missing": LOOP + "{{ messages[loop.index].content }}{% endfor %}",
    "adds what is missing": LOOP + "{{ 'a' + message.name }}{% endfor %}",
    "a constant": "Nothing is said.\n",
}  # fmt: skip
# Hand-made templates that must be left to transformers, and the reason that is named.
REFUSED = {
    "{{ strftime_now('%d %b %Y') }}": "the function 'strftime_now' in line 1",
    "{{ messages }}": "the text of sequence",
    "{{ 'a' ~ messages }}": "the text of sequence",
    "{{ messages[0] | tojson }}": "the filter 'tojson' of map",
    "{{ messages[0].items() }}": "the method 'items'",
    "{{ messages[0].items is defined }}": "the attribute 'items'",
    "{{ 1.5 }}": "the constant 1.5",
    "{{ 3 / 2 }}": "an expression of the type Div",
    "{{ 2147483648 }}": "the constant 2147483648",
    "{{ '%s' | format(messages[0].role) }}": "the filter 'format'",
    "{{ '%s' % messages[0].role }}": "tried to use % operator on unsupported types",
    "{{ '{}'.format(messages[0].role) }}": "the method 'format'",
    "{{ messages[0]['__class__'] }}": "the attribute '__class__'",
    "{{ messages[0][messages[0].role] }}": "a field of map",
    "{{ {'a': 1} }}": "an expression of the type Dict",
    "{% for k, v in messages[0].items() %}{{ k }}{% endfor %}": "a loop over tuples",
    "{% for k in messages[0] %}{{ k }}{% endfor %}": "the items of map",
    "{{ lipsum(n=1) is string }}": "the function 'lipsum'",
    "{{ messages[0].content | indent }}": "the filter 'indent'",
    "{{ messages[0].content is upper }}": "the test 'upper'",
    "{{ 1 < 2 < 3 }}": "a chain of comparisons",
    "{{ self }}{% set self = 1 %}": "a variable named 'self'",
    "{% for m in messages recursive %}{% endfor %}": "a recursive loop",
    "{{ messages[::2]|length }}": "a slice with another step",
    "{{ '&' | escape }}": "the filter 'escape'",
    "{% set u = messages|map(attribute='role') %}{{ u|join }}": "the filter 'map' whose result is kept",
    "{% filter upper %}a{% endfilter %}": "a statement of the type FilterBlock",
    "{% set ns = namespace(n=1) %}{% for m in messages if ns.n %}{% set ns.n = 0 %}{% endfor %}": "a loop whose condition may",
    "{% for m in messages if loop is defined %}{% endfor %}": "a loop whose condition counts",
    "{% for m in messages %}{% with %}{% break %}{% endwith %}{% endfor %}": "a break within a scope",
    "{% for m in messages %}{% continue %}{% else %}x{% endfor %}": "a continue within a scope",
    "{{ range(3)|length }}": "a range that is kept",
    "{{ ('a', 'b')[1:]|length }}": "a slice of a tuple",
    "{% set x = range(3, 9, 2)|list %}": "a range with another step than 1 or -1",
    "{{ 'É'.lower() }}": "upper or lower case of other letters than ASCII's",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}": "a macro that asks for its caller",
}
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_template(tokenizer: Any, source: str | dict[str, str]) -> Any:
    made = copy.copy(tokenizer)
    made.chat_template = source
    return made


def shipped() -> list[Path]:
    trl = pytest.importorskip("trl")
    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def said(tokenizer: Any, messages: Any, prompt: bool) -> Any:
    """What transformers renders; of an error, that there is one."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception:
        return None


def check(tokenizer: Any, native: _native.Template, conversations: list[list[dict[str, Any]]]) -> int:
    """The law: Rust's text is transformers'. Returns the conversations that Rust left and transformers renders."""
    left = 0
    for prompt in (False, True):
        series = pl.Series("asked", conversations, dtype=KIND)
        offsets, data, failed = native.render(series, prompt)
        errors = dict(failed)
        for row, messages in enumerate(conversations):
            expected = said(tokenizer, messages, prompt)
            if row in errors:
                left += expected is not None
            else:
                assert bytes(data[offsets[row] : offsets[row + 1]]).decode() == expected, messages
    return left


ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "User", "", "é\n"])
CHARACTERS = st.sampled_from(
    list(" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2003\u2028\u200b\ufeff<>/{}%#'\"\\|aAlızÉß日🙂\0")
)
PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_response>", "</tool_response>", "<|im_end|>", "{{", "{%", "None"]
)
TEXTS = st.lists(CHARACTERS | PIECES | st.text(max_size=4), max_size=12).map("".join) | st.sampled_from(CONTENTS)
TURNS = st.fixed_dictionaries(
    {"role": ROLES, "content": TEXTS},
    optional={"reasoning_content": TEXTS, "thinking": TEXTS, "reasoning": TEXTS, "name": TEXTS},
)
CHATS = st.lists(st.lists(TURNS, min_size=1, max_size=6), min_size=1, max_size=8)
FIELDS = ("role", "content", "reasoning_content", "thinking", "reasoning", "name")
KIND = pl.List(pl.Struct(dict.fromkeys(FIELDS, pl.String)))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_trl_templates_go_through_rust_but_for_those_that_are_named(path, demo_tokenizer):
    tokenizer = with_template(demo_tokenizer, path.read_text())
    opened = open_template(tokenizer)
    if path.stem in LEFT:
        assert opened.native is None
        assert LEFT[path.stem] in opened.why
        return
    assert opened.why is None
    check(tokenizer, opened.native, list(template._conversations()))


def test_the_table_of_trl_templates(capsys):
    names = {path.stem for path in shipped()}
    assert set(LEFT) <= names
    with capsys.disabled():
        print(f"\n{len(names) - len(LEFT)} of TRL's {len(names)} templates in Rust; not:", *sorted(LEFT))


@pytest.mark.parametrize("name", NASTY)
def test_nasty_templates_go_through_rust(name, demo_tokenizer):
    tokenizer = with_template(demo_tokenizer, NASTY[name])
    opened = open_template(tokenizer)
    assert opened.why is None
    assert opened.native is not None
    check(tokenizer, opened.native, list(template._conversations()))


@pytest.mark.parametrize("source", REFUSED)
def test_what_rust_does_not_have_is_left_and_named(source, demo_tokenizer):
    opened = open_template(with_template(demo_tokenizer, source))
    assert opened.native is None
    assert REFUSED[source] in opened.why
    chats = [[{"role": "user", "content": "Hi"}]]
    asked = opened.render(pl.Series(chats), add_generation_prompt=False).to_list()
    assert asked == [opened.tokenizer.apply_chat_template(chats[0], tokenize=False)]


def test_a_branch_that_no_chat_of_texts_reaches_demands_nothing(demo_tokenizer):
    source = "{% if tools %}{{ strftime_now('%Y') }}{% elif x is defined and x %}{{ messages }}{% else %}ok{% endif %}"
    source += "{{ strftime_now('%Y') if messages[0].content is not string else '' }}{{ 'a' if not documents }}"
    assert open_template(with_template(demo_tokenizer, source)).why is None


@SLOW
@given(chats=CHATS, name=st.sampled_from(sorted(NASTY)))
def test_never_a_difference_on_nasty_templates(chats, name, demo_tokenizer, opened):
    check(*opened(demo_tokenizer, NASTY[name]), chats)


@SLOW
@given(chats=CHATS, path=st.sampled_from([path for path in shipped() if path.stem not in LEFT]))
def test_never_a_difference_on_shipped_templates(chats, path, demo_tokenizer, opened):
    check(*opened(demo_tokenizer, path.read_text()), chats)


@SLOW
@given(seed=st.integers(0, 2**64), chats=CHATS)
def test_never_a_difference_on_random_templates(seed, chats, demo_tokenizer):
    """Neither a probe nor a sample stands between a difference and a text here."""
    tokenizer = with_template(demo_tokenizer, template_grammar.template(random.Random(seed)))
    native, why = template._native_of(tokenizer, tokenizer.chat_template)
    assert (native is None) == (why is not None)
    if native is not None:
        check(tokenizer, native, chats)


@pytest.fixture(scope="session")
def opened():
    """Opens each template once, without the probe."""
    made: dict[str, Any] = {}

    def get(tokenizer, source):
        if source not in made:
            changed = with_template(tokenizer, source)
            made[source] = changed, template._native_of(changed, source)[0]
        return made[source]

    return get


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2"])
def test_real_conversations(name, real_tokenizer, rows_of, shared):
    tokenizer = real_tokenizer(name)
    opened = open_template(tokenizer)
    assert opened.why is None
    texts = [text for text in real_texts(shared) if text][:3_000]
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": other}]
        for text, other in zip(texts, reversed(texts), strict=True)
    ]
    assert check(tokenizer, opened.native, chats) == 0


def real_texts(shared: Path) -> list[str]:
    """Strings of the real data, whatever their column."""
    found: list[str] = []
    for path in sorted((shared / "data").glob("*.jsonl")):
        for line in path.read_text().splitlines()[:2_000]:
            found += [value for value in json.loads(line).values() if isinstance(value, str)]
    return found


def test_strip_is_python_s_on_every_character(demo_tokenizer):
    source = "{{ messages[0].content.strip() }}|{{ messages[0].content|trim }}|{{ messages[0].content.split()|length }}"
    opened = open_template(with_template(demo_tokenizer, source))
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    asked = pl.DataFrame({"content": [f"{point}x{point}" for point in points]}).select(
        pl.concat_list(pl.struct(pl.lit("user").alias("role"), "content"))
    )
    offsets, data, failed = opened.native.render(asked.to_series(), False)
    texts = template._texts(offsets, data).to_list()
    assert not failed
    whole = [f"{point}x{point}" for point in points]
    assert texts == [f"{text.strip()}|{text.strip()}|{len(text.split())}" for text in whole]


def test_a_row_that_the_template_refuses_is_named(demo_tokenizer):
    opened = open_template(with_template(demo_tokenizer, NASTY["no system role"]))
    user, system = {"role": "user", "content": "x"}, {"role": "system", "content": "y"}
    with pytest.raises(ValueError, match=r"row 1: the chat template refuses .* System role not supported"):
        opened.render(pl.Series([[user], [user, system]]), add_generation_prompt=False)
    left = template.Renderer(opened.tokenizer, None, "for a test")
    with pytest.raises(ValueError, match=r"row 1: the chat template refuses .* System role not supported"):
        left.render(pl.Series([[user], [user, system]]), add_generation_prompt=False)


@pytest.mark.parametrize(
    "rows",
    [
        [
            [{"role": "user", "content": "a", "name": None, "extra": "b"}],
            [{"role": "user", "content": "c", "extra": None}],
        ],
        [[{"role": "user", "content": "c", "extra": "d"}], [{"role": "user", "content": None, "extra": "b"}]],
        [[{"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}], [{"role": "user", "content": "b"}]],
        [[{"role": "user", "content": [{"type": "text", "text": "a"}]}]],
        [[{"role": "assistant", "content": "a", "tool_calls": "text"}], [{"role": "user", "content": "b"}]],
    ],
)
def test_fields_that_are_null_nested_or_unknown(rows, demo_tokenizer):
    source = (
        LOOP
        + "{{ message.content if message.content is string else 'P' }}{{ message.tool_calls|length }}{{ message.extra }}{% endfor %}"
    )
    tokenizer = with_template(demo_tokenizer, source)
    got = open_template(tokenizer).render(pl.Series(rows), add_generation_prompt=False)
    assert got.to_list() == tokenizer.apply_chat_template(rows, tokenize=False)


def test_where_transformers_renders_it_does_so_once_per_distinct_conversation(demo_tokenizer, monkeypatch):
    opened = open_template(with_template(demo_tokenizer, "{{ messages }}"))
    calls, plain = [], template._reference
    monkeypatch.setattr(template, "_reference", lambda *given: calls.append(given) or plain(*given))
    chats = [[{"role": "user", "content": str(row % 3)}] for row in range(30)]
    got = opened.render(pl.Series(chats), add_generation_prompt=True)
    assert got.to_list() == [opened.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    assert len(calls) == 3


def test_a_difference_is_found_by_the_probe_and_by_every_batch(demo_tokenizer):
    tokenizer = with_template(demo_tokenizer, "{{ messages[0].content }}")
    wrong = _native.Template("{{ (v_messages|item(0)).content|str_strip }}", [])
    assert "the probe: row" in template._probe(tokenizer, wrong)
    opened = template.Renderer(tokenizer, wrong, None)
    rows = [[{"role": "user", "content": "x"}]] * EVERY + [[{"role": "user", "content": "x "}]]
    with pytest.raises(ValueError, match=rf"row {EVERY}: Rust renders 'x', transformers 'x '"):
        opened.render(pl.Series(rows), add_generation_prompt=False)
    refuses = template.Renderer(tokenizer, _native.Template("{{ raise_exception('no') }}", []), None)
    assert refuses.render(pl.Series(rows), add_generation_prompt=False).to_list() == ["x"] * EVERY + ["x "]


def test_no_template_several_templates_and_a_broken_one(demo_tokenizer):
    with pytest.raises(ValueError, match="has no chat template"):
        open_template(with_template(demo_tokenizer, None))
    named = with_template(demo_tokenizer, {"default": "a{{ messages[0].content }}", "tool_use": "b"})
    chat = pl.Series([[{"role": "user", "content": "x"}]])
    assert open_template(named).render(chat, add_generation_prompt=False).to_list() == ["ax"]
    with pytest.raises(ValueError, match="multiple chat templates"):
        open_template(with_template(demo_tokenizer, {"one": "a", "two": "b"}))
    for source in ("{% if %}", "{% break %}", "{{ 'a' | nosuch }}"):
        broken = open_template(with_template(demo_tokenizer, source))
        assert "cannot be parsed" in broken.why


def test_what_is_no_conversation(demo_tokenizer):
    opened = open_template(with_template(demo_tokenizer, "{{ messages[0].content }}"))
    with pytest.raises(TypeError, match="lists of messages"):
        opened.render(pl.Series(["text"]), add_generation_prompt=False)
    with pytest.raises(ValueError, match="null in row 1"):
        opened.render(pl.Series([[{"role": "user", "content": "x"}], None]), add_generation_prompt=False)
    with pytest.raises(ValueError, match=r"row 0: .* empty conversation"):
        opened.render(pl.Series([[]], dtype=KIND), add_generation_prompt=False)
    assert opened.render(pl.Series([], dtype=KIND), add_generation_prompt=False).to_list() == []


def test_arrow_in_any_layout(demo_tokenizer):
    pa = pytest.importorskip("pyarrow")
    opened = open_template(with_template(demo_tokenizer, "{{ messages[-1].role }}{{ messages[-1].content }}"))
    rows = [[{"role": "user", "content": str(row)}] * (row % 3 + 1) for row in range(10)]
    for text in (pa.string(), pa.large_string(), pa.string_view()):
        for lists in (pa.list_, pa.large_list):
            array = pa.array(rows, lists(pa.struct({"role": text, "content": text})))
            for told in (array, array[3:7], pa.chunked_array([array[:2], array[5:]])):
                offsets, data, failed = opened.native.render(told, False)
                assert template._texts(offsets, data).to_list() == [
                    f"user{row[-1]['content']}" for row in told.to_pylist()
                ]
                assert not failed
