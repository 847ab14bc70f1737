#!/usr/bin/env bash
# Accuracy against memory over the number of trained convolutions: MCUNet with ImageNet weights on CIFAR-10, every
# method; the paper's figure 5 on a subset: docs/results.md.
# Usage: experiments/mcunet-depth.sh CIFAR10 WEIGHTS OUT [SEED...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 233
. "$(dirname "$0")/mcunet-runs.sh"
for seed in "$@"; do
  for last in 42 4 1 16 2 8; do
    for method in plain subspace hosvd hosvd8:--epsilon:0.9 hosvd8:--epsilon:0.97 hosvd8:--epsilon:0.999:--recompute \
      svd gradient_filter:--patch:2 gradient_filter:--patch:4 gradient_filter:--patch:7; do
      command_of "$method" "$last" "$seed" --train-size 4000 --val-size 1500 --batch-size 64 --epochs 4 \
        --learning-rate 0.005 --momentum 0.9
    done
  done
done | two_at_a_time
