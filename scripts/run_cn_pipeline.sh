#!/usr/bin/env bash
# The pipeline of run.sh, flags and variables included, with the environment made by uv.
#
#     bash scripts/run_cn_pipeline.sh [--smoke-test] [...]
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do # started through a symbolic link
  link=$(readlink "$self")
  case $link in /*) self=$link ;; *) self=$(dirname -- "$self")/$link ;; esac
done
ENV_TOOL=uv exec bash "$(dirname -- "$self")/run.sh" "$@"
