"""One measurement in a process of its own: `python -m benchmarks.one KIND ...` prints it as one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import TEXTS

TEXT = """The sun was low in the sky and the air was cool when the old man came down to the river with his dog. He had
walked a long way that day, past the school and the church and the small white house near the road, and now he wanted
to sit on the grass and look at the water. The dog ran along the bank, and then it came back with a stick in its mouth
and put it at his feet. The man took the stick and threw it far into the river, and the dog went in after it. People in
the town said that he was the best man they had ever known, and that he would give his last bread to a child. When the
night came and the first star was in the sky, he got up and went home, and the dog went with him. The capital of France
is"""
MATRIX = 2048


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rate(dtype: str) -> float:
    """Floating-point operations a second of a large matrix product, in the median of fifteen."""
    import torch

    one, other = torch.randn(2, MATRIX, MATRIX, dtype=getattr(torch, dtype)).unbind()
    times = []
    for _ in range(15):
        start = time.perf_counter()
        one @ other
        times.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / statistics.median(times)


def peer(work: str, name: str, tokens: int, dtype: str, count: bool) -> dict[str, object]:
    """Seconds and peak memory of one peer's work, or with `count` the floating-point operations that it makes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import works
    from xai_utils.attribution.target import make_target
    from xai_utils.models.entry import ModelEntry
    from xai_utils.models.loading import load

    run = works.WORKS[work][name]
    model = load(ModelEntry.model_validate({"label": "m", "model": "smollm2-135m-instruct", "dtype": dtype}))
    case = case_of(model, tokens)
    target = make_target(model, case)
    works.one_pass(model, case, target)
    if count:
        torch.set_num_threads(1)  # the counter sees its own thread alone
        with FlopCounterMode(display=False) as counter:
            run(model, case, target)
        return {"operations": counter.get_total_flops()}
    before = rate(dtype)
    start = time.perf_counter()
    found = run(model, case, target)
    seconds = time.perf_counter() - start
    limit = (before + rate(dtype)) / 2  # a shared machine is not equally fast at all times
    return {"seconds": seconds, "rate": limit, "peak_mb": peak_mb(), "error": found.error, "scores": found.scores}


def case_of(model, tokens):  # type: ignore[no-untyped-def]
    """The end of the text that is `tokens` tokens long, the document's start in front included."""
    from xai_utils.study.config import Study
    from xai_utils.text.cases import prepare
    from xai_utils.text.entry import TextEntry

    words = TEXT.split()
    for first in range(len(words)):
        entry = TextEntry(id="t", text=" ".join(words[first:]))
        study = Study(name="benchmark", models=(model.entry,), texts=(entry,), max_tokens=1024)
        case = prepare(model, entry, study)
        if len(case.tokens) <= tokens:
            break
    if len(case.tokens) != tokens:
        raise ValueError(f"no end of the text is {tokens} tokens long")
    return case


def texts(count: int) -> dict[str, float]:
    """Time and peak memory of a study of so many texts, one tiny model, three methods, from an empty cache.

    The same few windows of TEXT go round, so that the texts of a large study are as long as those of a small one.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XAI_RUNS"] = folder
        from tests.tiny import save_tiny
        from xai_utils.study.config import Study
        from xai_utils.study.explainer import Explainer

        model = save_tiny(Path(folder) / "model")
        words = TEXT.split()
        entries = [
            {"id": f"t{n}", "text": f"{n:03d} " + " ".join(words[n % TEXTS[0] : n % TEXTS[0] + 12])}
            for n in range(count)
        ]
        study = {"name": "many", "models": [{"label": "m", "model": str(model)}], "texts": entries}
        book = Explainer(Study.model_validate(study | {"budget": 200}))
        start = time.perf_counter()
        book.write(book.study.methods, part="all")
        return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "texts":
        result: dict[str, object] = dict(texts(int(arguments[0])))
    else:
        asked, who, length, precision = arguments
        result = peer(asked, who, int(length), precision, count=kind == "count")
    print(json.dumps(result))
