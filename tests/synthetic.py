"""A study's tables without a model: the columns that the notebooks write, with numbers from a seed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from xai_utils.attention.layers import statistics, uniform
from xai_utils.evaluation.statistics import differences
from xai_utils.study.config import Study
from xai_utils.study.questions import tests as tested
from xai_utils.study.tables import StudyTables
from xai_utils.text.words import words

TEXTS = {
    "planets": ("Сколько планет в Солнечной системе?", " Восемь.", "ru"),
    "capital": ("The capital of France is", " Paris.", "en"),
    "moons": ("Сколько лун у Марса?", " Две.", "ru"),
    "river": ("What river flows through Paris?", " The Seine.", "en"),
    "bird": ("A penguin is a bird, but it cannot", " fly.", "en"),
    "proverb": ("Тише едешь — дальше", " будешь.", "ru"),
    "file": ("Чтобы открыть файл, выберите команду", " Файл", "ru"),
    "mouse": ("Щёлкните правой кнопкой", " мыши", "ru"),
    "name": ("Введите имя пользователя и", " пароль.", "ru"),
    "save": ("Чтобы сохранить документ, нажмите кнопку", " Сохранить.", "ru"),
    "window": ("Закройте окно и откройте новое", " окно.", "ru"),
    "oxygen": ("Plants breathe in carbon dioxide and release", " oxygen.", "en"),
}
PANEL = "panel_shapley"
METHODS = (PANEL, "integrated_gradients", "fixed_steps", "ablation", "sensitivity")
PROVEN = {"integrated_gradients": ("mean",), "fixed_steps": ("zero",)}
EXACT = {"bound": 0.0, "relative_delta": 0.0, "delta": 0.0, "evaluations": 0, "exact": True, "converged": True}
USES = {PANEL: ("dropped", "mean"), "ablation": ("dropped",)}
ABSENCES = ("dropped", "mean", "hidden")
ROLES = {"base": "base", "ru-ts": "adapted", "shuffled": "control"}
LAYERS = 3


def study(labels: tuple[str, ...] = ("base", "ru-ts"), texts: tuple[str, ...] = tuple(TEXTS), **more: object) -> Study:
    models = [{"label": label, "role": ROLES.get(label, "adapted"), "model": "tiny"} for label in labels]
    entries = [
        {"id": name, "text": TEXTS[name][0], "answer": TEXTS[name][1], "language": TEXTS[name][2]} for name in texts
    ]
    settings = {"name": "made", "methods": METHODS, "baseline": "mean", "claims": "original"}
    settings["chosen"] = "The answers are examples."
    return Study.model_validate(settings | {"models": models, "texts": entries} | more)


@functools.cache
def measured(labels: tuple[str, ...] = ("base", "ru-ts"), seed: int = 0, **more: object) -> StudyTables:
    """Everything that the report reads, for `labels`, the first of which is the base."""
    made = study(labels, **more)
    rng = np.random.default_rng(seed)
    tables = {
        "tokenization": pd.DataFrame([_keys(made, t, m) | _pieces(t, m, rng) for t, m in _cases(made)]),
        "behaviour": pd.DataFrame(list(_behaviour(made, rng))),
        "word_scores": pd.DataFrame(list(_scores(made, rng))).astype({"start": "Int64", "end": "Int64"}),
        "certificates": pd.DataFrame(list(_certificates(made, rng))),
        "attention_heads": pd.DataFrame(list(_heads(made, rng))),
        "attention_first_head": pd.DataFrame(list(_first_head(made, rng))),
        "attention_rollout": pd.DataFrame(list(_rollout(made, rng))),
        "agreement": pd.DataFrame(list(_agreement(made, rng))),
        "faithfulness": pd.DataFrame(list(_faithfulness(made, rng))),
        "stability": pd.DataFrame(list(_stability(made, rng))),
    }
    if len(made.models) > 1:
        tables |= {
            "swap": pd.DataFrame(list(_swap(made, rng))),
            "bridge": pd.DataFrame(list(_bridge(made, rng))),
            "attention_change": pd.DataFrame(list(_change(made, rng))),
        }
    tables["attributions"] = _tokens(tables["word_scores"])
    return refreshed(StudyTables(made, tables))


def refreshed(found: StudyTables) -> StudyTables:
    """The same with what notebook 05 computes from the other tables computed again."""
    tables = dict(found.tables)
    pairs = [
        differences(tables["word_scores"], tables["certificates"], found.base, other, found.study.baseline)
        for other in found.labels
        if other != found.base
    ]
    tables["difference"] = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()
    tables["questions"] = tested(StudyTables(found.study, tables))
    return StudyTables(found.study, tables)


def with_path(found: StudyTables, seed: int = 0) -> StudyTables:
    """The same for a pair that the adapter path is known of."""
    rng = np.random.default_rng(seed)
    path, proofs, deleted = [], [], []
    for text in _texts(found.study):
        keys = {"study": found.study.name, "text": text, "base": found.base, "other": found.adapted}
        keys |= _goal(text) | {"unit": "nats"}
        scores = rng.normal(0.4, 1.0, (LAYERS, len(words(TEXTS[text][0]))))
        for layer, row in enumerate(scores):
            for order, (word, score) in enumerate(zip(words(TEXTS[text][0]), row, strict=True)):
                place = {"layer": layer, "module": "q_proj", "half": "attention", "order": order, "word": word.text}
                path.append(keys | place | {"start": word.start, "end": word.end, "score": score})
        proof = {"tolerance": 0.01, "evaluations": 12, "bound": 0.004, "relative_delta": 0.001, "converged": True}
        proofs.append(keys | proof | {"cancellation": abs(scores).sum() / abs(scores.sum())})
        deleted.append(
            keys | {"removed": 2, "highest": rng.uniform(0.4, 0.8), "random": rng.uniform(0.1, 0.3), "random_95": 0.35}
        )
    names = {"adapter_path_words": path, "adapter_path_certificates": proofs, "layer_deletion": deleted}
    return StudyTables(found.study, dict(found.tables) | {name: pd.DataFrame(rows) for name, rows in names.items()})


def _texts(made: Study) -> list[str]:
    return [entry.id for entry in made.texts]


def _cases(made: Study) -> Iterator[tuple[str, object]]:
    return ((text, model) for model in made.models for text in _texts(made))


def _keys(made: Study, text: str, model: object) -> dict[str, str]:
    return {"study": made.name, "text": text, "model": model.label, "role": model.role}


def _goal(text: str) -> dict[str, str]:
    return {"target": "logprob", "target_text": TEXTS[text][1]}


def _pieces(text: str, model: object, rng: np.random.Generator) -> dict[str, object]:
    content, _, language = TEXTS[text]
    number = len(words(content))
    tokens = round(number * (4.0 if language == "ru" and model.role == "base" else 1.2) + rng.uniform(0, 2))
    counts = {"tokens": tokens + 1, "special": 1, "words": number, "tokens_per_word": tokens / number}
    return counts | {"characters": len(content), "truncated": 0, "padded": 0}


def _behaviour(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """Adapted models are sure of Russian answers but of the first, all models of English ones but of one."""
    for text, model in _cases(made):
        answer, language = TEXTS[text][1], TEXTS[text][2]
        sure = language == "en" and text != "river" or (model.role == "adapted" and text != "planets")
        probability = rng.uniform(0.62, 0.64) if sure else rng.uniform(0.0003, 0.004)
        yield (
            _keys(made, text, model)
            | _goal(text)
            | {
                "answer": answer,
                "probability": probability,
                "rank": 1 if sure else 40,
                "margin": np.nan,
                "next_text": answer.rstrip(".") if sure else f" {model.label}",
                "next_probability": max(probability, 0.2),
                "continuation": f"{answer} Then more." if sure else f" {model.label} says | something *else*",
            }
        )


def _settings(made: Study) -> list[tuple[str, str, str]]:
    return [
        (method, "panel" if method == PANEL else baseline, "moved" if method == "fixed_steps" else "kept")
        for method in made.methods
        for baseline in PROVEN.get(method, ("mean",))
    ]


def _scores(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        pieces = words(TEXTS[text][0])
        truth = rng.normal(0.5, 1.5, len(pieces))
        for method, baseline, sink in _settings(made):
            unsigned = np.abs if method == "sensitivity" else np.asarray
            scores = unsigned(truth + rng.normal(0, 0.3, len(pieces)))
            common = _keys(made, text, model) | _goal(text)
            common |= {"method": method, "baseline": baseline, "sink": sink, "unit": "nats"}
            start = -3.0 if sink == "moved" else np.nan
            yield common | _row("<|endoftext|>", None, None, start, 0.0, method, is_word=False)
            for word, score in zip(pieces, scores, strict=True):
                yield common | _row(word.text, word.start, word.end, score, 0.02, method)


def _row(word: str, start: int | None, end: int | None, score: float, error: float, method: str, is_word: bool = True):
    low, high = (score - 0.4, score + 0.5) if method == PANEL and is_word else (np.nan, np.nan)
    place = {"word": word, "start": start, "end": end, "pieces": 2, "score": score, "error": error}
    place |= {"low": low, "high": high, "stands": bool(low * high > 0) if np.isfinite(low) else pd.NA}
    return place | {"additive": method in PROVEN, "is_word": is_word}


def _tokens(scores: pd.DataFrame) -> pd.DataFrame:
    """Every word as one token."""
    groups = ["text", "model", "method", "baseline"]
    frame = scores.drop(columns=["pieces", "additive", "is_word", "low", "high", "stands"])
    return frame.rename(columns={"word": "token"}).assign(position=scores.groupby(groups).cumcount(), kind="text")


def _certificates(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        keys = _keys(made, text, model) | _goal(text) | {"unit": "nats", "tolerance": 0.01, "forwards": 512}
        ends = {"f_input": -1.0, "f_baseline": -9.0, "token_error": 0.0}
        yield keys | {"method": PANEL, "baseline": "panel", "sink": "kept"} | ends | EXACT
        for method, baselines in PROVEN.items():
            for baseline in baselines if method in made.methods else ():
                good = method != "fixed_steps"
                bound = rng.uniform(0.003, 0.005) if good else rng.uniform(1, 5)
                yield (
                    _keys(made, text, model)
                    | _goal(text)
                    | {
                        "method": method,
                        "baseline": baseline,
                        "sink": "kept" if good else "moved",
                        "unit": "nats",
                        "tolerance": 0.01,
                        "evaluations": int(rng.integers(60, 120)) if good else 50,
                        "forwards": 2,
                        "f_input": -rng.uniform(1, 9),
                        "f_baseline": -15.0,
                        "delta": 0.01 if good else 40.0,
                        "bound": bound,
                        "token_error": 0.001,
                        "relative_delta": bound / 2,
                        "converged": good,
                        "exact": False,
                    }
                )


def _heads(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        tokens = 4 + len(words(TEXTS[text][0]))
        plain = {name: float(value) for name, value in statistics(uniform(tokens)).items()}
        for layer in range(LAYERS):
            for head in range(2):
                made_up = {name: value * rng.uniform(0.3, 0.9) for name, value in plain.items()}
                made_up |= {"sink": rng.uniform(0.45, 0.9), "diagonal": rng.uniform(0.06, 0.14)}
                made_up["norm_sink"] = made_up["sink"] * 0.2
                yield _keys(made, text, model) | {"layer": layer, "head": head, "tokens": tokens} | made_up


def _first_head(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        yield _keys(made, text, model) | {"sink": rng.uniform(0.05, 0.1), "diagonal_mean": rng.uniform(0.2, 0.3)}


def _rollout(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        for layer in range(LAYERS):
            mass = {"rollout": 0.5 + 0.1 * layer + rng.uniform(0, 0.05), "rollout_uniform": 0.55 + 0.1 * layer}
            yield _keys(made, text, model) | {"layer": layer} | mass


def _change(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for model in made.models[1:]:
        for text in _texts(made):
            for layer in range(LAYERS):
                for head in range(2):
                    size = rng.uniform(0, 0.02) * (1 + 4 * (layer == 1)) if TEXTS[text][2] == "ru" else 0.0
                    yield {"study": made.name, "text": text, "base": made.models[0].label, "other": model.label} | {
                        "layer": layer,
                        "head": head,
                        "divergence": size,
                        "shared": size,
                        "floor": 0.02,
                        "beyond_floor": size > 0.02,
                    }


def _agreement(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        for i, a in enumerate(made.methods):
            for b in made.methods[i + 1 :]:
                alike = {"spearman": rng.uniform(0.55, 0.95), "top_k_overlap": rng.uniform(0.3, 1)}
                yield _keys(made, text, model) | _goal(text) | {"method_a": a, "method_b": b} | alike


def _faithfulness(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    good = {PANEL: 0.6, "integrated_gradients": 0.3, "last_to_first": 0.4, "ceiling": 0.7}
    for text, model in _cases(made):
        for method in [*made.methods, "first_to_last", "last_to_first", "ceiling"]:
            for absence in ABSENCES:
                share = good.get(method, 0.2) + rng.uniform(-0.05, 0.05)
                baseline = {name: baseline for name, baseline, _ in _settings(made)}.get(method, "")
                keys = {"method": method, "baseline": baseline, "sink": "", "unit": "nats", "absence": absence}
                yield (
                    _keys(made, text, model)
                    | _goal(text)
                    | keys
                    | {
                        "own": absence in USES.get(method, ()),
                        "comprehensiveness": 3 * share,
                        "sufficiency": 1 - share,
                        "share": share,
                        "random_mean": 0.0,
                        "random_95": 0.45,
                    }
                )


def _stability(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for text, model in _cases(made):
        alike = {"rank_correlation": rng.uniform(0.4, 0.5), "one_sign": rng.uniform(0.7, 0.9), "same_top": 0.0}
        yield _keys(made, text, model) | {"method": PANEL} | alike


def _swap(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for model in made.models[1:]:
        for text in _texts(made):
            keys = {"study": made.name, "text": text, "base": made.models[0].label, "other": model.label}
            keys |= _goal(text) | {"unit": "nats", "error": 0.0, "exact": True, "f_base": -9.0, "f_other": -1.0}
            russian = TEXTS[text][2] == "ru"
            for word in words(TEXTS[text][0]) if russian else ():
                yield (
                    keys
                    | {"part": word.text, "kind": "reading", "start": word.start, "end": word.end}
                    | {"score": rng.normal(0.2, 0.3)}
                )
            score = rng.uniform(4, 8) if russian else 0.0
            yield keys | {"part": TEXTS[text][1], "kind": "writing", "start": None, "end": None, "score": score}


def _bridge(made: Study, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    for model in made.models[1:]:
        for text in _texts(made):
            keys = {"study": made.name, "text": text, "base": made.models[0].label, "other": model.label}
            keys |= _goal(text) | {"unit": "nats", "f_base": -9.0, "f_other": -1.0}
            for step, size in (("tokenizer", -3.0), ("input_rows", 2.0), ("output_rows", 6.0), ("body", 0.0)):
                yield keys | {"step": step, "score": size * rng.uniform(0.8, 1.2) if TEXTS[text][2] == "ru" else 0.0}


def alt_text(path: Path) -> str:
    """The alt text inside a figure's file."""
    with Image.open(path) as picture:
        picture.load()
        return str(picture.info.get("Description", ""))
