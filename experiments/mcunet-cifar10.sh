#!/usr/bin/env bash
# MCUNet with ImageNet weights on CIFAR-10, last 2 and last 4 convolutions, every method, three seeds: docs/results.md.
# Usage: experiments/mcunet-cifar10.sh CIFAR10 WEIGHTS OUT [METHOD...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- plain hosvd svd subspace gradient_filter:--patch:{2,4,7}
. "$(dirname "$0")/mcunet-runs.sh"
for seed in 233 234 235; do
  for last in 2 4; do
    for method in "$@"; do
      command_of "$method" "$last" "$seed" --train-size 2560 --val-size 1280 --epochs 3
    done
  done
done | two_at_a_time
