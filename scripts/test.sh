#!/usr/bin/env bash
# Every check in one command, on a fresh machine too: format, lint, types, shell, requirements, Rust, tests.
#
#     bash scripts/test.sh                       # extra words go to pytest: bash scripts/test.sh -k run_sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
failed=()

main() {
  local rust=0
  if command -v cargo >/dev/null; then rust=1; fi
  ENABLE_RUSTBPE=$rust bash "$ROOT/scripts/run.sh" --until-stage env # the pipeline's environment, before the cd below: VENV_DIR may be relative
  case ${VENV_DIR:-} in
    '') VENV_DIR=$ROOT/.venv ;;
    /*) ;;
    *) VENV_DIR=$PWD/$VENV_DIR ;;
  esac
  cd "$ROOT"
  install_tools

  check format "$VENV_DIR/bin/ruff" format --check .
  check lint "$VENV_DIR/bin/ruff" check .
  check types "$VENV_DIR/bin/mypy"
  check shell "$VENV_DIR/bin/shellcheck" scripts/*.sh benchmarks/*.sh .ci/run
  check requirements "$VENV_DIR/bin/python" -m pip check
  if ((rust)); then check_rust; fi
  check tests run_tests "$@"

  if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[*]}" >&2
    exit 1
  fi
  if ((rust)); then
    printf 'all checks passed\n'
  else
    printf 'all checks passed, but for those of the crate rustbpe: cargo is missing (https://rustup.rs)\n'
  fi
}

check() { # check NAME COMMAND...: if one fails, the others still run
  local name=$1
  shift
  printf '== %s\n' "$name"
  "$@" || failed+=("$name")
}

run_tests() { # in two halves at once, because each uses one core; with words for pytest: only those tests
  local python=$VENV_DIR/bin/python half=(tests/dataset tests/evaluation tests/model) log code=0
  half+=(tests/test_odd_flags.py tests/test_odd_records.py tests/test_bad_input.py tests/test_foreign_models.py)
  if (($#)); then
    "$python" -m pytest "$@"
    return
  fi
  log=$(mktemp)
  "$python" -m pytest "${half[@]}" >"$log" 2>&1 &
  local other=$!
  "$python" -m pytest "${half[@]/#/--ignore=}" || code=$? # in the foreground: a background job ignores Ctrl-C, and some tests send it
  wait "$other" || code=$?
  cat "$log" && rm "$log"
  return "$code"
}

check_rust() {
  check "rust format" cargo fmt --manifest-path rustbpe/Cargo.toml --check
  check "rust lint" cargo clippy --manifest-path rustbpe/Cargo.toml --all-targets -- -D warnings
  check "rust tests" cargo test --manifest-path rustbpe/Cargo.toml
}

install_tools() { # the group `dev` of pyproject.toml; the mark is written last, as that of run.sh
  local mark=$VENV_DIR/.dev_installed
  if [[ -f $mark ]] && cmp -s pyproject.toml "$mark"; then return; fi
  "$VENV_DIR/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV_DIR/bin/python" -m ensurepip
  "$VENV_DIR/bin/python" -m pip install --quiet '.[dev]'
  cp pyproject.toml "$mark.tmp" && mv "$mark.tmp" "$mark"
}

main "$@"
