"""F on versions of a prompt in which some tokens are absent: what all deletion methods ask for.

Ablation, occlusion, Shapley values, LIME and the deletion curves of faithfulness put the same question, so values are
remembered: methods that ask for the same version of one prompt share a pass. Nothing here computes a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xai_utils.attribution.absence import ABSENCES, BASELINES, DRAWS, PANEL, baseline_rows, moved
from xai_utils.attribution.forest import Forest, Version
from xai_utils.attribution.result import FLOOR, Attribution, from_words
from xai_utils.attribution.target import Objective, Target
from xai_utils.attribution.versions import evaluate, evaluate_shortened, first_changed
from xai_utils.errors import UserError, nearest
from xai_utils.models.loading import LoadedModel
from xai_utils.models.visibility import mask_support
from xai_utils.text.cases import Case, units

Positions = tuple[int, ...]

_values: WeakKeyDictionary[LoadedModel, dict[tuple, dict[bytes, np.ndarray]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Player:
    """A unit of the word view that can be removed: its index in `units(case)` and the positions that go with it.

    A token that two words share goes as soon as one of them goes.
    """

    unit: int
    positions: tuple[int, ...]
    is_word: bool


def players(case: Case, keep_sink: bool) -> list[Player]:
    """All units with at least one position that may be moved, in reading order."""
    free = moved(case, keep_sink).numpy()
    found = []
    for index, unit in enumerate(units(case)):
        positions = tuple(position for position in unit.tokens if free[position])
        if positions:
            found.append(Player(index, positions, unit.is_word))
    return found


class Removal:
    """F of one case and target as a function of which positions of the prompt are removed, under one absence.

    With `sampled` F is computed for each draw of random tokens; the other absences have one draw. Raises UserError for
    an absence that the model cannot do and for a prompt of which nothing can be removed.
    """

    def __init__(
        self,
        model: LoadedModel,
        case: Case,
        target: Target,
        absence: str = PANEL[0],
        keep_sink: bool = True,
        seed: int = 0,
        draws: int = DRAWS,
    ):
        _check(model, case, absence, keep_sink)
        self.objective = Objective(model, case, target)
        self.absence = absence
        self.players = players(case, keep_sink)
        replacing = {"hidden": "mean", "dropped": "mean"}.get(absence, absence)
        self.rows = baseline_rows(model, case, replacing, keep_sink, seed, draws)
        self.draws = len(self.rows)
        key = (case, target, absence, keep_sink, seed, self.draws)
        self._known = _values.setdefault(model, {}).setdefault(key, {})

    def values(self, removed: Bool[np.ndarray, "row position"]) -> Float[np.ndarray, "row draw"]:
        """F without the marked positions, one column a draw. What was asked before is not computed again."""
        ask([self], removed)
        return np.array([self._known[row.tobytes()] for row in _rows(removed)])

    def without(self, present: Bool[np.ndarray, "row player"], chosen: list[Player] | None = None) -> np.ndarray:
        """F [row, draw] with the players that are not `present` removed; `chosen` are all players if not given."""
        return self.values(self.gone(present, chosen))

    def gone(
        self, present: Bool[np.ndarray, "row player"], chosen: list[Player] | None = None
    ) -> Bool[np.ndarray, "row position"]:
        """The positions of the players that are not `present`."""
        chosen = self.players if chosen is None else chosen
        cover = np.zeros((len(chosen), len(self.objective.inputs)), dtype=bool)
        for row, player in zip(cover, chosen, strict=True):
            row[list(player.positions)] = True
        return (~np.asarray(present, dtype=bool)).astype(np.float32) @ cover.astype(np.float32) > 0

    def new(self, removed: Bool[np.ndarray, "row position"]) -> Bool[np.ndarray, "row position"]:
        """Those rows that have not been asked yet, each once."""
        rows = _rows(removed)
        return rows[
            list({row.tobytes(): at for at, row in enumerate(rows) if row.tobytes() not in self._known}.values())
        ]

    def keep(self, removed: Bool[np.ndarray, "row position"], values: Float[np.ndarray, "row draw"]) -> None:
        self._known.update({row.tobytes(): value for row, value in zip(removed, values, strict=True)})

    def versions(self, removed: Bool[np.ndarray, "row position"], first: int) -> list[Version]:
        """For each row and draw the ids of its embedding rows: the prompt's own, or the draw's from `first` on."""
        places = np.arange(removed.shape[1])
        if self.absence == "dropped":
            return [tuple(places[~row].tolist()) for row in removed]
        starts = first + len(places) * np.arange(self.draws)
        return [tuple(np.where(row, start + places, places).tolist()) for row in removed for start in starts]

    def plain_cost(self, removed: Bool[np.ndarray, "row position"]) -> int:
        """Positions to pass where each version is passed by itself from its first change on."""
        shared = removed.sum(1) if self.absence == "dropped" else first_changed(removed)
        return self.draws * int((self.objective.length - shared).sum())

    def plain(self, removed: Bool[np.ndarray, "row position"]) -> Float[np.ndarray, "row draw"]:
        """F of versions one by one, those that fit into one pass together."""
        if self.absence == "dropped":
            return evaluate_shortened(self.objective, removed)[:, None]
        versions = np.repeat(removed, self.draws, axis=0)
        masks = torch.from_numpy(versions).to(self.rows.device)

        def build(rows: Int[np.ndarray, " row"]) -> Tensor:
            return torch.where(masks[rows][..., None], self.rows[rows % self.draws], self.objective.inputs)

        seen = ~masks if self.absence == "hidden" else None
        return evaluate(self.objective, first_changed(versions), build, seen)[0].reshape(len(removed), self.draws)


def _rows(removed: Bool[np.ndarray, "row position"]) -> Bool[np.ndarray, "row position"]:
    return np.ascontiguousarray(removed, dtype=bool)


def ask(removals: Sequence[Removal], removed: Bool[np.ndarray, "row position"]) -> None:
    """Compute what absences of one case have not been asked yet, the cheaper way: what versions begin with alike once,
    or one version after the other."""
    asked = [(removal, new) for removal in removals if len(new := removal.new(removed))]
    forest = _forest(asked) if asked else None
    if forest is None or forest.cost >= sum(removal.plain_cost(new) for removal, new in asked):
        for removal, new in asked:
            removal.keep(new, removal.plain(new))
        return
    values = np.split(forest.values(), np.cumsum([len(new) * removal.draws for removal, new in asked])[:-1])
    for (removal, new), part in zip(asked, values, strict=True):
        removal.keep(new, part.reshape(len(new), removal.draws))


def _forest(asked: Sequence[tuple[Removal, Bool[np.ndarray, "row position"]]]) -> Forest | None:
    """All versions of all absences; none where a model or a target does not take trees."""
    objective = asked[0][0].objective
    if objective.target.kind == "sum_logits" or not mask_support(objective.model).trees:
        return None
    rows, versions, hidden = [objective.inputs], list[Version](), set[int]()
    for removal, new in asked:
        first = sum(map(len, rows))
        versions += removal.versions(new, first)
        rows.append(removal.rows.flatten(0, 1))
        if removal.absence == "hidden":
            hidden.update(range(first, first + len(rows[-1])))
    return Forest(objective, versions, torch.cat(rows), hidden)


def _check(model: LoadedModel, case: Case, absence: str, keep_sink: bool) -> None:
    if absence not in ABSENCES:
        raise UserError(f"unknown absence {absence!r}; {nearest(absence, ABSENCES)}")
    if absence in BASELINES:
        return
    if not keep_sink:
        raise UserError(
            f"absence '{absence}' needs a first position that stays; expected {', '.join(BASELINES)} "
            "with keep_sink: false; choose one of these, or keep_sink: true"
        )
    if absence == "hidden" and not mask_support(model).holes:
        raise UserError(
            f"model '{model.label}' ({type(model.model).__name__}) does not respect an attention mask with holes, so "
            "no word can be hidden from it; leave 'hidden' out of the absences"
        )


def draw_error(scores: Float[np.ndarray, "*score draw"]) -> np.ndarray:
    """Standard error of the mean over draws of the baseline; one draw is the baseline itself, without an error."""
    draws = scores.shape[-1]
    return scores.std(-1, ddof=1) / np.sqrt(draws) if draws > 1 else np.zeros(scores.shape[:-1])


# ---- one group of positions at a time


def groups_of(case: Case, keep_sink: bool) -> list[Positions]:
    """What is perturbed at a time: every free position, and every unit of several positions."""
    free = np.flatnonzero(moved(case, keep_sink).numpy())
    if not len(free):
        raise UserError(
            f"text '{case.text_id}' has one token and the first position is kept, so there is nothing to perturb; "
            "expected at least one token that may be moved; use keep_sink: false, prefix: document_start, or more text"
        )
    whole = [player.positions for player in players(case, keep_sink)]
    return list(dict.fromkeys([(int(position),) for position in free] + whole))


def of_groups(
    method: str,
    case: Case,
    target: Target,
    groups: list[Positions],
    scores: Float[np.ndarray, " group"],
    errors: Float[np.ndarray, " group"],
    *,
    baseline: str = "",
    keep_sink: bool,
) -> Attribution:
    """Scores of groups as token scores and, for the whole word, word scores."""
    both = dict(zip(groups, np.stack([scores, errors], axis=1), strict=True))
    chosen, nothing = players(case, keep_sink), np.full(2, np.nan)
    tokens = np.stack([both.get((position,), nothing) for position in range(len(case.tokens))], axis=1)
    words = np.stack([both[player.positions] for player in chosen], axis=1)
    return from_words(
        method,
        case,
        target,
        chosen,
        *words,
        baseline=baseline,
        keep_sink=keep_sink,
        additive=False,
        tokens=tokens,
    )


# ---- several absences as one game


@dataclass(frozen=True)
class Game:
    """F of subsets of words under all absences of a panel, a column a draw of each."""

    removals: Sequence[Removal]

    @property
    def count(self) -> int:
        return len(self.removals[0].players)

    def values(self, present: Bool[np.ndarray, "row player"]) -> Float[np.ndarray, "row column"]:
        ask(self.removals, self.removals[0].gone(present))
        return np.concatenate([removal.without(present) for removal in self.removals], axis=1)

    def ends(self) -> Float[np.ndarray, "2 column"]:
        """F(x) and F with all words absent."""
        return self.values(np.array([[True] * self.count, [False] * self.count]))

    def by_absence(self, columns: Float[np.ndarray, "... column"]) -> list[Float[np.ndarray, "... draw"]]:
        edges = np.cumsum([removal.draws for removal in self.removals])[:-1]
        return np.split(columns, edges, axis=-1)

    def means(self, columns: Float[np.ndarray, "... column"]) -> Float[np.ndarray, "... absence"]:
        """Mean over the draws of each absence."""
        return np.stack([part.mean(-1) for part in self.by_absence(columns)], axis=-1)


def small(error: Float[np.ndarray, " player"], ends: Float[np.ndarray, "2 column"], tolerance: float) -> bool:
    """Whether every word's standard error is within the tolerance of |F(x) - F(all absent)|."""
    whole, nothing = ends.mean(1)
    return bool(error.max() <= tolerance * max(abs(whole - nothing), FLOOR))
