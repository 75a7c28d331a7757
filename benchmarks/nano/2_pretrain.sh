#!/usr/bin/env bash
# Stage 0 of `nano`: masked pre-training of the image encoder on the training faces, without labels.
# One H100: 14,000 steps of 512 faces, 50 a second.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
python -m fi_jax train nano_pretrain --runs "$RUNS" "${device[@]}" "${sources[@]}" "$@"
