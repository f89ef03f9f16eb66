#!/usr/bin/env bash
# From nothing to a model that talks: environment, mix, tokenizer, tensors, pretrain, SFT, DPO, an evaluation after each.
#
#     bash scripts/run.sh              # stop it when you like: the same command resumes where it was
#     bash scripts/run.sh --with lora  # and methods of post-training after that
#     bash scripts/run.sh --help
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh, which knows neither arrays nor pipefail
set +o posix                                       # sh may be bash under another name
set -euo pipefail

self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do # started through a symbolic link: the other scripts lie beside the file that it points to
  link=$(readlink "$self")
  case $link in /*) self=$link ;; *) self=$(dirname -- "$self")/$link ;; esac
done
ROOT=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd)
FLAGS=(--smoke-test --profile --with --from-stage --until-stage --fresh --help)
STAGES=(env mix tokenizer export pretrain sft dpo)
OPTIONAL_STAGES=(lora reason distill reward grpo ppo) # in the order in which they run
MIN_PYTHON_MINOR=10 # of Python 3
CPU_INDEX=https://download.pytorch.org/whl/cpu

main() {
  read_flags "$@"
  read_environment
  find_python

  stage_env
  lock_folder 9 "$OUT_DIR"
  choose_profile
  prepare_stages
  lock_folder 8 "$DATA_DIR"
  stage mix planned mix
  stage tokenizer make_tokenizer
  stage export export_tensors
  exec 8<&- # other runs may read the data now
  stage pretrain train_and_evaluate pretrain
  stage sft train_and_evaluate sft
  stage dpo train_and_evaluate dpo
  local name
  for name in "${OPTIONAL_STAGES[@]}"; do
    if is_asked_for "$name"; then stage "$name" train_and_evaluate "$name"; fi
  done

  ((stages_run)) || log "everything is up to date: --fresh or --from-stage NAME starts over" "全部已完成，用 --fresh 或 --from-stage 可重做"
  pipeline report
  write_report
}

write_report() { # the page about this run; it is no stage, so a report that fails leaves the run as good as it was
  attempt "$VENV_PYTHON" "$ROOT/scripts/run_report.py" ||
    log "the report could not be written (see above); the run itself is complete: python scripts/run_report.py writes it" \
      "报告没有写成，但训练已全部完成；可再运行 python scripts/run_report.py"
}

make_tokenizer() { # train one with the Rust crate (ENABLE_RUSTBPE=1), or take the one that ships in model/
  if [[ $ENABLE_RUSTBPE == 0 ]]; then
    log "taking the tokenizer that is there; ENABLE_RUSTBPE=1 trains one on your data" "使用现成的分词器"
    return
  fi
  planned tokenizer
}

export_tensors() { # token and loss-mask tensors for each trainer
  local name
  for name in pretrain sft dpo; do planned export "$name"; done
}

train_and_evaluate() { # train_and_evaluate STAGE: each resumes, or returns at once if its work is done
  planned "$1" train
  planned "$1" evaluate
}

# --- stages ----------------------------------------------------------------------------------------------------------

stages_run=0
stage() { # stage NAME COMMAND...: run once per set of inputs; rerunning resumes at the first unfinished stage
  local name=$1 started=$SECONDS verdict
  shift
  verdict=$(pipeline begin "$name") || fail "$name" $? # compares hashes of settings, inputs and outputs
  if [[ $verdict == "up to date" ]]; then
    log "stage $name: up to date" "无需重做"
    end_if_last "$name"
    return
  fi
  ((stages_run)) || preflight
  stages_run=$((stages_run + 1))
  stage_name=$name
  log "stage $name: start" "开始：$(chinese_name "$name")"
  "$@"
  pipeline finish "$name" --seconds $((SECONDS - started)) || fail "$name" $?
  log "stage $name: done in $((SECONDS - started)) s" "完成：$(chinese_name "$name")"
  end_if_last "$name"
}

chinese_name() { # chinese_name STAGE
  case $1 in
    env) printf '准备环境' ;;
    mix) printf '混合数据' ;;
    tokenizer) printf '分词器' ;;
    export) printf '转成 token 张量' ;;
    pretrain) printf '预训练' ;;
    sft) printf '监督微调' ;;
    dpo) printf '偏好对齐' ;;
    lora) printf '低秩适配' ;;
    reason) printf '推理' ;;
    distill) printf '蒸馏' ;;
    reward) printf '奖励模型' ;;
    grpo) printf 'GRPO 强化学习' ;;
    ppo) printf 'PPO 强化学习' ;;
  esac
}

end_if_last() { # end_if_last STAGE: --until-stage asked for no more than this
  if [[ $1 == "$until_stage" ]]; then exit 0; fi
}

planned() { # planned STAGE [STEP]: run the command that the plan has for it
  local list word words=()
  list=$(pipeline command "$@") || fail "$1" $?
  while IFS= read -r word; do words+=("$word"); done <<<"$list"
  log "\$ python$(printf ' %q' "${words[@]//"$PWD/"/}")" # as one would type it from here
  run "$VENV_PYTHON" "${words[@]}"
}

pipeline() { # pipeline VERB...: ask the stage book
  "$VENV_PYTHON" "$ROOT/scripts/pipeline/ask.py" --profile "$profile" --gpus_found "$gpus_usable" --with "$with" "$@"
}

prepare_stages() { # find mistakes in the settings now, not after hours; then forget what is to be done again
  pipeline check || exit $?
  if [[ -n $from_stage ]]; then pipeline redo-from "$from_stage" || exit $?; fi
}

choose_profile() { # by the hardware, unless the user chose
  if [[ -n $profile ]]; then
    log "profile: $profile (as asked for; hardware: $hardware)" "按要求使用该配置"
  else
    profile=$fitting_profile
    log "profile: $profile (hardware: $hardware); --profile NAME overrides" "按硬件选择，可用 --profile 指定"
  fi
}

preflight() { # once, before the first stage that has work to do
  log "preflight:" "开工前检查："
  run "$VENV_PYTHON" "$ROOT/scripts/doctor.py"
}

# --- environment -----------------------------------------------------------------------------------------------------

stage_env() { # VENV_DIR with requirements.txt installed, and the crate if it is asked for
  local started=$SECONDS
  DEPS_MARK=$VENV_DIR/.deps_installed
  CRATE_MARK=$VENV_DIR/.rustbpe_built
  if [[ $from_stage == env ]]; then
    unmark "$DEPS_MARK" "$CRATE_MARK"
    from_stage=mix
  fi
  if venv_works && is_marked "$DEPS_MARK" requirements_mark && crate_is_ready; then
    log "stage env: up to date" "无需重做"
    end_if_last env
    return
  fi
  log "stage env: start" "开始：$(chinese_name env)"
  exec 7<"$ROOT/requirements.txt"
  lock_folder 7 "$VENV_DIR"
  if ! { venv_works && is_marked "$DEPS_MARK" requirements_mark; }; then
    unmark "$DEPS_MARK"
    if ! venv_works; then create_venv; fi
    install_requirements
    mark "$DEPS_MARK" requirements_mark
  fi
  if ! crate_is_ready; then
    build_crate
    mark "$CRATE_MARK" crate_mark
  fi
  exec 7<&-
  log "stage env: done in $((SECONDS - started)) s" "完成：$(chinese_name env)"
  end_if_last env
}

find_python() { # the environment's Python if there is one already, else PYTHON
  any_python=$PYTHON
  if venv_works; then any_python=$VENV_PYTHON; fi
  check_python "$any_python"
  log "python: $(command -v "$any_python") ($("$any_python" --version 2>&1)), environment: $VENV_DIR" "解释器与虚拟环境"
  hardware=$("$any_python" "$ROOT/scripts/doctor.py" --hardware) || exit $?
  read -r fitting_profile gpus_usable gpus_there hardware <<<"$hardware"
}

venv_works() { [[ -x $VENV_PYTHON ]] && "$VENV_PYTHON" --version >/dev/null 2>&1; }

is_marked() { # is_marked FILE COMMAND: whether the file holds what the command says today
  [[ -f $1 && $(<"$1") == "$("$2")" ]]
}

mark() { # mark FILE COMMAND: written last, so an interrupted installation does not count
  { "$2" >"$1.tmp" && mv "$1.tmp" "$1"; } ||
    die "$1: can't be written. Check disk space and permissions, rerun." "无法写入：请检查磁盘空间和权限后重试"
}

unmark() { # unmark FILES: what they stand for is to be made again
  rm -f "$@" 2>/dev/null ||
    die "$VENV_DIR: can't be changed. Check its permissions, or set VENV_DIR to a folder of your own, rerun." \
      "无法修改环境目录：请检查权限，或用 VENV_DIR 指定自己的目录"
}

crate_is_ready() { [[ $ENABLE_RUSTBPE == 0 ]] || is_marked "$CRATE_MARK" crate_mark; }

crate_mark() { # what the crate was built from, word for word
  cat "$ROOT"/rustbpe/{Cargo.toml,Cargo.lock,pyproject.toml} "$ROOT"/rustbpe/src/*.rs
  "$VENV_PYTHON" --version 2>&1
}

build_crate() { # the Rust crate that trains tokenizers, as a module of the environment's Python
  local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin options=(develop --release --manifest-path "$ROOT/rustbpe/Cargo.toml")
  if ! command -v cargo >/dev/null && [[ -x $cargo_bin/cargo ]]; then PATH=$PATH:$cargo_bin; fi # a shell older than Rust
  command -v cargo >/dev/null ||
    die "cargo: not found, and ENABLE_RUSTBPE=1 builds the tokenizer's crate with it. Install Rust 1.88 or later from https://rustup.rs, rerun; without Rust, python scripts/train_tokenizer.py trains a tokenizer too." \
      "找不到 cargo：请从 https://rustup.rs 安装 Rust 后重试"
  if [[ $ENV_TOOL == uv ]]; then options+=(--uv); fi
  log "building the crate rustbpe" "正在编译 rustbpe"
  attempt env -u CONDA_PREFIX VIRTUAL_ENV="$VENV_DIR" "$VENV_DIR/bin/maturin" "${options[@]}" ||
    die "rustbpe: the crate can't be built (exit $?). Look at the messages above; Rust 1.88 or later is needed (rustup update)." \
      "rustbpe 编译失败：请看上面的信息，需要 Rust 1.88 或更新"
}

requirements_mark() { # what the environment was made from, word for word
  cat "$ROOT/requirements.txt"
  "$VENV_PYTHON" --version 2>&1
}

check_python() { # check_python COMMAND
  local version
  version=$("$1" --version 2>&1) ||
    die "$1: not found or broken. Install Python 3.$MIN_PYTHON_MINOR or later, or name one: PYTHON=python3.12 bash scripts/run.sh." \
      "Python 不可用：请安装 3.$MIN_PYTHON_MINOR 或更新的版本，或用 PYTHON= 指定"
  [[ $version =~ ^Python\ 3\.([0-9]+) && ${BASH_REMATCH[1]} -ge $MIN_PYTHON_MINOR ]] ||
    die "$1 is $version: Python 3.$MIN_PYTHON_MINOR or later is needed. Name one: PYTHON=python3.12 bash scripts/run.sh." \
      "Python 版本太旧：请用 PYTHON= 指定更新的版本"
}

create_venv() {
  if [[ -f $VENV_DIR/pyvenv.cfg ]]; then
    rm -rf "${VENV_DIR:?}" # an environment whose Python is gone
  elif [[ -d $VENV_DIR && -n $(ls -A "$VENV_DIR") ]]; then
    die "$VENV_DIR: neither empty nor a Python environment. Delete it, or name another place: VENV_DIR=..." \
      "该目录非空，也不是虚拟环境：请删除，或用 VENV_DIR= 换一处"
  fi
  if [[ $ENV_TOOL == uv ]]; then
    attempt uv venv --python "$(command -v "$PYTHON")" "$VENV_DIR" ||
      die "$VENV_DIR: can't be created (exit $?). See above, rerun." "虚拟环境创建失败：请看上面的信息"
  else
    attempt "$PYTHON" -m venv "$VENV_DIR" ||
      die "$VENV_DIR: can't be created (exit $?). On Debian and Ubuntu: sudo apt install python3-venv. Then rerun." \
        "虚拟环境创建失败：在 Debian、Ubuntu 上请先 sudo apt install python3-venv"
  fi
}

install_requirements() { # torch first if its CPU build is enough: the ordinary one brings 4.5 GB for NVIDIA GPUs
  local index torch
  torch=$(grep -E '^torch[^a-z]' "$ROOT/requirements.txt")
  index=$(torch_index)
  if [[ -n $index ]]; then
    if "$VENV_PYTHON" "$ROOT/scripts/doctor.py" --probe "$index"; then
      log "taking torch from $index" "从该源安装 torch"
      install --index-url "$index" "$torch" ||
        log "$index: the installation failed; taking the ordinary torch package" "安装失败，改用普通的 torch 包"
    else
      log "$index: can't be reached within 5 seconds; taking the ordinary torch package (on Linux up to 4.5 GB more)" \
        "连不上该源，改用普通的 torch 包（Linux 上最多多下 4.5 GB）"
    fi
  fi
  install -r "$ROOT/requirements.txt" ||
    die "requirements.txt: the installation failed (exit $?). Look at the messages above, check the network, rerun." \
      "依赖安装失败：请看上面的信息并检查网络后重试"
}

torch_index() { # the index to take torch from; empty: the one of all packages
  if [[ -n ${TORCH_INDEX_URL:-} ]]; then
    printf '%s' "$TORCH_INDEX_URL"
  elif [[ $gpus_there == 0 && $(uname -s) != Darwin ]]; then # on macOS the ordinary package is the small one
    printf '%s' "$CPU_INDEX"
  fi
}

install() { # install ARGUMENTS...: with the tool that made the environment
  if [[ $ENV_TOOL == uv ]]; then
    attempt uv pip install --python "$VENV_PYTHON" "$@"
  else
    "$VENV_PYTHON" -m pip --version >/dev/null 2>&1 || "$VENV_PYTHON" -m ensurepip # uv made it, without pip
    attempt "$VENV_PYTHON" -m pip install "$@"
  fi
}

# --- settings --------------------------------------------------------------------------------------------------------

read_flags() {
  profile='' from_stage='' until_stage='' with=''
  while (($#)); do
    case ${1//_/-} in
      -h | --help) usage && exit 0 ;;
      --smoke-test) smoke=1 ;;
      --fresh) from_stage=mix ;;
      --profile | --with | --from-stage | --until-stage)
        (($# > 1)) || usage_error "$1 needs a name" "缺少名称"
        set -- "$1=$2" "${@:3}"
        continue
        ;;
      --with= | --from-stage= | --until-stage=) usage_error "${1%=} needs a name" "缺少名称" ;;
      --profile=*) profile=${1#*=} ;;
      --with=*) with=$with,${1#*=} ;;
      --from-stage=*) from_stage=${1#*=} ;;
      --until-stage=*) until_stage=${1#*=} ;;
      *) usage_error "unknown flag $1$(similar_flag "$1")" "没有这个参数" ;;
    esac
    shift
  done
  with=${with// /} with=${with#,} # names joined by commas
  check_optional
  check_stage --from-stage "$from_stage"
  check_stage --until-stage "$until_stage"
  if ((smoke)); then
    [[ -z $profile ]] ||
      usage_error "--smoke-test is the profile smoke: leave out --profile, or use --profile smoke alone" "不能与 --profile 同用"
    [[ -z $from_stage ]] ||
      usage_error "--smoke-test starts afresh each time: leave out --from-stage and --fresh" "冒烟测试总是从头开始"
    profile=smoke from_stage=mix
  fi
}

similar_flag() { # similar_flag FLAG: one that begins like it, as a question
  local flag given=${1%%=*} squeezed
  given=${given//[_-]/}
  for flag in "${FLAGS[@]}"; do
    squeezed=${flag//-/}
    if [[ -n $given && ($squeezed == "$given"* || $given == "$squeezed"*) ]]; then
      printf ': did you mean %s?' "$flag"
      return
    fi
  done
}

check_optional() { # the names that --with gives
  local name names
  IFS=, read -ra names <<<"$with,"
  for name in "${names[@]}"; do
    [[ -z $name || " ${OPTIONAL_STAGES[*]} " == *" $name "* ]] ||
      usage_error "--with $name: must be among ${OPTIONAL_STAGES[*]}, joined by commas" "没有这个阶段，多个名称用逗号连接"
  done
}

is_asked_for() { [[ ,$with, == *,$1,* ]]; } # is_asked_for STAGE: whether --with names this optional stage

check_stage() { # check_stage FLAG NAME: a stage of this run
  [[ -n $2 && " ${STAGES[*]} " != *" $2 "* ]] || return 0
  is_asked_for "$2" || [[ " ${OPTIONAL_STAGES[*]} " != *" $2 "* ]] ||
    usage_error "$1 $2: an optional stage, add --with $2" "可选阶段，请同时给出 --with $2"
  is_asked_for "$2" || usage_error "$1 $2: must be one of ${STAGES[*]}${with:+ ${with//,/ }}" "没有这个阶段"
}

read_environment() { # paths become absolute, from where the user stands; defaults lie in the repository
  PYTHON=${PYTHON:-python3}
  ENV_TOOL=${ENV_TOOL:-pip} # uv: set by run_cn_pipeline.sh
  ENABLE_RUSTBPE=${ENABLE_RUSTBPE:-0}
  VENV_DIR=$(absolute "${VENV_DIR:-$ROOT/.venv}")
  VENV_PYTHON=$VENV_DIR/bin/python
  DATA_DIR=$(absolute "${DATA_DIR:-$ROOT/data/processed}")
  OUT_DIR=$(absolute "${OUT_DIR:-$ROOT/out}")
  TF_DIR=$(absolute "${TF_DIR:-$ROOT/tf_dir}")
  if ((smoke)); then DATA_DIR=$DATA_DIR/smoke OUT_DIR=$OUT_DIR/smoke; fi
  export ENABLE_RUSTBPE DATA_DIR OUT_DIR TF_DIR
  if [[ -n ${SOURCE_DIR:-} ]]; then SOURCE_DIR=$(absolute "$SOURCE_DIR") && export SOURCE_DIR; fi
  export MINILLM_PARENT_PID=$$ # a trainer that finds this process gone saves and ends
  [[ $ENABLE_RUSTBPE == [01] ]] || die "ENABLE_RUSTBPE=$ENABLE_RUSTBPE: must be 0 or 1." "只能是 0 或 1"
  [[ $ENV_TOOL != uv ]] || command -v uv >/dev/null ||
    die "uv: not found. Install it with 'pip install uv' (or see https://docs.astral.sh/uv), or use bash scripts/run.sh, which needs no uv." \
      "找不到 uv：请先 pip install uv，或改用 bash scripts/run.sh"
  local folder
  for folder in "$DATA_DIR" "$OUT_DIR" "$TF_DIR"; do
    mkdir -p "$folder" 2>/dev/null && [[ -w $folder ]] ||
      die "$folder: can't be written. Check its permissions and the disk, or set DATA_DIR, OUT_DIR or TF_DIR to another folder." \
        "无法写入：请检查权限和磁盘，或换一个目录"
  done
}

absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac }

usage() {
  cat <<'HELP'
usage: bash scripts/run.sh [--smoke-test] [--profile NAME] [--with NAMES] [--from-stage NAME] [--until-stage NAME] [--fresh]

Trains a small Chinese language model from nothing: environment, data mix, tokenizer, tensors, pretraining, SFT and DPO,
with an evaluation after each training. Stopped or killed, the same command resumes where it was.
从零训练一个中文小模型：环境、数据配比、分词器、张量、预训练、SFT、DPO，每次训练后评测。中断后再次运行同一命令即可继续。

  --smoke-test        a tiny run of everything in about a minute, afresh, in DATA_DIR/smoke and OUT_DIR/smoke
                      约一分钟走完全流程的冒烟测试，不影响正式数据和权重
  --profile NAME      smoke, cpu, default, or a YAML file; without it the hardware decides
                      选择配置；不给时按硬件自动选择
  --with NAMES        train these too, an evaluation after each: any of lora,reason,distill,reward,grpo,ppo
                      主流程之后再训练这些阶段，逗号分隔，每个之后都评测
  --from-stage NAME   do a stage and all after it again: env mix tokenizer export pretrain sft dpo
                      从某个阶段起重做
  --until-stage NAME  end after this stage 到某个阶段为止
  --fresh             do everything after the environment again 除环境外全部重做
  --help              this text 显示帮助

Environment variables 环境变量 (defaults in brackets 方括号内为默认值):
  PYTHON [python3], VENV_DIR [.venv]                            Python and environment 解释器与虚拟环境
  DATA_DIR [data/processed], OUT_DIR [out], TF_DIR [tf_dir]     data, weights, results 数据、权重、结果
  SOURCE_DIR [data/chinese]                                     your own data 自己的数据
  PRETRAIN_ARGS, SFT_ARGS, DPO_ARGS                             extra flags of a trainer 训练器的附加参数
  LORA_ARGS, REASON_ARGS, DISTILL_ARGS, REWARD_ARGS, GRPO_ARGS, PPO_ARGS    the same 同上
  NUM_GPUS [all]                                                GPUs to train on 使用的显卡数
  ENABLE_RUSTBPE [0]                                            1: train a tokenizer with the Rust crate 训练分词器
  TORCH_INDEX_URL                                               where to take torch from 指定 torch 的下载源

Example 例子:  SFT_ARGS="--epochs 3 --learning_rate 5e-3" bash scripts/run.sh
HELP
}

# --- running and stopping --------------------------------------------------------------------------------------------

log() { # log ENGLISH [CHINESE]: one line for two readers
  printf '%s\n' "$1${2:+ | $2}"
}

die() { # die ENGLISH CHINESE
  log "error: $1" "$2" >&2
  exit 1
}

usage_error() { # usage_error ENGLISH CHINESE
  log "error: $1 (see --help)" "$2，用法见 --help" >&2
  exit 2
}

child='' smoke=0 from_stage='' stop_code=0 stop_signal='' stage_name=''
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP

stop() { # stop SIGNAL CODE: the first asks the running command to save and end, the second ends it at once
  local signal=TERM
  ((stop_code == 0)) || signal=KILL
  stop_code=$2 stop_signal=SIG$1
  [[ -n $child ]] || leave # between two programs
  log "stopping on SIG$1: waiting for the running command to save and end (again: at once)" "正在保存并停止，再按一次立即结束"
  kill -s "$signal" "$child" 2>/dev/null || true
}

leave() { # end after a signal, and say how to resume
  if ((smoke)); then
    log "stopped ($stop_signal); --smoke-test starts afresh each time" "已停止；冒烟测试每次从头开始"
  elif [[ -n $from_stage ]]; then
    log "stopped ($stop_signal); the same command without --fresh and --from-stage resumes from here" \
      "已停止；去掉 --fresh 和 --from-stage 再次运行即可继续"
  else
    log "stopped ($stop_signal); the same command resumes from here" "已停止；再次运行同一命令即可继续"
  fi
  exit "$stop_code"
}

attempt() { # attempt COMMAND...: run it so that a signal reaches this script at once; gives its exit code
  local code
  "$@" &
  child=$!
  while :; do
    code=0
    wait "$child" 2>/dev/null || code=$? # else bash prints a line of its own about a killed child
    kill -0 "$child" 2>/dev/null || break # a signal interrupts `wait`, though the command still runs
  done
  child=''
  ((stop_code == 0)) || leave
  return "$code"
}

run() { # run COMMAND...: or end here
  attempt "$@" || fail "$stage_name" $?
}

fail() { # fail STAGE CODE: say how to resume; the command has said what was wrong, unless it was killed
  local name=${1:+stage $1: }
  case $2 in
    130) stop_signal=SIGINT stop_code=130 && leave ;; # the command caught it first
    143) stop_signal=SIGTERM stop_code=143 && leave ;;
    1 | 2)
      log "${name}failed (exit $2). Fix the cause above, then rerun the same command to resume here." \
        "失败：请按上面的提示修正，再次运行同一命令即可继续" >&2
      ;;
    137)
      die "${name}killed (exit 137), often for lack of memory. Free some, then rerun the same command to resume here." \
        "被系统终止，多半是内存不足：释放内存后再次运行同一命令即可继续"
      ;;
    *)
      die "${name}failed (exit $2). Look at the messages above, then rerun the same command to resume here." \
        "失败：请看上面的信息，再次运行同一命令即可继续"
      ;;
  esac
  exit "$2"
}

lock_folder() { # lock_folder DESCRIPTOR FOLDER: until this script and the commands it started have ended
  case $1 in
    8) exec 8<"$2" ;;
    9) exec 9<"$2" ;;
  esac
  run "$any_python" "$ROOT/scripts/pipeline/lock.py" "$1" "$2"
}

main "$@"
