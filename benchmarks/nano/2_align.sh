#!/usr/bin/env bash
# Stage 1 of `nano`: both encoders, GCN and alignment head, on UTKFace, CelebA and ExpW. DATA holds the releases.
# First without augmentation, which delays the start; then with a little, and more expressions.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
# bfloat16 is faster on a GPU and slower on a CPU.
DTYPE=${DTYPE:-float32}
common=(--runs "$RUNS" --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba"
  --data.sources.2.root "$DATA/expw" --model.dtype "$DTYPE")
python -m fi_jax train nano_align "${common[@]}" "$@"
python -m fi_jax train nano_align "${common[@]}" --name nano_align_2 --train.init-from "$RUNS/nano_align" \
  --data.image-size 128 --data.augment-strength 0.3 --data.sources.2.repeat 4 \
  --train.steps 5000 --train.learning-rate 6e-4 "$@"
