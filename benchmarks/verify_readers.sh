#!/usr/bin/env bash
# Is an exported model the same in transformers 4.57 and 5, in llama.cpp and in MLX? One table.
#
#     bash benchmarks/verify_readers.sh DIR                       # random weights of six kinds
#     bash benchmarks/verify_readers.sh DIR out/rlhf_192.pth ...  # these weights too
#     VERSIONS=transformers5 MODELS="moe yarn" KINDS="hf f16" bash benchmarks/verify_readers.sh DIR
#
# DIR gets two environments (12 GB), weights, exports and results. What is there is not made again,
# so an interrupted call goes on where it stopped; DIR/results/ is what to delete for a new one.
# 200 prompts of 64 tokens each; half an hour or more on two cores. Leaves with 1 where one differs.
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
TRANSFORMERS_4=('transformers>=4.57,<5')
# Newer mlx-lm needs transformers 5, and 0.29 can't read a mixture whose output matrix is its embedding.
TRANSFORMERS_5=('transformers>=5,<6' 'mlx-lm>=0.32' 'mlx[cpu]; sys_platform == "linux"')
TEXT_CHARACTERS=8000000 # of the bundled text, for the vocabularies

main() {
  if (($# == 0)) || [[ $1 == -* ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    (($#)) && [[ $1 == -h || $1 == --help ]]
    exit
  fi
  mkdir -p "$1/results" "$1/exports"
  local dir name version
  dir=$(cd "$1" && pwd)
  shift
  local -a versions=() models=() kinds=()
  read -ra versions <<<"${VERSIONS-transformers4 transformers5}"
  read -ra models <<<"${MODELS-dense moe cpu yarn vocab6400 vocab32000}"
  read -ra kinds <<<"${KINDS-hf f32 f16 q8_0 q5_0 q4_0}"

  make_environment "$dir/transformers4" "${TRANSFORMERS_4[@]}"
  make_environment "$dir/transformers5" "${TRANSFORMERS_5[@]}"
  make_weights "$dir"
  for version in "${versions[@]}"; do
    for name in ${models[@]+"${models[@]}"}; do
      verify_kinds "$dir" "$version" "$name" "$dir/weights/$name.pth" "$(tokenizer_of "$dir" "$name")"
    done
    # Merged adapters: a line here, with a file of `convert_model.py --lora_name NAME --merge --to pth`.
    for name in "$@"; do
      verify_kinds "$dir" "$version" "$(basename "$name" .pth)" "$name" "${TOKENIZER_DIR:-$ROOT/model}"
    done
  done
  "$dir/transformers5/bin/python" "$ROOT/benchmarks/verify_readers.py" table "$dir"
}

make_environment() { # make_environment FOLDER REQUIREMENT...: a Python with these, with llama.cpp and what exports need
  local folder=$1
  shift
  if [[ -f $folder/.ready ]]; then return; fi
  say "environment $folder: $*"
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet -r "$ROOT/requirements.txt" 'safetensors>=0.4' 'gguf>=0.17' 'tokenizers>=0.20' xllamacpp "$@"
  touch "$folder/.ready"
}

make_weights() { # make_weights DIR: two trained vocabularies, and random weights of each kind
  local python=$1/transformers5/bin/python size
  for size in 6400 32000; do
    if [[ -d $1/tokenizers/vocab$size ]]; then continue; fi
    say "vocabulary of $size tokens"
    "$python" "$ROOT/scripts/train_tokenizer.py" --vocab_size "$size" --max-chars "$TEXT_CHARACTERS" --output "$1/tokenizers/vocab$size"
  done
  if [[ ! -d $1/weights ]]; then "$python" "$ROOT/benchmarks/verify_readers.py" weights "$1"; fi
}

tokenizer_of() { # tokenizer_of DIR NAME: the folder of a model's tokenizer
  if [[ -d $1/tokenizers/$2 ]]; then echo "$1/tokenizers/$2"; else echo "$ROOT/model"; fi
}

verify_kinds() { # verify_kinds DIR VERSION NAME WEIGHTS TOKENIZER: export in each kind, and compare
  local dir=$1 version=$2 name=$3 kind result output
  local -a flags
  for kind in "${kinds[@]}"; do
    result=$dir/results/$version.$name.$kind.json
    if [[ -s $result ]]; then continue; fi
    say "$version $name $kind"
    flags=(--input "$4" --tokenizer_dir "$5" --verify)
    if [[ $name == yarn ]]; then flags+=(--rope_scaling_factor 4); fi
    output=$dir/exports/$version.$name.$kind
    if [[ $kind == hf ]]; then
      flags+=(--to hf --output "$output")
    else
      mkdir -p "$output" # the Modelfile and verify.json lie beside the file
      flags+=(--to gguf --quantize "$kind" --output "$output/model.gguf")
    fi
    rm -f "$output/verify.json"
    "$dir/$version/bin/python" "$ROOT/scripts/convert_model.py" "${flags[@]}" || say "not ok (exit $?)"
    if [[ -f $output/verify.json ]]; then cp "$output/verify.json" "$result"; else : >"$result"; fi
    rm -rf "$output"
  done
}

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

main "$@"
