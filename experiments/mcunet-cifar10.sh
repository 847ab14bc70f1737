#!/usr/bin/env bash
# MCUNet with ImageNet weights on CIFAR-10, last 2 and last 4 convolutions, every method, three seeds: docs/results.md.
# Usage: experiments/mcunet-cifar10.sh CIFAR10 WEIGHTS OUT [METHOD...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
# Two runs at a time, one thread each. A run that is done is skipped, one that was cut off goes on.
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- plain hosvd svd subspace gradient_filter:2 gradient_filter:4 gradient_filter:7
export OMP_NUM_THREADS=1
mkdir -p "$out"
for seed in 233 234 235; do
  for last in 2 4; do
    for method in "$@"; do
      codec=${method%%:*}
      patch=()
      [ "$codec" = "$method" ] || patch=(--patch "${method##*:}")
      run=$out/${method/:/-}-last$last-seed$seed
      grep -qs '"kind": "memory"' "$run/record.jsonl" && continue
      resume=()
      [ ! -e "$run/checkpoint.pt" ] || resume=(--resume)
      echo tuckprop train --model mcunet --weights "$weights" --data cifar10 --data-path "$data" --resolution 128 \
        --train-size 2560 --val-size 1280 --epochs 3 --channels-last --codec "$codec" "${patch[@]}" --last "$last" --seed "$seed" \
        --out "$run" "${resume[@]}"
    done
  done
done | xargs -P 2 -I{} sh -c '{} >/dev/null || echo "failed: {}" >&2'
