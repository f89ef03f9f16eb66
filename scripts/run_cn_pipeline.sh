#!/usr/bin/env bash
# The pipeline of run.sh, flags and variables included, with the environment made by uv.
#
#     bash scripts/run_cn_pipeline.sh [--smoke-test] [...]
set -euo pipefail

ENV_TOOL=uv exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@"
