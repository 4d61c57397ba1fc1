#!/usr/bin/env bash
# The kernels cross-compiled for aarch64, and their tests run there by qemu-user: the portable variant, on the compiler's
# NEON. Nothing is installed: packages of Debian are unpacked under build/aarch64, wheels beside them (0.4 GB in all).
#
#     BIN=.venv/bin [TESTS="files"] bash kernels/aarch64.sh [pytest arguments]
#
# build/aarch64/tools    gcc-aarch64-linux-gnu and qemu-user-static, where the machine has them not
# build/aarch64/sysroot  Python, its headers and the C library for arm64
# build/aarch64/site     NumPy, pytest and hypothesis for arm64
# build/aarch64/lib      the kernels
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."
root=$PWD
bin=${BIN:-.venv/bin}
case $bin in /*) ;; *) bin=$root/$bin ;; esac
python=$bin/python
out=$root/build/aarch64
tools=$out/tools sysroot=$out/sysroot site=$out/site
started=$SECONDS

if [ "$(uname -m)" = aarch64 ]; then
    echo "aarch64: this machine is one: \`make test\` runs the portable kernels on it"
    exit 0
fi
missing() { # what, the package that brings it
    echo "aarch64: $1 is not here, and was not brought by apt-get: install $2" >&2
    exit 2
}
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || missing $tool "qemu-user-static and gcc-aarch64-linux-gnu on a Debian, whose arm64 Python this unpacks"
done

fetch() { # folder, architecture, dpkg status, packages: downloads them and what they need, unless a former run did
    local folder=$1 architecture=$2 status=$3 state=$out/apt-$2
    shift 3
    [ -f "$folder/.fetched" ] && return
    rm -rf "$folder" "$state"
    mkdir -p "$folder" "$state"/{lists/partial,cache/archives/partial}
    touch "$state/empty"
    [ -r "$status" ] || status=$state/empty
    local options=(-qq -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$status"
        -o "Dir::Cache=$state/cache" -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
        -o APT::Sandbox::User=root -o Debug::NoLocking=1)
    { apt-get "${options[@]}" update &&
        apt-get "${options[@]}" install -y --download-only --no-install-recommends "$@"; } >"$state/log" 2>&1 ||
        { tail -n 5 "$state/log" >&2; missing "$*" "$* ($architecture)"; }
}
unpack() { # folder, archives
    local folder=$1 archive
    shift
    for archive in "$@"; do dpkg-deb -x "$archive" "$folder"; done
    touch "$folder/.fetched"
}

if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    host=$(dpkg --print-architecture)
    if [ ! -f "$tools/.fetched" ]; then
        echo "aarch64: fetching the cross compiler and qemu-user (about 110 MB)"
        fetch "$tools" "$host" /var/lib/dpkg/status gcc-aarch64-linux-gnu qemu-user-static
        # The cross C library stays out: its linker script names /usr; the one of the sysroot serves.
        unpack "$tools" "$out/apt-$host"/cache/archives/{*aarch64-linux-gnu*,*-cross-base*,libgcc*arm64-cross*,qemu-user*,lib{isl,mpc,mpfr,gmp,zstd,jansson}*}.deb
        rm -rf "$out/apt-$host/cache"
    fi
    export PATH=$tools/usr/bin:$PATH
    libraries=$tools/usr/lib/$(uname -m)-linux-gnu
fi
command -v qemu-aarch64-static >/dev/null || missing qemu-aarch64-static qemu-user-static
command -v aarch64-linux-gnu-gcc >/dev/null || missing aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu

if [ ! -f "$sysroot/.fetched" ]; then
    echo "aarch64: fetching Python for arm64 (about 30 MB)"
    fetch "$sysroot" arm64 none python3-minimal libpython3-stdlib libpython3-dev libstdc++6 libgcc-s1
    unpack "$sysroot" "$out"/apt-arm64/cache/archives/*.deb
    # Debian merges /lib into /usr/lib when it is installed, and the loader is asked for by its old name.
    [ -e "$sysroot/lib/ld-linux-aarch64.so.1" ] || ln -sfn usr/lib "$sysroot/lib"
    rm -rf "$out/apt-arm64/cache"
fi
# As sys.executable this script runs again what a test starts: the machine alone could not run an arm64 program.
mkdir -p "$out"
cat >"$out/python" <<RUN
#!/bin/sh
export PYTHONHOME=$sysroot/usr PYTHONPATH=$out/lib:$site PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
exec $(command -v qemu-aarch64-static) -L $sysroot -0 $out/python $sysroot/usr/bin/python3 "\$@"
RUN
chmod +x "$out/python"

version=$("$out/python" -S -c 'import sys; print("{}.{}".format(*sys.version_info))')
if [ ! -f "$site/.fetched" ]; then
    echo "aarch64: fetching NumPy and pytest for Python $version"
    "$python" -m pip --disable-pip-version-check install -q --target "$site" --upgrade --only-binary :all: \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        --python-version "$version" --implementation cp numpy 'pytest>=8.3,<10' 'pytest-timeout>=2.3,<3' 'hypothesis>=6.120,<7'
    touch "$site/.fetched"
fi

start=$SECONDS
LD_LIBRARY_PATH=${libraries:-} "$python" kernels/cross_build.py --compiler aarch64-linux-gnu-gcc --sysroot "$sysroot" \
    --python "$version" --objects "$out/objects" --lib "$out/lib"
LD_LIBRARY_PATH=${libraries:-} aarch64-linux-gnu-gcc --sysroot="$sysroot" -O2 -ffp-contract=off -DPORTABLE \
    '-DVECTOR="vector_portable.h"' -Ikernels/headrace_kernels/_native/simd tests/unit/kernels/exp_sweep.c -static -lm -o "$out/exp_sweep"
echo "aarch64: ready after $((SECONDS - started)) s, $((SECONDS - start)) s of it compiling"

# inputs, worst error in ulp of normal and of denormal answers, neighbours out of order
qemu-aarch64-static "$out/exp_sweep" 997 | awk '{ print "aarch64: exponential over", $1, "inputs: at most", $2, "ulp, denormals", $3 ", out of order", $4
    exit !($1 > 1000000 && $2 <= 1.01 && $3 <= 1.01 && $4 == 0) }'
"$out/python" -c '
import platform, headrace_kernels as kernels
assert platform.machine() == "aarch64"
assert kernels.__file__.startswith("'"$out"'/lib/")
print("aarch64:", platform.machine(), "python", platform.python_version(), "variants", *kernels.variants())'
start=$SECONDS
# `exponential` compiles a program of its own, which is the sweep above.
"$out/python" -m pytest -q -p no:cacheprovider -o addopts= -o timeout=1200 -k 'not exponential' \
    ${TESTS:-tests/unit/kernels tests/property/test_kernels_properties.py tests/property/test_kernels_sampling_properties.py
        tests/property/test_topk_scan_properties.py} "$@"
echo "aarch64: tested in $((SECONDS - start)) s"
