"""Figures of notebook 00: the course of training, the beginnings compared, and what the held-out text says."""

import pandas as pd
from matplotlib.figure import Figure

from xai_utils.plots.style import INK, NOTHING, SUPPORTS, figure, style

UNTRAINED = "#e08214"


def training_curve(log: pd.DataFrame, held_out: float) -> Figure:
    """Loss in nats a token against tokens trained on, and that of the held-out text at the end as a line.

    `log` has the columns tokens and loss, as the checkpoint's table `training`.
    """
    with style():
        fig = figure(6.2, 2.9)
        axes = fig.add_subplot()
        tokens = log["tokens"] / 1e6
        axes.plot(tokens, log["loss"], color=NOTHING, linewidth=1, marker=".", markersize=3, label="training")
        smooth = log["loss"].rolling(7, center=True, min_periods=1).mean()
        axes.plot(tokens, smooth, color=SUPPORTS, linewidth=1.8, label="its running mean over seven")
        axes.axhline(held_out, color=INK, linewidth=1, linestyle="--", label="held-out text, at the end")
        axes.set_xlabel("millions of tokens")
        axes.set_ylabel("nats a token")
        axes.legend()
        axes.grid(axis="y")
    return fig


def trial_bars(trials: pd.DataFrame) -> Figure:
    """Russian bits per character after each trial, with the base's on the same text as a line."""
    table = trials[trials["trial"] != "base"].sort_values("bits_per_character_ru", ascending=False)
    base = float(trials.loc[trials["trial"] == "base", "bits_per_character_ru"].iloc[0])
    with style():
        fig = figure(6.2, 0.7 + 0.36 * len(table))
        axes = fig.add_subplot()
        bars = axes.barh(table["trial"], table["bits_per_character_ru"], color=SUPPORTS, height=0.62, zorder=2)
        axes.bar_label(bars, fmt="%.2f", padding=-30, color="white")
        axes.axvline(base, color=INK, linewidth=1, linestyle="--", zorder=1)
        axes.annotate(
            "base", (base, 1.0), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
        )
        axes.set_xlabel("bits per character of held-out Russian")
        axes.set_xlim(0, 1.12 * max(base, table["bits_per_character_ru"].max()))
    return fig


def bits_by_kind(evaluation: pd.DataFrame) -> Figure:
    """Bits per character of base, untrained and trained model for every kind of Russian text, and for English."""
    shown = evaluation[(evaluation["language"] == "ru") | (evaluation["kind"] == "all")]
    names = shown["kind"].where(
        shown["kind"] != "all", shown["language"].map({"ru": "all Russian", "en": "all English"})
    )
    table = shown.assign(name=names).pivot(index="name", columns="model", values="bits_per_character")
    kinds = sorted(set(table.index) - {"all Russian", "all English"}, key=lambda kind: -table.loc[kind, "base"])
    table = table.loc[["all English", "all Russian", *kinds[::-1]]]
    with style():
        fig = figure(6.2, 0.8 + 0.33 * len(table))
        axes = fig.add_subplot()
        places = range(len(table))
        three = table[["untrained", "base", "trained"]]
        axes.hlines(places, three.min(axis=1), three.max(axis=1), color="#e6e6e6", linewidth=3)
        for model, colour, marker in (("untrained", UNTRAINED, "x"), ("base", INK, "o"), ("trained", SUPPORTS, "D")):
            axes.scatter(table[model], places, color=colour, marker=marker, label=model, zorder=3, s=26)
        axes.set_yticks(places, table.index)
        axes.set_xlabel("bits per character of held-out text (left is better)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    return fig
