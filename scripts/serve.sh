#!/usr/bin/env bash
# The web page and the API on the newest weights of each stage, until Ctrl-C. 网页与接口，使用各阶段最新的权重。
#
#     bash scripts/serve.sh [flags of serve_openai_api.py]
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail

main() {
  local root python
  root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
  python=${VENV_DIR:-$root/.venv}/bin/python
  if [[ ! -x $python ]]; then
    log "error: $python: no such environment. Run: bash scripts/run.sh" "没有运行环境：请先运行所列命令" >&2
    exit 1
  fi
  if ! "$python" -c 'import fastapi, uvicorn' 2>/dev/null; then
    log "installing fastapi and uvicorn" "正在安装服务器所需的包" >&2
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >&2
    "$python" -m pip install --quiet 'fastapi>=0.115' 'uvicorn>=0.30' >&2
  fi
  exec "$python" "$root/scripts/web_demo.py" --port 8000 "$@" # a --port that is given comes last, and counts
}

log() { # log ENGLISH CHINESE
  printf '%s\n' "$1 | $2"
}

main "$@"
