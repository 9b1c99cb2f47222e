#!/usr/bin/env bash
# Does the kit work with an older transformers? Run by hand, in some minutes: tests/older_transformers.sh [VERSION]
#
# A virtual environment on top of .venv gets that version and the huggingface_hub that it needs. Every module must be
# imported there, and a sentence get the scores that it has with the pinned version, to 0.001 nats.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-5.17.0}
python=$PWD/.venv/bin/python
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  "transformers==$version" $([ "${version%%.*}" -gt 5 ] || echo "huggingface_hub<2")
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$packages/pinned.pth"

explain() {
  PYTHONPATH=$PWD "$1" -m xai_utils explain "The capital of France is" --answer " Paris" --json
}
PYTHONPATH=$PWD "$folder/venv/bin/python" - <<'END'
import importlib, pkgutil, transformers, xai_utils
for module in pkgutil.walk_packages(xai_utils.__path__, "xai_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(f"transformers {transformers.__version__}: every module is imported")
END
explain "$python" >"$folder/pinned.json"
XAI_CACHE="$folder/cache" explain "$folder/venv/bin/python" >"$folder/older.json"
"$python" - "$folder/pinned.json" "$folder/older.json" <<'END'
import json, sys
pinned, older = ([word["score"] for word in json.load(open(file))["words"]] for file in sys.argv[1:])
apart = max(abs(a - b) for a, b in zip(pinned, older, strict=True))
print(f"scores differ by {apart:.2g} nats")
sys.exit(apart > 1e-3)
END
