#!/usr/bin/env bash
# buf lint, then buf breaking against the last release tag, or against main where a branch is being checked.
# Runs from the repository's root; BIN is the environment's bin folder. Nothing is fetched. `buf.sh copy` ends after
# making build/googleapis, which buf.yaml names.
set -euo pipefail

bin=$(cd "${BIN:-.venv/bin}" && pwd)
export BUF_CACHE_DIR="$PWD/build/buf-cache"

copy_googleapis() { # the .proto files of the installed googleapis-common-protos, into $1
    rm -rf "$1" && mkdir -p "$1"
    "$bin/python" - "$1" <<'PYTHON'
import shutil
import sys
from importlib import metadata
from pathlib import Path

for file in metadata.files("googleapis-common-protos") or []:
    if file.suffix == ".proto":
        target = Path(sys.argv[1], *file.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), target)
PYTHON
}

baseline() { # the last release that is an ancestor; else the main branch, the remote copy first
    git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null && return
    local name
    for name in origin/main main; do
        if git rev-parse --quiet --verify "$name^{commit}" >/dev/null; then
            echo "$name"
            return
        fi
    done
}

copy_googleapis build/googleapis
[ "${1:-}" != copy ] || exit 0
echo "buf: lint"
"$bin/buf" lint --path protos/headrace --path protos/inference

ref=$(baseline)
if [ -z "$ref" ]; then
    echo "buf: breaking skipped: no release tag and no main branch to compare with"
elif [ -z "$(git ls-tree -r --name-only "$ref" -- buf.yaml protos/headrace 2>/dev/null | grep -m1 buf.yaml || true)" ]; then
    echo "buf: breaking skipped: $ref has no buf.yaml"
else
    echo "buf: breaking against $ref"
    rm -rf build/buf-baseline && mkdir -p build/buf-baseline
    git archive "$ref" buf.yaml protos | tar -x -C build/buf-baseline
    copy_googleapis build/buf-baseline/build/googleapis
    "$bin/buf" breaking --against build/buf-baseline
fi
