#!/usr/bin/env bash
# Stage 1 of `nano`: both encoders, GCN and alignment head, on UTKFace, CelebA and ExpW. Starts from stage 0.
# One H100: 7,000 steps of 512 faces, 30 a second.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
DTYPE=${DTYPE:-bfloat16} ATTENTION=${ATTENTION:-flash}
python -m fi_jax train nano_align --runs "$RUNS" --model.dtype "$DTYPE" --model.attention "$ATTENTION" \
  --train.init-from "$RUNS/nano_pretrain" \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" "$@"
