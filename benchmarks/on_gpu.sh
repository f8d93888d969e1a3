#!/usr/bin/env bash
# Installs, tests and times the CUDA path on a machine with a GPU and no network:
#
#     benchmarks/on_gpu.sh OUTDIR [STAGE...]     # install checks batch_norm optim hvp epoch spectrum
#
# Wants nvcc and compute-sanitizer, and for python3: numpy, pytest, torch and nvidia-cublas. A wheel of
# saddlepoint that lies in $SADDLEPOINT_WHEELS, or in .whl of this repository, is installed; without
# one it is built, for which cmake, ninja, pybind11 and scikit-build-core, and a wheel of
# scipy-openblas32 beside, are wanted too. Nothing is installed outside a temporary folder.
#
# CHECKED is a pattern of checks ("tests .*batch_norm", say), SECONDS_A_CASE what a benchmark's case
# may take, BENCH_OPTIONS what python -m benchmarks is given besides.
#
# A stage that fails or runs out of its time leaves the others theirs. OUTDIR gets a JSON a benchmark,
# logs.tar.gz and summary.txt, whose lines are printed last.
set -uo pipefail

if (($# < 1)); then
    echo "usage: $0 OUTDIR [STAGE...]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
stages=("${@:-}")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
root=$PWD
work=$(mktemp -d)
logs=$work/logs
mkdir -p "$logs"
export out root work logs
export WHEELS=${SADDLEPOINT_WHEELS:-$root/.whl} SECONDS_A_CASE=${SECONDS_A_CASE:-2}
export CHECKS_LIMIT=${CHECKS_LIMIT:-200} JOBS=${JOBS:-$(nproc)}
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

finish() {
    tar -czf "$out/logs.tar.gz" -C "$work" logs
    rm -rf "$work"
    echo "== summary"
    cat "$out/summary.txt"
}
trap finish EXIT
: >"$out/summary.txt"

failed=0
stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    if [[ -n ${stages[0]} && " ${stages[*]} " != *" $name "* && $name != install ]]; then return 0; fi
    echo "== $name, at $SECONDS s"
    timeout --kill-after=5 "$limit" bash -c '"$@"' - "$@" >"$logs/$name.log" 2>&1 || status=$?
    tail -n "${SHOWN:-12}" "$logs/$name.log"
    case $status in
        0) echo "$name: passed in $((SECONDS - begin)) s" >>"$out/summary.txt" ;;
        124 | 137) echo "$name: STOPPED after its $limit s" >>"$out/summary.txt" ;;
        *) echo "$name: FAILED ($status) after $((SECONDS - begin)) s" >>"$out/summary.txt" ;;
    esac
    ((status == 0)) || failed=1
    return "$status"
}

install() {
    local wheel=("$WHEELS"/saddlepoint-*.whl) blas=("$WHEELS"/scipy_openblas32-*.whl)
    pip() { python3 -m pip install --no-index --no-deps --upgrade --target "$work/site" "$@"; }
    nvidia-smi
    if [[ -f ${wheel[0]} ]] && pip "${wheel[0]}" && info; then return 0; fi
    [[ ! -f ${blas[0]} ]] || pip "${blas[0]}"
    SADDLEPOINT_CUDA=ON pip --no-build-isolation --config-settings "build-dir=$work/build" . && info
}

# Of the package that was installed, not of the sources beside.
info() {
    (cd "$work" && python3 -c 'import saddlepoint as sp; print(sp.info(), sp._native.cuda_module())')
}

# One test function under one tool. A process each: after a fault on the device, nothing that follows
# in the same process works.
check() { # TOOL FILE::FUNCTION
    local tool=$1 function=${2##*::} begin=$SECONDS status=0 left log
    log="$logs/$tool-$function.log"
    local command=(python3 -m pytest -m cuda -p no:cacheprovider -W default --tb=short
        "$2")
    if [[ $tool != tests ]]; then
        # Of two types one, of the batch norm's cases those with ReLU.
        command=(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9
            "${command[@]}" -k "not float64 and not gelu and not 100003")
    fi
    left=$((CHECKS_END - $(date +%s)))
    timeout --kill-after=5 "$((left > 1 ? left : 1))" "${command[@]}" >"$log" 2>&1 || status=$?
    echo "$tool $function: $(grep -aE '^[0-9]+ (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY|no tests ran' \
        "$log" | tr '\n' ' ')status $status, $((SECONDS - begin)) s"
    return "$status"
}

checks() {
    local all sanitized
    CHECKS_END=$(($(date +%s) + CHECKS_LIMIT - 10))
    export CHECKS_END
    all=$(grep -oE '^def test_\w+' tests/test_cuda*.py | sed 's/:def /::/')
    sanitized=$(grep sanitize <<<"$all")
    {
        sed 's/^/tests /' <<<"$all"
        sed 's/^/memcheck /' <<<"$sanitized"
        sed 's/^/racecheck /' <<<"$sanitized"
    } | grep -E "${CHECKED:-.}" | xargs -P "$JOBS" -L 1 bash -c 'check "$@"' -
}

bench() { # NAME
    python3 -m benchmarks "$1" --device cuda --output "$out" --seconds "$SECONDS_A_CASE" \
        ${BENCH_OPTIONS:-}
}

export -f install info check checks bench
stage install "${INSTALL_LIMIT:-400}" install || exit 1
stage checks "$CHECKS_LIMIT" checks
{
    grep -hE '^(tests|memcheck|racecheck) ' "$logs/checks.log" | grep -v 'status 0,'
} 2>/dev/null | sed 's/^/  /' >>"$out/summary.txt"
for name in batch_norm optim hvp epoch spectrum; do
    stage "$name" "${BENCH_LIMIT:-200}" bench "$name"
done
exit "$failed"
