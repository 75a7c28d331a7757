#!/usr/bin/env bash
# The face parser at 192 pixels, on CelebAMask-HQ; then its scores over five folds. One H100: about 5 and 8 minutes.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
OUT=${OUT:-$RUNS/parser}
[ -e "$OUT/parser.json" ] || python -m fi_jax train-parser --data-root "$DATA/celebamask_hq" --out "$OUT" --folds 0 --steps 4000 "$@"
python -m fi_jax train-parser --data-root "$DATA/celebamask_hq" --out "$OUT" --only-validate --folds 5 --steps 1500 "$@"
