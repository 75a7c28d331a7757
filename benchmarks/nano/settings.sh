# What the scripts of this folder share: DATA holds the releases; on a CPU DTYPE=float32 ATTENTION=xla, and days.
DATA=${DATA:-data} RUNS=${RUNS:-runs}
sources=(--data.sources.0.root "$DATA/utkface" --data.sources.1.root "$DATA/celeba" --data.sources.2.root "$DATA/expw"
  --data.sources.3.root "$DATA/fer2013")
device=(--model.dtype "${DTYPE:-bfloat16}" --model.attention "${ATTENTION:-flash}")
judged=(--dataset utkface celeba expw --data-root "$DATA/utkface" "$DATA/celeba" "$DATA/expw")
