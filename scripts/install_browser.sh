#!/usr/bin/env bash
# Installs what the tests of the web page need: Debian's Chromium and a Chinese font. Where that is impossible, it says so and ends well.
#
#     bash scripts/install_browser.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail

PACKAGES=(chromium fonts-noto-cjk)

main() {
  if command -v chromium >/dev/null && [[ -n $(fc-list :lang=zh 2>/dev/null) ]]; then
    echo "browser: chromium and a Chinese font are installed | 浏览器和中文字体已安装"
  elif ! command -v apt-get >/dev/null; then
    skip "no apt-get here" "这里没有 apt-get"
  elif [[ $(id -u) != 0 ]]; then
    skip "only root may install packages" "安装软件包需要 root"
  elif ! install; then
    skip "apt-get failed" "apt-get 失败"
  fi
}

install() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
  "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${PACKAGES[@]}"
}

skip() { # skip ENGLISH CHINESE
  printf 'browser: %s, so the tests of the web page are skipped; install %s by hand | %s，网页的测试会跳过\n' "$1" "${PACKAGES[*]}" "$2" >&2
}

main "$@"
