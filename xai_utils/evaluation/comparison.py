"""One answer under two models: both explanations on one scale, and what differs word by word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xai_utils.attribution.result import NORMAL_95, Attribution
from xai_utils.attribution.swap import Swap
from xai_utils.attribution.tables import frame, word_rows
from xai_utils.attribution.target import UNITS
from xai_utils.display import Displayed
from xai_utils.evaluation.statistics import EFFECT, ROUNDING
from xai_utils.text.alignment import side_by_side
from xai_utils.text.cases import units

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Displayed):
    """Two results of one method for one text and answer; it shows itself in a notebook and in a terminal."""

    base: Attribution
    other: Attribution
    swap: Swap | None = None  # the difference, shared among the parts in which the models differ
    refused: str = ""  # why there is no swap

    @property
    def parts(self) -> pd.DataFrame:
        """One row a part in which the models differ: part, kind (reading, writing, layers), score, error.

        The scores sum to the difference between the models' values of the target; no rows where there is no swap.
        """
        rows = self.swap.rows() if self.swap else []
        return pd.DataFrame(rows, columns=["part", "kind", "score", "error"])

    @property
    def labels(self) -> tuple[str, str]:
        return self.base.case.model, self.other.case.model

    @property
    def words(self) -> pd.DataFrame:
        """One row a word that both models read: word, one score a model by its label, difference, floor, stands.

        The difference is other minus base; up to `floor`, 1.96 standard errors of both scores and no less than 0.1 nats
        or logits, it does not count. It stands where it does and has one sign under every absence of the panel; empty
        without a panel. Raises UserError where the two models explain different answers.
        """
        tables = [frame(word_rows(result)) for result in (self.base, self.other)]
        pairs = side_by_side(pd.concat(tables), *self.labels).sort_values("start", ignore_index=True)
        errors = np.hypot(pairs["error_base"].fillna(0), pairs["error_other"].fillna(0))
        floor = np.maximum(NORMAL_95 * errors, EFFECT if self.base.unit in UNITS.values() else ROUNDING)
        change = pairs["score_other"] - pairs["score_base"]
        stands = self._stands(pairs["start"], change.abs() > floor)
        return pd.DataFrame(
            {
                "word": pairs["word"],
                self.labels[0]: pairs["score_base"],
                self.labels[1]: pairs["score_other"],
                "difference": change,
                "floor": floor,
            }
        ).assign(stands=stands)

    def _stands(self, starts: pd.Series, beyond: pd.Series) -> Any:
        """Whether the words that begin at `starts` differ with one sign under every absence."""
        scores = []
        for result in (self.base, self.other):
            if result.by_absence is None:
                return pd.array([pd.NA] * len(starts), dtype="boolean")
            place = {unit.start: row for row, unit in enumerate(units(result.case)) if unit.is_word}
            scores.append(result.by_absence[:, [place[start] for start in starts]])
        signs = np.sign(scores[1] - scores[0])
        stands = pd.array((signs == signs[0]).all(0) & beyond.to_numpy(), dtype="boolean")
        stands[~np.isfinite(signs).all(0)] = pd.NA
        return stands

    def plot(self) -> Figure:
        """Both sentences in colour, on one scale."""
        from xai_utils.plots.sentence import sentences

        return sentences([self.base, self.other])

    def __repr__(self) -> str:
        from xai_utils.plots.terminal import plain

        return plain(self)

    def _repr_html_(self) -> str:
        from xai_utils.plots.html import comparison_html

        return comparison_html(self)

    def png(self) -> bytes:
        """The sentence in colour, as a picture."""
        from xai_utils.plots.style import png

        return png(self.plot())
