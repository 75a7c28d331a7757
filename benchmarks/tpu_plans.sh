#!/usr/bin/env bash
# What the TPU's compiler says of the programs of docs/tpu.md, one JSON file each; no TPU is needed, four minutes of a
# processor each and 4 GB of memory.   FI_JAX_LIBTPU=~/libtpu benchmarks/tpu_plans.sh OUT [NAME…]
set -euo pipefail
out=${1:?where the files go}
shift
wanted=" $* "
mkdir -p "$out"

plan() {
  local name=$1
  shift
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  echo "$name: fi-jax plan $*"
  # Exit 1 says that it does not fit, which is an answer.
  python3 -m fi_jax plan "$@" --json >"$out/$name.json" || [ $? = 1 ]
}

one=(--train.accumulate 1 --data.questions-per-face 1)
plan nano_v5e_1 nano --topology v5e:1x1 --model.attention flash --model.dtype bfloat16 --train.accumulate 4
plan 7b_v5e_16 7b --topology v5e:4x4 --mesh fsdp=16 --model.remat full "${one[@]}"
plan 7b_v5p_8 7b --topology v5p:2x2x1 --mesh fsdp=4
plan 7b_v6e_8 7b --topology v6e:2x4 --mesh fsdp=8 --train.accumulate 2
plan 7b_v5e_16_40_questions 7b --topology v5e:4x4 --mesh fsdp=16 --model.remat full --train.accumulate 1
plan 7b_v5e_16_scoring 7b --work score --topology v5e:4x4 --mesh fsdp=16
plan 7b_two_slices 7b --topology 'v5e:4x4*2' --mesh data=2,fsdp=16 --model.remat full --data.batch-size 32 "${one[@]}"
plan 13b_v5e_32 13b --topology v5e:4x8 --mesh fsdp=32 --data.batch-size 32 "${one[@]}"
