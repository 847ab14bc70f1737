#!/usr/bin/env bash
# Accuracy against memory over the number of trained convolutions: MCUNet with ImageNet weights on CIFAR-10, every
# method; the paper's figure 5 on a subset: docs/results.md.
# Usage: experiments/mcunet-depth.sh CIFAR10 WEIGHTS OUT [SEED...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
# Two runs at a time, one thread each. A run that is done is skipped, one that was cut off goes on.
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 233
export OMP_NUM_THREADS=1
mkdir -p "$out"
for seed in "$@"; do
  for last in 42 4 1 16 2 8; do
    for method in plain subspace hosvd hosvd8:--epsilon:0.9 hosvd8:--epsilon:0.97 svd gradient_filter:--patch:2 \
      gradient_filter:--patch:4 gradient_filter:--patch:7; do
      run=$out/${method//:/}-last$last-seed$seed
      grep -qs '"kind": "memory"' "$run/record.jsonl" && continue
      resume=()
      [ ! -e "$run/checkpoint.pt" ] || resume=(--resume)
      echo tuckprop train --model mcunet --weights "$weights" --data cifar10 --data-path "$data" --resolution 128 \
        --train-size 4000 --val-size 1500 --batch-size 64 --epochs 4 --learning-rate 0.005 --momentum 0.9 \
        --channels-last --codec "${method//:/ }" --last "$last" --seed "$seed" --out "$run" "${resume[@]}"
    done
  done
done | xargs -P 2 -I{} sh -c '{} >/dev/null || echo "failed: {}" >&2'
