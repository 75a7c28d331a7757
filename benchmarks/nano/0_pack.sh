#!/usr/bin/env bash
# The data of `nano` in parts of at most PART bytes, for a machine that takes small uploads; `unpack` puts them together there.
#   DATA=data benchmarks/nano/0_pack.sh parts;  then there: DATA=data benchmarks/nano/0_pack.sh unpack parts
set -euo pipefail
DATA=${DATA:-data} PART=${PART:-28M}
if [ "$1" = unpack ]; then
  (cd "$2" && sha256sum --quiet -c SHA256SUMS)
  mkdir -p "$DATA"
  cat "$2"/nano.tar.gz.* | tar -xz -C "$DATA"
else
  mkdir -p "$1"
  tar -chz -C "$DATA" utkface celeba expw fer2013 celebamask_hq | split -b "$PART" -d - "$1/nano.tar.gz."
  (cd "$1" && sha256sum nano.tar.gz.* > SHA256SUMS && du -h nano.tar.gz.*)
fi
