#!/usr/bin/env bash
# What works on this machine's GPU, in about eight minutes, as a report to keep or to send.
#
#     bash benchmarks/on_gpu.sh --out gpu_report
#     bash benchmarks/on_gpu.sh --help
#
# Python is that of PYTHON, else of the environment that run.sh made, else python3.
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

main() {
  local python=${PYTHON:-}
  if [[ -z $python ]]; then
    python=${VENV_DIR:-$ROOT/.venv}/bin/python
    [[ -x $python ]] || python=python3
  fi
  exec "$python" "$ROOT/benchmarks/on_gpu.py" "$@"
}

main "$@"
