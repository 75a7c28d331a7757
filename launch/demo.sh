#!/usr/bin/env bash
# `make demo`: ask the bundled model about a real photograph, then train on procedural faces and show the gain.
set -euo pipefail
BIN=${BIN:-.venv/bin}
OUT=${OUT:-out/demo}
RUNS=${RUNS:-runs}
FACES=${FACES:-count=1500}
STEPS=${STEPS:-300}
mkdir -p "$OUT"
step() {
  printf '\n== %s\n$ %s\n' "$1" "${*:2}"
  "${@:2}"
}

"$BIN/python" - "$OUT/portrait.png" <<'PY'
import sys

from PIL import Image
from skimage import data

# The portrait of Eileen Collins by NASA, public domain, which scikit-image ships.
Image.fromarray(data.astronaut()).save(sys.argv[1])
PY
step "Ask about a photograph" "$BIN/fi-jax" ask "$OUT/portrait.png" "Is this person smiling?"
step "Everything at once, as a picture" "$BIN/fi-jax" ask "$OUT/portrait.png" --all --figure "$OUT/portrait_answers.png"
rm -rf "$RUNS/demo" "$RUNS/demo_start"
train=("$BIN/fi-jax" train demo --runs "$RUNS" --data.sources.0.root "$FACES")
evaluate=("$BIN/fi-jax" evaluate demo --dataset synthetic_faces --data-root "$FACES" --split test --batch-size 32)
step "One step of training, to have something to compare with" "${train[@]}" --name demo_start --train.steps 1
step "Before: held-out faces" "${evaluate[@]}" --checkpoint "$RUNS/demo_start" --out "$OUT/before"
step "Train the encoders, the graph network and the alignment head" "${train[@]}" --train.steps "$STEPS"
step "After: the same faces" "${evaluate[@]}" --checkpoint "$RUNS/demo" --out "$OUT/after"
step "Both side by side" "$BIN/fi-jax" report "$OUT/before" "$OUT/after" --out "$OUT/report"
printf '\nThe photograph, its map and the answers: %s\nReport: %s\n' "$OUT/portrait_answers.png" "$OUT/report/index.html"
