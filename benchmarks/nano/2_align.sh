#!/usr/bin/env bash
# Stage 1 of `nano`: both encoders, GCN and alignment head, on UTKFace, CelebA and ExpW. DATA holds the releases.
set -euo pipefail
DATA=${DATA:-data}
# bfloat16 is faster on a GPU and slower on a CPU.
DTYPE=${DTYPE:-float32}
python -m fi_jax train nano_align \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" \
  --model.dtype "$DTYPE" "$@"
