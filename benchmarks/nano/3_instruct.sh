#!/usr/bin/env bash
# Stage 2 of `nano`: connectors and LoRA on SmolLM2, all tasks in shared-prefix sequences. Starts from stage 1.
set -euo pipefail
DATA=${DATA:-data}
# bfloat16 is faster on a GPU and slower on a CPU.
DTYPE=${DTYPE:-float32}
python -m fi_jax train nano \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" \
  --model.dtype "$DTYPE" "$@"
