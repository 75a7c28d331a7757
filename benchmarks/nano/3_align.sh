#!/usr/bin/env bash
# Stage 1 of `nano`: both encoders, GCN and alignment head, on UTKFace, CelebA, ExpW and FER2013. Starts from stage 0.
# 7,000 steps of 512 faces: one H200 28 a second, an H100 30.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
python -m fi_jax train nano_align --runs "$RUNS" "${device[@]}" "${sources[@]}" --train.init-from "$RUNS/nano_pretrain" "$@"
