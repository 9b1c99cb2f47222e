"""A rerun is compared number by number; what differs is listed, and the exit status says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from report import verify
from xai_utils.errors import UserError
from xai_utils.files import ROOT

TABLE = pd.DataFrame(
    {"text": ["a", "a", "b"], "word": ["x", "y", None], "score": [2.0, -1.0, np.nan], "n": [1, 2, 3], "ok": [True] * 3}
)


def test_a_table_agrees_with_itself_in_every_number():
    found = verify.compared(TABLE, TABLE)
    assert found.agree == 5 and not found.differ


@pytest.mark.parametrize(
    ("column", "row", "value", "differs"),
    [
        ("score", 0, 2.019, False),
        ("score", 0, 2.021, True),
        ("score", 1, 1.0, True),
        ("score", 2, 0.0, True),
        ("score", 0, np.nan, True),
        ("n", 2, 4, True),
        ("ok", 1, False, True),
        ("word", 2, "z", True),
        ("word", 0, "z", True),
    ],
)
def test_one_cell_that_changes_is_named(column, row, value, differs):
    other = TABLE.copy().astype({column: object})
    other.loc[row, column] = value
    found = verify.compared(TABLE, other.infer_objects())
    assert len(found.differ) == differs
    assert not differs or (f"row {row + 1}" in found.differ[0] and column in found.differ[0])


def test_what_is_small_in_its_column_may_move_by_a_hundredth_of_the_median():
    old = pd.DataFrame({"score": [1.0, 1.0, 1e-6]})
    assert not verify.compared(old, pd.DataFrame({"score": [1.0, 1.0, 9e-3]})).differ
    assert verify.compared(old, pd.DataFrame({"score": [1.0, 1.0, 2e-2]})).differ


def test_other_columns_rows_or_tables_are_differences(tmp_path):
    assert "score" in verify.compared(TABLE, TABLE.drop(columns="score")).differ[0]
    assert "2 rows, were 3" in verify.compared(TABLE, TABLE.head(2)).differ[0]
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    TABLE.to_csv(tmp_path / "old" / "a.csv", index=False)
    assert "a.csv: was not written again" in str(verify.verify(tmp_path / "new", tmp_path / "old"))
    TABLE.to_csv(tmp_path / "new" / "a.csv", index=False)
    assert str(verify.verify(tmp_path / "new", tmp_path / "old")) == "5 numbers agree to 1%, 0 differ"
    with pytest.raises(UserError, match="holds no tables"):
        verify.verify(tmp_path / "old", tmp_path / "new" / "none")


def test_a_committed_folder_is_read_from_the_commit():
    folder = ROOT / "models" / "smollm2-135m-ru-ts" / "tables"
    with verify.committed(folder) as place:
        assert {path.name for path in place.iterdir()} == {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match="not found in the commit"), verify.committed(ROOT / "nothing"):
        pass
