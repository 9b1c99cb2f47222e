"""The table of dependencies: every direct one, with its licence as its package states it; and none that nobody uses."""

import ast
import importlib.metadata
import re
import sys

import pytest

from xai_utils.files import ROOT

HOMES = ("xai_utils", "recipes", "report", "tests", "benchmarks")
OPTIONAL = {"bitsandbytes", "inseq"}  # docs/large-models.md, benchmarks/requirements.txt
UNIMPORTED = {  # used by a library, a command or a setting
    *("accelerate", "tiktoken", "tinycss2", "jupyterlab", "ipykernel", "dask", "scikit-learn"),
    *("pytest-timeout", "pytest-xdist", "ruff", "mypy", "pandas-stubs", "types-psutil", "types-pyyaml", "pre-commit"),
    *("setuptools",),
}
SPDX = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}
TABLE = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \|$", TABLE, re.MULTILINE)
LICENCES = {name: licence for name, licence, _ in ROWS if name != "package"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> list[str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("# What those bring along")[0]
    return re.findall(r"^([\w.-]+)==", text, re.MULTILINE)


def imported() -> set[str]:
    """The modules that the code imports and that are neither Python's nor its own."""
    found = set()
    for path in (path for home in HOMES for path in (ROOT / home).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - set(HOMES) - OPTIONAL


def test_the_table_is_the_list_of_direct_dependencies():
    assert list(LICENCES) == direct()
    assert all(purpose.strip() for *_, purpose in ROWS)


def test_what_is_imported_is_listed_and_what_is_listed_is_used():
    homes = importlib.metadata.packages_distributions()
    used = {plain(home) for module in imported() for home in homes[module]}
    listed = {plain(name) for name in direct()}
    assert used - listed == set()
    assert listed - used - UNIMPORTED == set()


@pytest.mark.parametrize("name", LICENCES)
def test_a_licence_is_the_package_s_own(name):
    told = importlib.metadata.metadata(name)
    classified = [line.split(" :: ")[-1] for line in told.get_all("Classifier") or [] if line.startswith("License")]
    stated = " ".join([told.get("License-Expression") or told.get("License") or "", *classified])
    for long, short in SPDX.items():
        stated = stated.replace(long, short)
    family = re.split(r"[- ]", LICENCES[name])[0]  # BSD, MIT, Apache: older packages state no more
    assert family in stated or (family == "PSF" and "PSF" in stated)
