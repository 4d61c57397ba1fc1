#!/usr/bin/env bash
# The kernels' tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, on every variant of this machine.
# Any read or write out of bounds, use after free, overflow of a signed integer, misaligned access or failed
# precondition (HR_CHECK) ends the run. Python never frees all it has, so of the leaks at its end those alone count
# that were allocated by the kernels' own code.
#
#     BIN=.venv/bin [TESTS="files"] bash kernels/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
python=$bin/python
out=$PWD/build/sanitize
export HEADRACE_KERNELS_SANITIZE=1 HEADRACE_KERNELS_DEBUG=1

asan=$(${CC:-gcc} -print-file-name=libasan.so)
ubsan=$(${CC:-gcc} -print-file-name=libubsan.so)
if [ ! -f "$asan" ] || [ ! -f "$ubsan" ]; then
    echo "sanitize: ${CC:-gcc} has no libasan and libubsan (Debian: apt install libgcc-12-dev; Fedora: dnf install libasan libubsan)" >&2
    exit 2
fi

start=$SECONDS
"$python" setup.py -q build_ext --build-temp "$out/temp" --build-lib "$out/lib" >"$out.log" 2>&1 || { cat "$out.log" >&2; exit 1; }
# The Python side is linked, so that what runs is what stands in the checkout.
for path in kernels/headrace_kernels/* kernels/headrace_kernels/_native/*.py; do
    case $path in *_native | *__pycache__) continue ;; esac
    ln -sf "$PWD/$path" "$out/lib/${path#kernels/}"
done
ln -sfn "$PWD/kernels/headrace_kernels/_native/simd" "$out/lib/headrace_kernels/_native/simd"
ln -sf "$PWD"/kernels/headrace_kernels/_native/*.pyi "$out/lib/headrace_kernels/_native/"
echo "sanitize: built in $((SECONDS - start)) s"

start=$SECONDS
rm -f "$out"/report.*
export PYTHONPATH=$out/lib PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
export UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=exitcode=0:max_leaks=0
LD_PRELOAD="$asan:$ubsan" ASAN_OPTIONS=detect_leaks=0 "$python" -c '
import headrace_kernels as kernels, headrace_kernels._native.dispatch as dispatch
assert "/build/sanitize/lib/" in dispatch.__file__, dispatch.__file__
print("sanitize:", *kernels.variants())'
status=0
LD_PRELOAD="$asan:$ubsan" ASAN_OPTIONS=detect_leaks=1:log_path=$out/report \
    "$python" -m pytest -q -p no:cacheprovider -k 'not exponential' \
    ${TESTS:-tests/unit/kernels tests/property/test_kernels_properties.py tests/property/test_kernels_sampling_properties.py
        tests/property/test_topk_scan_properties.py} "$@" || status=$?
echo "sanitize: tested in $((SECONDS - start)) s"
if compgen -G "$out/report.*" >/dev/null; then "$python" kernels/own_leaks.py "$out"/report.* || status=1; fi
exit $status
