#!/usr/bin/env bash
# What each part is worth, over stage 1's frozen encoders, three seeds: alignment head and graph network alone are trained.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
python -m fi_jax ablate nano_align --frozen "$RUNS/nano_align" --head-only --seeds 0 1 2 --out "${OUT:-out/ablation}" \
  "${judged[@]}" --batch-size 64 \
  --train.steps 1000 --train.learning-rate 1e-3 --train.warmup-steps 100 --train.ema 0.998 --train.log-every 250 --only no_segmentation no_ccm no_lcm no_knowledge plain lcp \
  tau_0.2 tau_0.6 omega_0.1 omega_0.4 lift shuffled "$@"
