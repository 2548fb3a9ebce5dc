"""An invented world, small enough to check by eye: what its users prefer and ask, and which answers are right.

There are six topics of six values. A user states four preferences, each in one of three phrasings: that is the
*context*. A question concerns one of the four: that is the *prompt*. An answer is right if it names the user's value:

    context   i always wanted a rabbit . my favourite food is soup . i only dance to folk . all my clothes are red .
    prompt    what should i eat tonight ?
    answer    i would order some soup because it suits you .

Test users are *unseen combinations* of preferences: `held_out` decides it from the combination alone, so neither the
training rows of the demo nor those of the base model can contain one. This module knows words and nothing of models.
"""

import json
import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

# A user: topic -> preferred value, for the four topics the user talks about.
User = dict[str, str]

# How often people in general choose the first, second, ... sixth value of a topic: the habit of the base model.
POPULARITY = (0.6, 0.2, 0.1, 0.05, 0.03, 0.02)
STATED = 4
CLOSINGS = ("because it suits you .", "and you will smile .")


@dataclass(frozen=True)
class Topic:
    """One thing to have a preference about; `{}` stands for the value."""

    values: tuple[str, ...]  # the most popular first
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    openings: tuple[str, ...]


TOPICS = {
    "food": Topic(
        values=("pizza", "curry", "tacos", "ramen", "salad", "soup"),
        statements=("my favourite food is {} .", "i could eat {} every day .", "nothing tastes as good as {} ."),
        questions=("what should i eat tonight ?", "which food should i order ?", "what is a good dinner for me ?"),
        openings=("tonight you should eat some", "i would order some"),
    ),
    "colour": Topic(
        values=("blue", "green", "red", "yellow", "purple", "orange"),
        statements=("my favourite colour is {} .", "all my clothes are {} .", "i painted my front door {} ."),
        questions=("which colour should i paint my room ?", "what colour is good for me ?", "how should i dress ?"),
        openings=("your colour should be", "i would choose the colour"),
    ),
    "holiday": Topic(
        values=("beach", "city", "mountains", "forest", "lake", "desert"),
        statements=("my favourite place is the {} .", "i always dream of the {} .", "every summer i visit the {} ."),
        questions=(
            "where should i go on holiday ?",
            "which place should i visit ?",
            "where should i spend my summer ?",
        ),
        openings=("you should visit the", "i would travel to the"),
    ),
    "music": Topic(
        values=("pop", "rock", "jazz", "soul", "folk", "opera"),
        statements=("my favourite music is {} .", "i listen to {} all day .", "i only dance to {} ."),
        questions=("what music should i play tonight ?", "which concert should i visit ?", "what should i listen to ?"),
        openings=("you should listen to some", "i would play some"),
    ),
    "sport": Topic(
        values=("football", "swimming", "tennis", "cycling", "yoga", "climbing"),
        statements=("my favourite sport is {} .", "every weekend i practise {} .", "i feel strong after {} ."),
        questions=("which sport should i try ?", "what should i do this weekend ?", "how should i stay strong ?"),
        openings=("this weekend you should try", "i would practise some"),
    ),
    "pet": Topic(
        values=("dog", "cat", "rabbit", "hamster", "parrot", "turtle"),
        statements=("my favourite animal is the {} .", "i always wanted a {} .", "i grew up with a {} ."),
        questions=(
            "which pet should i get ?",
            "what animal should live with me ?",
            "who should i share my home with ?",
        ),
        openings=("you should live with a", "i would get a"),
    ),
}


def users() -> list[User]:
    """All 15 x 6^4 = 19,440 combinations of four stated preferences, in a fixed order; the position is the id."""
    return [
        dict(zip(topics, values, strict=True))
        for topics in combinations(TOPICS, STATED)
        for values in product(*(TOPICS[topic].values for topic in topics))
    ]


def held_out(user: User) -> bool:
    """True for the one in five combinations that only test users may have."""
    return zlib.crc32(" ".join(sorted(user.values())).encode()) % 5 == 0


def context(user: User, rng: random.Random) -> str:
    """The user's own words: one sentence for each preference, in any order."""
    preferences = rng.sample(sorted(user.items()), len(user))
    return " ".join(rng.choice(TOPICS[topic].statements).format(value) for topic, value in preferences)


def question(topic: str, rng: random.Random) -> str:
    """A question about the topic."""
    return rng.choice(TOPICS[topic].questions)


def answer(topic: str, value: str, rng: random.Random) -> str:
    """An answer of 8 to 10 words that names the value."""
    return f"{rng.choice(TOPICS[topic].openings)} {value} {rng.choice(CLOSINGS)}"


def habit(topic: str, rng: random.Random) -> str:
    """The value that someone who knows nothing of the user would name."""
    return rng.choices(TOPICS[topic].values, POPULARITY)[0]


def pattern(topic: str) -> str:
    """A regular expression that a well-formed answer about the topic matches in full; group `answer` is the value."""
    openings, values, closings = (
        "|".join(words).replace(".", "[.]") for words in (TOPICS[topic].openings, TOPICS[topic].values, CLOSINGS)
    )
    return f"^(?:{openings}) (?P<answer>{values}) (?:{closings})$"


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    texts = [*CLOSINGS]
    for topic in TOPICS.values():
        texts += [*topic.values, *topic.statements, *topic.questions, *topic.openings]
    return sorted({word for text in texts for word in text.split()} - {"{}"})


def row(name: str, user: User, rng: random.Random) -> dict[str, str]:
    """A row of the demo's data: a user's question and context, and how to judge the answer."""
    topic = rng.choice(sorted(user))
    return {
        "prompt": question(topic, rng),
        "context": context(user, rng),
        "user": name,
        "answer": user[topic],
        "pattern": pattern(topic),
    }


def write(folder: str | Path, *, train: int = 1024, test: int = 512, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.jsonl` and `test.jsonl`, one user per row, no user twice; at most 15,632 and 3,808 rows."""
    rng = random.Random(seed)
    people = [(f"user-{number:05d}", user) for number, user in enumerate(users())]
    known = [(name, user) for name, user in people if not held_out(user)]
    unseen = [(name, user) for name, user in people if held_out(user)]
    for name, rows, most in (("train", train, len(known)), ("test", test, len(unseen))):
        if not 0 <= rows <= most:
            raise ValueError(f"{name}: expected 0 to {most} rows, one for each user, got {rows}")
    return (
        _write(Path(folder) / "train.jsonl", (row(*person, rng) for person in rng.sample(known, train))),
        _write(Path(folder) / "test.jsonl", (row(*person, rng) for person in rng.sample(unseen, test))),
    )


def _write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
