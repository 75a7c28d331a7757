#!/usr/bin/env bash
# The training-free column: every stage again without the set named (expw, celeba, utkface or fer2013), and its scores there.
# One H100: about 15 minutes a set; stopped, the same command goes on.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
set_=$1 && shift
split=test
[ "$set_" = fer2013 ] && split=val
python -m fi_jax evaluate nano --checkpoint "$RUNS/nano" --leave-one-out --setting training-free --runs "$RUNS" --dataset "$set_" --data-root "$DATA/$set_" --split "$split" \
  --batch-size 4 --out "${OUT:-out/without_$set_}" "${device[@]}" "${sources[@]}" --train.init-from "$RUNS/nano_align" "$@"
