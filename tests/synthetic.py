"""A study's tables without a model: the columns that the notebooks write, with numbers from a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xai_utils.attention.layers import statistics, uniform
from xai_utils.evaluation.statistics import differences
from xai_utils.study.comparison import leaderboards
from xai_utils.study.config import Study
from xai_utils.study.questions import tests as tested
from xai_utils.study.tables import Measured
from xai_utils.text.cases import words

TEXTS = {
    "planets": ("Сколько планет в Солнечной системе?", " Восемь.", "ru"),
    "capital": ("The capital of France is", " Paris.", "en"),
    "moons": ("Сколько лун у Марса?", " Две.", "ru"),
    "river": ("What river flows through Paris?", " The Seine.", "en"),
    "bird": ("A penguin is a bird, but it cannot", " fly.", "en"),
    "proverb": ("Тише едешь — дальше", " будешь.", "ru"),
}
METHODS = ("integrated_gradients", "fixed_steps", "ablation", "sensitivity")
PROVEN = {"integrated_gradients": ("mean", "eos"), "fixed_steps": ("zero",)}
ROLES = {"base": "base", "ru-ts": "adapted", "shuffled": "control"}


def study(labels: tuple[str, ...] = ("base", "ru-ts"), texts: tuple[str, ...] = tuple(TEXTS), **more: object) -> Study:
    models = [{"label": label, "role": ROLES.get(label, "adapted"), "model": "tiny"} for label in labels]
    entries = [
        {"id": name, "text": TEXTS[name][0], "answer": TEXTS[name][1], "language": TEXTS[name][2]} for name in texts
    ]
    settings = {"name": "made", "methods": METHODS, "baseline": "mean", "baselines": PROVEN["integrated_gradients"]}
    settings["deletions"] = settings["baselines"]
    return Study.model_validate(settings | {"models": models, "texts": entries} | more)


def measured(labels: tuple[str, ...] = ("base", "ru-ts"), seed: int = 0, **more: object) -> Measured:
    """Everything that the report reads, for `labels`, the first of which is the base."""
    made = study(labels, **more)
    rng = np.random.default_rng(seed)
    tables = {
        "tokenization": pd.DataFrame(
            [_keys(made, t, m) | _pieces(t, m, rng) for t in _texts(made) for m in made.models]
        ),
        "word_scores": pd.DataFrame(_scores(made, rng)).astype({"start": "Int64", "end": "Int64"}),
        "certificates": pd.DataFrame(_certificates(made, rng)),
        "attention_heads": pd.DataFrame(_heads(made, rng)),
        "agreement": pd.DataFrame(_agreement(made, rng)),
        "faithfulness": pd.DataFrame(_faithfulness(made, rng)),
    }
    tables["attributions"] = _tokens(tables["word_scores"])
    return refreshed(Measured(made, tables))


def refreshed(found: Measured) -> Measured:
    """The same with what notebook 05 computes from the other tables computed again."""
    tables = dict(found.tables)
    pairs = [
        differences(tables["word_scores"], tables["certificates"], found.base, other, found.study.baseline)
        for other in found.labels
        if other != found.base
    ]
    tables["difference"] = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()
    tables["questions"] = tested(Measured(found.study, tables))
    tables["leaderboard"] = leaderboards(Measured(found.study, tables))
    return Measured(found.study, tables)


def _texts(made: Study) -> list[str]:
    return [entry.id for entry in made.texts]


def _keys(made: Study, text: str, model: object) -> dict[str, str]:
    return {"study": made.name, "text": text, "model": model.label, "role": model.role}


def _pieces(text: str, model: object, rng: np.random.Generator) -> dict[str, object]:
    content, _, language = TEXTS[text]
    number = len(words(content))
    each = 4.0 if language == "ru" and model.role == "base" else 1.2
    tokens = round(number * each + rng.uniform(0, 2))
    return {
        "tokens": tokens + 1,
        "special": 1,
        "words": number,
        "tokens_per_word": tokens / number,
        "characters": len(content),
        "truncated": 0,
        "padded": 0,
    }


def _goal(made: Study, text: str) -> dict[str, str]:
    return {"target": "logprob", "target_text": TEXTS[text][1]}


def _settings(made: Study) -> list[tuple[str, str, str]]:
    return [
        (method, baseline, "moved" if method == "fixed_steps" else "kept")
        for method in made.methods
        for baseline in PROVEN.get(method, ("mean",))
    ]


def _scores(made: Study, rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for model in made.models:
        for text in _texts(made):
            pieces = words(TEXTS[text][0])
            truth = rng.normal(0.5, 1.5, len(pieces))
            for method, baseline, sink in _settings(made):
                unsigned = np.abs if method == "sensitivity" else np.asarray
                scores = unsigned(truth + rng.normal(0, 0.3, len(pieces)))
                common = _keys(made, text, model) | _goal(made, text)
                common |= {"method": method, "baseline": baseline, "sink": sink, "unit": "nats"}
                start = -3.0 if sink == "moved" else np.nan
                rows.append(common | _row("<|endoftext|>", None, None, start, 0.0, method, is_word=False))
                rows += [
                    common | _row(word.text, word.start, word.end, score, 0.02, method)
                    for word, score in zip(pieces, scores, strict=True)
                ]
    return rows


def _row(word: str, start: int | None, end: int | None, score: float, error: float, method: str, is_word: bool = True):
    place = {"word": word, "start": start, "end": end, "pieces": 2, "score": score, "error": error}
    return place | {"additive": method in PROVEN, "is_word": is_word}


def _tokens(scores: pd.DataFrame) -> pd.DataFrame:
    """Every word as one token."""
    groups = ["text", "model", "method", "baseline"]
    frame = scores.drop(columns=["pieces", "additive", "is_word"]).rename(columns={"word": "token"})
    return frame.assign(position=scores.groupby(groups).cumcount(), kind="text")


def _certificates(made: Study, rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for model in made.models:
        for text in _texts(made):
            for method, baselines in PROVEN.items():
                for baseline in baselines if method in made.methods else ():
                    good = method != "fixed_steps"
                    bound = 0.004 if good else 5.0
                    rows.append(
                        _keys(made, text, model)
                        | _goal(made, text)
                        | {
                            "method": method,
                            "baseline": baseline,
                            "sink": "kept" if good else "moved",
                            "unit": "nats",
                            "tolerance": 0.01,
                            "evaluations": 96 if good else 50,
                            "forwards": 2,
                            "f_input": -rng.uniform(1, 9),
                            "f_baseline": -15.0,
                            "delta": 0.01 if good else 40.0,
                            "bound": bound,
                            "token_error": 0.001,
                            "relative_delta": bound / 2,
                            "converged": good,
                        }
                    )
    return rows


def _heads(made: Study, rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for model in made.models:
        for text in _texts(made):
            tokens = 4 + len(words(TEXTS[text][0]))
            plain = {name: float(value) for name, value in statistics(uniform(tokens)).items()}
            for layer in range(2):
                for head in range(2):
                    made_up = {name: value * rng.uniform(0.3, 0.9) for name, value in plain.items()}
                    made_up |= {"sink": rng.uniform(0.55, 0.9), "diagonal": rng.uniform(0.06, 0.14)}
                    rows.append(_keys(made, text, model) | {"layer": layer, "head": head, "tokens": tokens} | made_up)
    return rows


def _agreement(made: Study, rng: np.random.Generator) -> list[dict[str, object]]:
    return [
        _keys(made, text, model)
        | _goal(made, text)
        | {"method_a": a, "method_b": b, "spearman": rng.uniform(0.55, 0.95), "top_k_overlap": rng.uniform(0.3, 1)}
        for model in made.models
        for text in _texts(made)
        for i, a in enumerate(made.methods)
        for b in made.methods[i + 1 :]
    ]


def _faithfulness(made: Study, rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for model in made.models:
        for text in _texts(made):
            own = [setting for setting in _settings(made) if setting[1] != "eos"]
            for method, baseline, sink in [*own, ("last_to_first", "", "")]:
                keys = _keys(made, text, model) | _goal(made, text)
                keys |= {"method": method, "baseline": baseline, "sink": sink, "unit": "nats", "deletion": "mean"}
                drop, random = rng.uniform(0, 3), rng.uniform(0, 1)
                rows.append(
                    keys
                    | {
                        "comprehensiveness": drop,
                        "comprehensiveness_random": random,
                        "comprehensiveness_random95": random + 0.5,
                        "comprehensiveness_beats_random": drop > random + 0.5,
                        "sufficiency": random / 2,
                        "sufficiency_random": random,
                        "sufficiency_random5": random - 0.5,
                        "sufficiency_beats_random": False,
                    }
                )
    return rows
