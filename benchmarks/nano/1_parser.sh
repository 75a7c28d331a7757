#!/usr/bin/env bash
# Stage 0 of the bundled models: the face parser, on CelebAMask-HQ. DATA holds the released data sets.
set -euo pipefail
DATA=${DATA:-data} OUT=${OUT:-runs/parser}
python -m fi_jax train-parser --data-root "$DATA/celebamask_hq" --out "$OUT" "$@"
