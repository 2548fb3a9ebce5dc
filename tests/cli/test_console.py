"""Tables of commands: the same rows whether they are read at once or in batches."""

from pathlib import Path

import polars as pl
import pytest

from mipo.cli.console import batches_of_table, scan_table
from mipo.errors import InputError
from mipo.pairing.join import COUNTERPARTS
from mipo.responses.requests import DRAWN


@pytest.mark.parametrize("name", ["drawn.parquet", "drawn.jsonl", "folder"])
def test_batches_of_a_table_are_the_table(tmp_path: Path, name: str) -> None:
    """Also with ids that pandas made floats, and texts that are categories."""
    drawn = pl.DataFrame(
        {
            "prompt_id": [0.0, 1.0, 2.0, 3.0, 4.0], "counterpart_id": [1.0, 0.0, None, 2.0, 3.0],
            "kind": pl.Series(["random"] * 5, dtype=pl.Categorical), "reason": [None, None, "no other", None, None],
        }
    )  # fmt: skip
    path = tmp_path / name
    match path.suffix:
        case ".jsonl":
            drawn.write_ndjson(path)
        case ".parquet":
            drawn.write_parquet(path, row_group_size=3)
        case _:
            path.mkdir()
            drawn[:3].write_parquet(path / "train-0.parquet")
            drawn[3:].write_parquet(path / "train-1.parquet")
    batches = list(batches_of_table(path, 2, COUNTERPARTS, DRAWN))
    assert [batch.height for batch in batches] == [2, 2, 1]
    whole = scan_table(path, COUNTERPARTS).lazy().collect()
    assert pl.concat(batches).equals(whole)
    assert whole["counterpart_id"].to_list() == [1, 0, None, 2, 3]
    with pytest.raises(InputError, match=f"{name}: no column 'rejected'; it has prompt_id"):
        batches_of_table(path, 2, COUNTERPARTS, ("rejected",))
