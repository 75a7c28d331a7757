#!/usr/bin/env bash
# Judges stage 1 on validation faces (for choices) and on test faces (for the model card), and packs it for the bundle.
set -euo pipefail
DATA=${DATA:-data} RUN=${RUN:-runs/nano_align} OUT=${OUT:-out/nano_align}
sets=(--dataset utkface celeba expw --data-root "$DATA/utkface" "$DATA/celeba" "$DATA/expw")
python -m fi_jax evaluate nano_align --checkpoint "$RUN" "${sets[@]}" --split val --head-only --out "$OUT/val"
python -m fi_jax evaluate nano_align --checkpoint "$RUN" "${sets[@]}" --split test --head-only --out "$OUT/test"
python -m fi_jax pack "$RUN" --out "$OUT/packed"
