#!/usr/bin/env bash
# Builds, tests and times the CUDA path on a machine with a GPU and no network:
#
#     benchmarks/on_gpu.sh OUTDIR
#
# Wants nvcc, and for python3: cmake, ninja, pybind11, scikit-build-core, numpy, pytest, torch and
# nvidia-cublas. scipy-openblas32 comes from a wheel in $SADDLEPOINT_WHEELS, or in .whl of this
# repository. Nothing is installed outside a temporary folder; JSON and logs are left in OUTDIR.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=${SADDLEPOINT_WHEELS:-$PWD/.whl}
work=$(mktemp -d)
site=$work/site
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export SADDLEPOINT_CUDA=ON

summary=()
failed=0
finish() {
    rm -rf "$work"
    printf '%s\n' "-- summary" ${summary[@]+"${summary[@]}"}
}
trap finish EXIT

stage() { # NAME COMMAND...
    local name=$1 begin=$SECONDS status=0
    shift
    echo "-- $name"
    "$@" 2>&1 | tee "$out/$name.log" || status=$?
    if ((status == 0)); then
        summary+=("$name: passed in $((SECONDS - begin)) s")
    else
        summary+=("$name: FAILED with status $status after $((SECONDS - begin)) s, see $name.log")
        failed=1
    fi
    return "$status"
}

build() {
    nvidia-smi || return
    if ! python3 -c 'import scipy_openblas32' 2>/dev/null; then
        local wheel=("$wheels"/scipy_openblas32-*.whl)
        if [[ ! -f ${wheel[0]} ]]; then
            echo "no scipy_openblas32-*.whl in $wheels: set SADDLEPOINT_WHEELS to its folder" >&2
            return 1
        fi
        python3 -m pip install --no-index --no-deps --target "$site" "${wheel[0]}" || return
    fi
    python3 -m pip install --no-index --no-build-isolation --no-deps --target "$site" \
        --config-settings "build-dir=$work/build" --verbose . || return
    python3 -c 'import saddlepoint as sp; print(sp.info())'
}

sanitize() { # TOOL
    compute-sanitizer --tool "$1" --error-exitcode 1 python3 -m pytest -m cuda -k sanitize
}

stage build build || exit 1
stage tests python3 -m pytest -m cuda || true
stage memcheck sanitize memcheck || true
stage racecheck sanitize racecheck || true
stage benchmarks python3 -m benchmarks --device cuda --output "$out" || true
exit "$failed"
