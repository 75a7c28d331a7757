#!/usr/bin/env bash
# Stage 0 of `nano`: masked pre-training of the image encoder on the training faces, without labels.
# 8,000 steps of 512 faces: one H200 62 a second, an H100 50.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
python -m fi_jax train nano_pretrain --runs "$RUNS" "${device[@]}" "${sources[@]}" "$@"
