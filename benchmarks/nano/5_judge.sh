#!/usr/bin/env bash
# Answers about validation faces, temperatures fitted on them, packing, and the packed model on test faces. FER2013's
# private test part is not at hand: its validation faces are judged, and nothing is fitted on them.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
RUN=${RUN:-$RUNS/nano} OUT=${OUT:-out/nano}
python -m fi_jax pack "$RUN" --out "$OUT/raw" --dtype float32
python -m fi_jax evaluate nano --checkpoint "$OUT/raw" "${judged[@]}" --batch-size 4 --split val --out "$OUT/val" "$@"
python -m fi_jax pack "$OUT/raw" --out "$OUT/nano" --calibrate "$OUT/val" --mirror
python -m fi_jax evaluate nano --checkpoint "$OUT/nano" "${judged[@]}" --batch-size 4 --split test --out "$OUT/test" "$@"
python -m fi_jax evaluate nano --checkpoint "$OUT/nano" --dataset fer2013 --data-root "$DATA/fer2013" --batch-size 4 --split val --out "$OUT/fer2013" "$@"
