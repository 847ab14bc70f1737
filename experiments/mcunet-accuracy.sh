#!/usr/bin/env bash
# Accuracy at equal bytes: MCUNet with ImageNet weights on CIFAR-10, last 4 and last 8 convolutions, three seeds: HOSVD,
# HOSVD8 and Subspace, and under a byte budget HOSVD, of what its epsilon 0.9 holds, and Subspace, of what HOSVD holds at
# 0.8: docs/results.md.
# Usage: experiments/mcunet-accuracy.sh CIFAR10 WEIGHTS OUT [SEED...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 233 234 235
. "$(dirname "$0")/mcunet-runs.sh"
for seed in "$@"; do
  for last in 4 8; do
    budget=386KB less=258KB
    [ "$last" = 4 ] || budget=673KB less=446KB
    for method in plain hosvd:--epsilon:0.8 hosvd:--epsilon:0.9 hosvd8:--epsilon:0.9 hosvd8:--epsilon:0.95 \
      hosvd8:--epsilon:0.97 subspace:--epsilon:0.8 "hosvd:--budget:$budget" "subspace:--budget:$less"; do
      command_of "$method" "$last" "$seed" --train-size 4000 --val-size 1500 --batch-size 64 --epochs 4 \
        --learning-rate 0.005 --momentum 0.9
    done
  done
done | two_at_a_time
