#!/usr/bin/env bash
# Accuracy against memory on all of CIFAR-10: MCUNet with ImageNet weights, the last 1 to 16 convolutions, the frozen
# blocks in front computed once for all runs (mcunet_tails.py), and all 42 convolutions, of which none is frozen:
# docs/results.md. One thread a run; a run that is done is skipped.
# Usage: experiments/mcunet-tails.sh CIFAR10 WEIGHTS OUT [SEED...]
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- 233 234 235
. "$(dirname "$0")/mcunet-runs.sh"
# The figure over depth: every method, the first seed.
first=$1
python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out" --seeds "$first" \
  --last 1 2 4 8 16 --methods plain hosvd:0.8 subspace:0.8 recomputed_hosvd8:0.999 svd:0.8 gradient_filter:2 \
  gradient_filter:4 gradient_filter:7 deflated_hosvd:0.94
# Accuracy at HOSVD's bytes: all seeds.
python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out" --seeds "$@" \
  --last 4 8 --methods plain hosvd:0.8 deflated_hosvd:0.94 recomputed_hosvd8:0.999 subspace:0.8
# Ten epochs in place of two, in a folder of their own.
python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out-ten-epochs" \
  --seeds "$first" --last 8 16 --steps 6250 --validate-every 1250 \
  --methods plain subspace:0.8 recomputed_hosvd8:0.999 hosvd:0.8
# All layers: the first seed.
for method in plain hosvd:--epsilon:0.8 hosvd8:--epsilon:0.999:--recompute subspace:--epsilon:0.8 svd:--epsilon:0.8 \
  gradient_filter:--patch:2 gradient_filter:--patch:4 gradient_filter:--patch:7; do
  command_of "$method" 42 "$first" --batch-size 64 --steps 1250 --validate-every 625 --learning-rate 0.005 \
    --momentum 0.9
done | two_at_a_time
