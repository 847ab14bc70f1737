#!/usr/bin/env bash
# Accuracy against memory on all of CIFAR-10: MCUNet with ImageNet weights, the last 1 to 16 convolutions, the frozen
# blocks in front computed once for all runs (mcunet_tails.py): docs/results.md. One thread; a run that is done is
# skipped.
# Usage: experiments/mcunet-tails.sh CIFAR10 WEIGHTS OUT [SEED...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 233 234 235
export OMP_NUM_THREADS=1
# The figure over depth: every method, the first seed.
first=$1
python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out" --seeds "$first" \
  --last 1 2 4 8 16 --methods plain hosvd:0.8 subspace:0.8 recomputed_hosvd8:0.999 svd:0.8 gradient_filter:2 \
  gradient_filter:4 gradient_filter:7 deflated_hosvd:0.94
# Accuracy at HOSVD's bytes: all seeds.
python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out" --seeds "$@" \
  --last 4 8 --methods plain hosvd:0.8 deflated_hosvd:0.94 recomputed_hosvd8:0.999 subspace:0.8
