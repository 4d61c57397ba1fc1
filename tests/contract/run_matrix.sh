#!/usr/bin/env bash
# The contract of messages and transports on both ends of the supported range: every dependency at its lower bound, and
# every dependency at its newest release. Runs from the repository's root; BIN is the environment's bin folder.
set -euo pipefail

bin=${BIN:-.venv/bin}
projects=(pyproject.toml protos/pyproject.toml clients/python/pyproject.toml)
mkdir -p build/venvs
"$bin/python" tests/contract/lower_bounds.py "${projects[@]}" --extra cpu > build/venvs/oldest.txt
sed 's/==.*//' build/venvs/oldest.txt > build/venvs/newest.txt
printf '%s\n' hypothesis psutil pytest pytest-benchmark pytest-timeout trustme | tee -a build/venvs/oldest.txt >> build/venvs/newest.txt

failed=()
for end in oldest newest; do
    venv=build/venvs/$end
    # The newest end is installed again each time: what is newest changes.
    if [ "$end" = newest ] || ! cmp -s "build/venvs/$end.txt" "$venv/installed.txt"; then
        echo "matrix: installing the $end dependencies"
        "$bin/python" -m venv --clear "$venv"
        "$venv/bin/python" -m pip --disable-pip-version-check -qq install -r "build/venvs/$end.txt"
        cp "build/venvs/$end.txt" "$venv/installed.txt"
    fi
    "$venv/bin/python" - "$end" <<'PYTHON'
import sys
from importlib import metadata

print(f"matrix: {sys.argv[1]}:", *(f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf", "numpy", "onnxruntime")))
PYTHON
    PYTHONPATH=$PWD/server:$PWD/kernels:$PWD/clients/python:$PWD/protos/gen/python \
        "$venv/bin/python" -m pytest -p no:cacheprovider \
        tests/contract/test_generated_messages.py tests/contract/test_inference_messages.py tests/contract/test_transport_*.py ${PYTEST_ARGS:-} || failed+=("$end")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "matrix: failed on the ${failed[*]} dependencies" >&2
    exit 1
fi
