#!/usr/bin/env bash
# What the map is worth, stage 1 trained whole: own map, another face's, the picture twice, none; at two encoder sizes.
# One H100: about 4 minutes a model (3,500 steps of 512 faces); SEEDS="0 1 2" for intervals.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
for side in 96 128; do
  python -m fi_jax ablate nano_align --head-only --seeds ${SEEDS:-0} --out "${OUT:-out/maps}_$side" "${judged[@]}" --batch-size 64 \
    --only other_map second_picture no_segmentation --train.steps 3500 --train.init-from "" \
    --model.image-encoder.image-size "$side" --model.segmentation-encoder.image-size "$side" \
    --data.image-size $((side * 7 / 6)) "${device[@]}" "$@"
done
