#!/usr/bin/env bash
# Judges stage 1 on validation faces (for choices), packs it with temperatures fitted there, and judges that on test faces.
set -euo pipefail
DATA=${DATA:-data} RUN=${RUN:-runs/nano_align_2} OUT=${OUT:-out/nano_align}
sets=(--dataset utkface celeba expw --data-root "$DATA/utkface" "$DATA/celeba" "$DATA/expw" --head-only --batch-size 64)
python -m fi_jax evaluate nano_align --checkpoint "$RUN" "${sets[@]}" --split val --out "$OUT/val"
python -m fi_jax pack "$RUN" --out "$OUT/nano" --calibrate "$OUT/val"
python -m fi_jax evaluate nano_align --checkpoint "$OUT/nano" "${sets[@]}" --split test --out "$OUT/test"
