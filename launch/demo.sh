#!/usr/bin/env bash
# `make demo`: ask the bundled model about a real photograph, then fine-tune it on procedural faces and show the gain.
set -euo pipefail
BIN=${BIN:-.venv/bin}
OUT=${OUT:-out/demo}
FACES=${FACES:-count=1500}
mkdir -p "$OUT"
step() { printf '\n== %s\n$ %s\n' "$1" "${*:2}"; "${@:2}"; }

"$BIN/python" - "$OUT/portrait.png" <<'PY'
import sys

from PIL import Image
from skimage import data

# The portrait of Eileen Collins by NASA, public domain, which scikit-image ships.
Image.fromarray(data.astronaut()).save(sys.argv[1])
PY
step "One question about a photograph" "$BIN/fi-jax" ask "$OUT/portrait.png" "Is this person smiling?"
step "Every closed question, and a figure" "$BIN/fi-jax" ask "$OUT/portrait.png" --figure "$OUT/portrait_answers.png"
rm -rf runs/demo
step "Before: the bundled model on procedural faces it has never seen" \
  "$BIN/fi-jax" evaluate demo --checkpoint nano --dataset synthetic_faces --data-root "$FACES" --limit 24 --out "$OUT/before"
step "Fine-tune its encoders, graph and head on others" "$BIN/fi-jax" train demo --data.sources.0.root "$FACES"
step "After, on the same held-out faces" \
  "$BIN/fi-jax" evaluate demo --checkpoint runs/demo --dataset synthetic_faces --data-root "$FACES" --limit 24 --out "$OUT/after"
step "The gain" "$BIN/fi-jax" report "$OUT/before" "$OUT/after" --out "$OUT/report"
echo
echo "Figure: $OUT/portrait_answers.png   Report: $OUT/report/index.html"
