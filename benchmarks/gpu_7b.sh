#!/usr/bin/env bash
# LLaVA-1.5-7B scale on one GPU, ours and (with a second argument) a peer's script in the same call.
#
#   benchmarks/gpu_7b.sh OUT_FOLDER [PEER.py]
#
# OUT_FOLDER gets ours.jsonl, peer.jsonl, one log a measurement, and table.txt, which is printed last. Most important
# first; a measurement that fails or runs out of memory or time is a line like any other. SECONDS_OURS (default 420)
# bounds ours as a whole, SECONDS_PEER (default 300) the peer's; the peer is run as `PEER.py score train`.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
peer=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.." || exit 1
export PYTHONUNBUFFERED=1 FI_JAX_CACHE=$out/cache XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
: >"$out/ours.jsonl"
began=$SECONDS

bench() { # NAME LIMIT ARGUMENTS…
    local name=$1 limit=$2 left
    shift 2
    left=$((${SECONDS_OURS:-420} - (SECONDS - began)))
    if ((left < 25)); then
        echo "{\"what\": \"$name\", \"skipped\": \"out of time\"}" | tee -a "$out/ours.jsonl"
        return
    fi
    local start=$SECONDS
    timeout $((left < limit ? left : limit)) python3 -m fi_jax bench 7b "$@" >"$out/$name.out" 2>"$out/$name.err"
    local status=$?
    sed "s/^{/{\"name\": \"$name\", /" "$out/$name.out" | tee -a "$out/ours.jsonl"
    if ((status)); then
        echo "{\"name\": \"$name\", \"what\": \"$name\", \"error\": \"exit status $status\"}" | tee -a "$out/ours.jsonl"
        tail -n 4 "$out/$name.err"
    fi
    echo "# $name took $((SECONDS - start)) s" >&2
}

# The first training run fills an empty compile cache, the second reads it: cold and cached compile times.
bench train_cold 120 --what train --batch 8 --remat dots --repeats 5
bench train_b13 80 --what train --batch 13 --remat dots --repeats 5
bench decode 120 --together --what decode1,decode32,decode_shared --repeats 5
bench train40_b6 90 --what train40 --batch 6 --remat dots --repeats 5
bench score 90 --together --what score40 --batch 1,4,8 --repeats 5
# 8 bits. Without Triton's products decoding compiles in 25 s, not 44.
bench train_fp8 90 --what train --batch 8 --remat dots --repeats 5 --model.frozen-precision fp8
bench train_fp8_b12 90 --what train --batch 12 --remat dots --repeats 5 --model.frozen-precision fp8
bench train40_fp8 90 --what train40 --batch 6 --remat dots --repeats 5 --model.frozen-precision fp8
bench score_fp8 75 --together --what score40 --batch 1,8 --repeats 5 --model.frozen-precision fp8
XLA_FLAGS=--xla_gpu_enable_triton_gemm=false bench decode_int8 150 --together --what decode1,decode32,decode_shared \
    --repeats 5 --model.frozen-precision int8 --model.kv-precision int8
bench train_r16_int8 75 --what train --batch 2 --remat dots --repeats 3 --model.frozen-precision int8 --model.llm.lora.rank 16
bench train_cached 50 --what train --batch 8 --remat dots --repeats 3
bench train_scan 80 --what train --batch 8 --remat dots --repeats 3 --model.scan-layers
bench train40_b8_full 80 --what train40 --batch 8 --remat full --repeats 3
bench score_xla 60 --what score40 --batch 4 --attention xla --repeats 3

if [ -n "$peer" ]; then
    timeout "${SECONDS_PEER:-300}" python3 "$peer" score train >"$out/peer.jsonl" 2>"$out/peer.err"
    echo "# peer exit status $?"
    cat "$out/peer.jsonl"
    tail -n 3 "$out/peer.err"
fi

rm -rf "$out/cache"
python3 benchmarks/gpu_7b_table.py "$out" | tee "$out/table.txt"
