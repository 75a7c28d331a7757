#!/usr/bin/env bash
# Answers about validation faces, temperatures fitted on them, packing, and the packed model on test faces.
set -euo pipefail
DATA=${DATA:-data} RUN=${RUN:-runs/nano} OUT=${OUT:-out/nano}
sets=(--dataset utkface celeba expw --data-root "$DATA/utkface" "$DATA/celeba" "$DATA/expw" --batch-size 4)
python -m fi_jax pack "$RUN" --out "$OUT/raw" --dtype float32
python -m fi_jax evaluate nano --checkpoint "$OUT/raw" "${sets[@]}" --split val --out "$OUT/val"
python -m fi_jax pack "$OUT/raw" --out "$OUT/nano" --calibrate "$OUT/val" --mirror
python -m fi_jax evaluate nano --checkpoint "$OUT/nano" "${sets[@]}" --split test --out "$OUT/test"
