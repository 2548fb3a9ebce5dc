#!/usr/bin/env bash
# Kernel tests on the GPU, then the benchmarks, then one table and a dated result file. Under 9 minutes.
#
#   benchmarks/gpu.sh                 on a machine with a CUDA GPU
#   benchmarks/gpu.sh --self-check    everything tiny on the CPU; the default without a GPU; times mean nothing
#
# Needs the checkout, Python, torch, triton and, on a GPU, TRL. Other missing peers are named and left out; Liger is
# missing on Hopper without nvidia-cutlass-dsl, (92 MB). WITHOUT leaves heads out, comma-separated: WITHOUT=trl allows
# TRL to be absent. PYTHON picks the interpreter, MIPO_COMMIT names the commit if there is no .git, and result files are
# copied to OUT if it is set. Heads that agree with fp32 are timed even if a kernel test is red.
# Exit status: 0; 1 when a kernel test is red, a head of ours is wrong, fails or is absent, or TRL's was not timed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $(command -v "$python") ]] || python=python3
export PYTHONPATH="$root/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
SECONDS=0
status=0

case ${1:-} in
    "") ;;
    --self-check) export CUDA_VISIBLE_DEVICES="" ;;
    *) sed -n '2,11p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

echo "== 1. The machine"
"$python" benchmarks/record.py --machine "$parts/machine.json"

if grep -q '"device": "cpu"' "$parts/machine.json"; then
    echo "No GPU, or --self-check: a self-check on the CPU. Its times and ratios mean nothing."
    tiny=(--tiny --rounds 1) steps=(--tiny --rounds 1) results=$parts/results
    echo "== 2. Kernel tests: on a CPU they are part of 'make test' and not repeated here"
    tested="not run on a CPU"
else
    results=$root/benchmarks/results
    echo "== 2. Kernel tests on the GPU"
    tests() {
        timeout 100 "$python" tests/support/kernel_checks.py --device cuda || return
        # The rest of the GPU's tests, bf16 among them, need pytest; conftest.py would need jaxtyping and beartype, too.
        if "$python" -c 'import hypothesis, pytest' 2>/dev/null; then
            timeout 100 "$python" -m pytest -q -x -p no:cacheprovider --noconftest -o filterwarnings=default \
                -k "gpu or cuda" tests/kernels/test_kernels.py
        else
            echo "left out: tests/kernels/test_kernels.py, since pytest or hypothesis is not installed"
        fi
    }
    tested=green
    if ! tests; then
        tested=RED
        status=1
        echo "The kernel tests are RED or took longer than 100 s. Heads that agree with fp32 are timed all the same." >&2
    fi
    # What is left of 8.5 minutes, less 90 seconds for the training step.
    left=$((420 - SECONDS))
    tiny=(--seconds "$((left < 300 ? left : 300))") steps=(--seconds 60)
fi

printf '{"kernel_tests": "%s"}\n' "$tested" >"$parts/kernel_tests.json"

echo "== 3. The head alone ($SECONDS s)"
timeout "$((450 - SECONDS))" "$python" benchmarks/fused_head.py --out "$parts/fused_head.json" \
    --without "${WITHOUT:-}" "${tiny[@]}" || status=1

echo "== 4. A training step ($SECONDS s)"
if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformers") is None)'; then
    timeout "$((530 - SECONDS))" "$python" benchmarks/train_step.py --out "$parts/train_step.json" "${steps[@]}" ||
        status=1
else
    echo "left out: transformers is not installed"
fi

echo "== 5. The result ($SECONDS s)"
"$python" benchmarks/record.py --into "$results" "$parts"/{machine,kernel_tests,fused_head,train_step}.json
((status == 0)) || echo "NOT GREEN: something of ours is wrong, failed or did not end; see above." >&2
exit "$status"
