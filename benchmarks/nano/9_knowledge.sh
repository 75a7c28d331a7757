#!/usr/bin/env bash
# What knowledge is worth (docs/ablation.md). Few, noisy and left-out labels: heads over label-free descriptors, on CPUs, five seeds. Missing
# annotations: stage 1 whole, attributes withheld from half of the faces. The LLM: stage 2 with and without each part.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
OUT=${OUT:-out/ablation}
python -m fi_jax ablate nano --table strength --split val --dataset celeba --data-root "$DATA/celeba" --seeds 0 1 2 3 4 --out "$OUT/strength"
for table in few_labels noisy_labels left_out; do
  python -m fi_jax ablate nano --table $table --dataset celeba --data-root "$DATA/celeba" --seeds 0 1 2 3 4 --out "$OUT/$table"
done
python -m fi_jax ablate nano_align --table missing --head-only --seeds 0 1 2 --out "$OUT/missing" "${judged[@]}" --batch-size 64 "${sources[@]}" \
  --train.init-from "$RUNS/nano_pretrain" "$@"
python -m fi_jax ablate nano --table llm --seeds 0 1 2 --out "$OUT/llm" "${judged[@]}" --batch-size 4 "${sources[@]}" \
  --train.init-from "$RUNS/nano_align" "$@"
