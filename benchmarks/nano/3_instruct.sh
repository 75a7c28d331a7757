#!/usr/bin/env bash
# Stage 2 of `nano`: connectors and LoRA on SmolLM2, all tasks in shared-prefix sequences. Starts from stage 1.
# The bundled model was stopped at step 1,510 of 3,000 (SIGTERM) and ended there with the same command and --finish.
set -euo pipefail
DATA=${DATA:-data} RUNS=${RUNS:-runs}
DTYPE=${DTYPE:-bfloat16}
python -m fi_jax train nano --runs "$RUNS" --model.dtype "$DTYPE" --train.init-from "$RUNS/nano_align" \
  --data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw" "$@"
