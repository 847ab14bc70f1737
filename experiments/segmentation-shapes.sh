#!/usr/bin/env bash
# Segmentation on drawn shapes, no download: FCN on ResNet18 is pretrained on half 0, which has hardly a circle, and
# fine-tuned on half 1, the paper's last 5 and last 10 layers, three seeds: docs/results.md.
# Usage: experiments/segmentation-shapes.sh OUT [SEED...]
#   OUT  folder for the runs: those to compare are in OUT/steps100, or another number of steps that STEPS gives
# Two runs at a time, one thread each. A run that is done is skipped, one that was cut off goes on.
set -euo pipefail
out=$1
shift
[ $# -gt 0 ] || set -- 233 234 235
steps=${STEPS:-100}
export OMP_NUM_THREADS=1
mkdir -p "$out"
# Options of both stages.
common=(--model fcn_r18 --data shapes --resolution 64 --batch-size 8 --final-share 0.01 --momentum 0.9
  --weight-decay 5e-4 --clip 5 --threads 1)
done_already() { grep -qs '"kind": "memory"' "$1/record.jsonl"; }
resume_if_begun() { [ ! -e "$1/checkpoint.pt" ] || echo --resume; }

start=$out/pretraining
done_already "$start" || tuckprop train "${common[@]}" --half 0 --steps 1000 --validate-every 200 --warmup 50 \
  --learning-rate 0.15 --no-freeze-norms --channels-last --seed 233 --out "$start" \
  $(resume_if_begun "$start") >/dev/null

for seed in "$@"; do
  for layers in 5 10; do
    for method in plain gradient_filter:--paper-patches svd:--epsilon:0.8 hosvd:--epsilon:0.8 hosvd8:--epsilon:0.95; do
      run=$out/steps$steps/${method//:/}-paper$layers-seed$seed
      done_already "$run" && continue
      echo tuckprop train "${common[@]}" --weights "$start/checkpoint.pt" --half 1 --steps "$steps" \
        --validate-every $((steps / 2)) --warmup 10 --learning-rate 0.1 --codec "${method//:/ }" \
        --paper-layers "$layers" --seed "$seed" --out "$run" $(resume_if_begun "$run")
    done
  done
done | xargs -P 2 -I{} sh -c '{} >/dev/null || echo "failed: {}" >&2'
