#!/usr/bin/env bash
# Stage 0 of `nano`: masked pre-training of the image encoder on the training faces, without labels. DATA holds the releases.
# One H100: 14,000 steps of 512 faces, 50 a second.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
# On a CPU: DTYPE=float32 ATTENTION=xla, and days.
DTYPE=${DTYPE:-bfloat16} ATTENTION=${ATTENTION:-flash}
python -m fi_jax train nano_pretrain --runs "$RUNS" --model.dtype "$DTYPE" --model.attention "$ATTENTION" \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" "$@"
