"""What `tokens.py` measured, as tables, and the targets as met or not.

Knows rows of plain values, as in the result file. Runs nothing.
"""

from typing import Any

# Targets: the least ratio of the peer's time to ours.
TOKENIZERS_TARGET = 20.0
PEERS_TARGET = 0.85  # of the faster of these two
PEERS = ("fastokens", "gigatoken")
PREPARE_TARGETS = {"trl": 25.0, "trl, fastokens": 10.0}
MEMORY_TARGET = 2**30  # bytes beyond the tokenizer
# Bytes that the largest number of pairs may hold beyond the smallest: slack of the allocator, and no rows.
SPARE = 64 << 20

FIGURES = ("seconds", "cpu_seconds", "peak_bytes", "anonymous_bytes")
MEMORY = {"peak_bytes": "resident", "anonymous_bytes": "anonymous"}

Row = dict[str, Any]


def judge(record: Row) -> list[Row]:
    """The targets, each with the number behind it; not measured in a self-check."""
    targets = [*_judge_encode(record["encode"]), *_judge_prepare(record["prepare"], record.get("tokenizer_alone"))]
    return [one | {"number": None, "verdict": "not measured"} for one in targets] if record["small"] else targets


def _judge_encode(results: list[Row]) -> list[Row]:
    verdicts = []
    for result in results:
        for kind in ("cold", "warm"):
            speed = {row["name"]: row.get(f"{kind}_mb_s") for row in result["engines"]}
            # A peer counts here even if some of its ids are wrong.
            fastest = max((speed[name] for name in PEERS if speed[name]), default=None)
            size = f"{result['tokenizer']}, {result['rows']:,} prompts, {kind}"
            ratio = quotient(speed["mipo"], speed["tokenizers"])
            target = f"{size}: at least {TOKENIZERS_TARGET:g} times as fast as tokenizers"
            verdicts.append(verdict(target, ratio, TOKENIZERS_TARGET))
            ratio = quotient(speed["mipo"], fastest)
            target = f"{size}: at least {PEERS_TARGET:g} of the faster of {' and '.join(PEERS)}"
            verdicts.append(verdict(target, ratio, PEERS_TARGET))
        same = [row["wrong"] == 0 for row in result["engines"] if row["name"] == "mipo" and "wrong" in row]
        verdicts.append(verdict(f"{result['tokenizer']}: ids are those of tokenizers", _all(same), 1))
    return verdicts


def _judge_prepare(results: list[Row], alone: Row | None) -> list[Row]:
    verdicts, shapes = [], dict.fromkeys(row["shape"] for row in results)
    for result in results:
        ours, size = contender(result, "mipo"), f"{result['pairs']:,} pairs, {result['shape']}"
        for name, least in PREPARE_TARGETS.items():
            seconds, scaled = taken(results, result, name)
            target = f"{size}: at least {least:g} times as fast as {name}"
            verdicts.append(verdict(target, quotient(seconds, beside_which(ours, name)), least))
            process = quotient(contender(result, name).get("process_seconds"), ours.get("process_seconds"))
            beside = []
            if seconds and name != "trl":
                beside.append(f"{seconds / beside_which(ours, 'trl'):.1f} if to open our engine counts")
            if scaled:
                beside.append(f"{name} measured on fewer pairs, and its time a row taken for the others")
            elif process:
                beside.append(f"{process:.1f} with the start and imports of both")
            verdicts[-1]["beside"] = "; ".join(beside)
    for shape in shapes:
        sizes = sorted((row for row in results if row["shape"] == shape), key=lambda row: row["pairs"])
        few, many = contender(sizes[0], "mipo"), contender(sizes[-1], "mipo")
        size = f"{sizes[-1]['pairs']:,} pairs, {shape}"
        for figure, word in MEMORY.items():
            beyond = None if alone is None else (many[figure] - alone[figure]) / 2**30
            verdicts.append(
                verdict(f"{size}: at most 1 GiB beyond the tokenizer, {word}", beyond, most=MEMORY_TARGET / 2**30)
            )
            grown = (many[figure] - few[figure]) / 2**20 if len(sizes) > 1 else None
            target = f"{shape}: MiB, {word}, more with {sizes[-1]['pairs']:,} pairs than with {sizes[0]['pairs']:,}"
            verdicts.append(verdict(f"{target}, at most {SPARE >> 20}", grown, most=SPARE / 2**20))
        same = [row["wrong"] == 0 for row in sizes[0]["contenders"] if row["name"] == "mipo"]
        whole = [row["store"]["rows"] == row["pairs"] for row in sizes]
        verdicts.append(verdict(f"{shape}: ids are those of TRL, and no pair is lost", _all(same + whole), 1))
    return verdicts


def beside_which(ours: Row, name: str) -> float:
    """Our seconds beside a peer's: TRL with fastokens has its engine before the time is taken, plain TRL has none."""
    seconds: float = ours["seconds"]
    return seconds + ours["engine_seconds"] * (name == "trl")


def contender(result: Row, name: str) -> Row:
    return next((row for row in result["contenders"] if row["name"] == name), {})


