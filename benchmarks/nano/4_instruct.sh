#!/usr/bin/env bash
# Stage 2 of `nano`: connectors and LoRA on SmolLM2, all tasks in shared-prefix sequences. Starts from stage 1.
# One H100: 1,600 steps of 64 faces and 12 questions each, 7.8 a second.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
DTYPE=${DTYPE:-bfloat16} ATTENTION=${ATTENTION:-flash}
python -m fi_jax train nano --runs "$RUNS" --model.dtype "$DTYPE" --model.attention "$ATTENTION" \
  --train.init-from "$RUNS/nano_align" \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" "$@"
