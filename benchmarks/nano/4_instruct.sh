#!/usr/bin/env bash
# Stage 2 of `nano`: connectors and LoRA on SmolLM2, all tasks in shared-prefix sequences. Starts from stage 1.
# 3,000 steps of 64 faces and 12 questions each: one H200 8.8 a second, an H100 7.8.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
python -m fi_jax train nano --runs "$RUNS" "${device[@]}" "${sources[@]}" --train.init-from "$RUNS/nano_align" "$@"
