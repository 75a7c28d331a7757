#!/usr/bin/env bash
# Stage 1 of `nano`: both encoders, GCN and alignment head, on UTKFace, CelebA and ExpW. DATA holds the releases.
# One H100: 266 s of steps, 100 s of reading and compiling.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
# float32 is faster on a CPU, where this recipe takes a day.
DTYPE=${DTYPE:-bfloat16}
python -m fi_jax train nano_align --runs "$RUNS" --model.dtype "$DTYPE" --data.sources.0.root "$DATA/utkface" \
  --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" "$@"