def taken(results: list[Row], result: Row, name: str) -> tuple[float | None, bool]:
    """Seconds of a contender for these pairs, and whether they were not measured but follow from fewer pairs.

    Then it is a line through the sample's time and that of the most pairs that were measured: what is spent once, and
    counts much where rows are cheap, is not multiplied.
    """
    if measured := contender(result, name):
        return measured["seconds"], False
    like = [row for row in results if row["shape"] == result["shape"] and contender(row, name)]
    if not like:
        return None, False
    most = max(like, key=lambda row: row["pairs"])
    measured, rows = contender(most, name), most["pairs"] - most["sample"]
    if rows <= 0:
        return measured["seconds"] / most["pairs"] * result["pairs"], True
    a_row = max(0.0, measured["seconds"] - measured["sample_seconds"]) / rows
    return measured["seconds"] + a_row * (result["pairs"] - most["pairs"]), True


def quotient(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def verdict(target: str, number: float | None, least: float = float("-inf"), most: float = float("inf")) -> Row:
    word = "not measured" if number is None else "met" if least <= number <= most else "NOT met"
    return {"target": target, "number": number, "verdict": word}


def _all(checks: list[bool]) -> float | None:
    return float(all(checks)) if checks else None


def render(record: Row) -> str:
    """Tables and targets, in Markdown."""
    lines = ["", ", ".join(f"{name} {value}" for name, value in record["machine"].items()), ""]
    lines += ["**Tiny sizes: a self-check. The ratios mean nothing.**", ""] * record["small"]
    lines += [", ".join(f"{name} {value}" for name, value in record["texts"].items()), ""]
    for result in record["encode"]:
        lines += [*_encode_table(result), ""]
    lines += _prepare_table(record["prepare"], record.get("tokenizer_alone"))
    lines += [f"- left out: {name}: {reason}" for name, reason in record["left_out"].items()]
    for target in record["targets"]:
        number = "" if target["number"] is None else f" ({target['number']:.2f})"
        beside = f"; {target['beside']}" if target.get("beside") and not record["small"] else ""
        lines.append(f"- target, {target['target']}: {target['verdict']}{number}{beside}")
    return "\n".join(lines)


def _encode_table(result: Row) -> list[str]:
    lines = [
        f"| {result['tokenizer']}, {result['rows']:,} prompts | version | rows timed | opened in s | cold MB/s "
        f"| warm MB/s | ours / this, cold | warm | wrong of {result['sample']:,} | all ids as ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = next(row for row in result["engines"] if row["name"] == "mipo")
    for row in result["engines"]:
        if "cold_mb_s" not in row:
            lines.append(f"| {row['name']} | {row['failure']} |" + " |" * 8)
            continue
        ratios = [quotient(ours.get(f"{kind}_mb_s"), row[f"{kind}_mb_s"]) for kind in ("cold", "warm")]
        agree = {True: "yes", False: "NO", None: "-"}[row["all_as_ours"]]
        version = " ".join(f"{name} {number}" for name, number in row["versions"].items())
        lines.append(
            f"| {row['name']} | {version} | {row['rows']:,} | {min(row['load']):.2f} | {row['cold_mb_s']:.1f} | "
            f"{row['warm_mb_s']:.1f} | {' | '.join('-' if r is None else f'{r:.2f}' for r in ratios)} | "
            f"{row['wrong']:,} | {agree} |"
        )
    return lines


def _prepare_table(results: list[Row], alone: Row | None) -> list[str]:
    if alone is None:
        return []
    lines = [
        "| pairs | shape | contender | s | slowest-fastest | CPU s | / ours | peak MiB | of its own "
        "| beyond the tokenizer | of its own | rows with wrong ids |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours = contender(result, "mipo")
        for row in result["contenders"]:
            memory = [row[figure] / 2**20 for figure in MEMORY]
            beyond = [(row[figure] - alone[figure]) / 2**20 for figure in MEMORY]
            lines.append(
                f"| {result['pairs']:,} | {result['shape']} | {row['name']} | {row['seconds']:.2f} | "
                f"{max(row['runs']) - min(row['runs']):.2f} | {row['cpu_seconds']:.1f} | "
                f"{row['seconds'] / beside_which(ours, row['name']):.1f} | "
                f"{' | '.join(f'{size:,.0f}' for size in memory + beyond)} | {row['wrong']:,} |"
            )
    size = ", ".join(f"{alone[figure] / 2**20:,.0f} MiB {word}" for figure, word in MEMORY.items())
    engine = max(contender(result, "mipo")["engine_seconds"] for result in results)
    lines += ["", f"- our engine, opened before: {engine:.2f} s; counted beside plain TRL"]
    lines += [f"- the tokenizer alone, Python and imports with it: {alone['seconds']:.2f} s, {size}"]
    for result in results:
        store = result["store"]
        summary = f"{store['rows']:,} groups, {store['merged']:,} merged, {store['written_bytes'] / 2**20:,.0f} MiB"
        lines.append(
            f"- {result['pairs']:,} pairs, {result['shape']}: {summary}, opened in {store['open_seconds']:.3f} s"
        )
    return lines
