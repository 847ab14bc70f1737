#!/usr/bin/env bash
# Accuracy against memory over the number of trained convolutions: MCUNet with ImageNet weights on all of CIFAR-10, the
# paper's figure 5: docs/results.md. Up to 16 layers the frozen blocks in front are computed once for all runs
# (mcunet_tails.py); with 4 and 8 layers three seeds. One thread; a run that is done is skipped.
# Usage: experiments/mcunet-depth.sh CIFAR10 WEIGHTS OUT
#   CIFAR10  folder with the data set        WEIGHTS  MCUNet's, safetensors        OUT  folder for the runs
set -euo pipefail
data=$1 weights=$2 out=$3
export OMP_NUM_THREADS=1
mkdir -p "$out"
tails() {
  python "$(dirname "$0")/mcunet_tails.py" --data-path "$data" --weights "$weights" --out "$out" "$@"
}
tails --last 1 2 4 8 16 --methods plain gradient_filter:2 gradient_filter:4 gradient_filter:7 svd:0.8 hosvd:0.8 \
  deflated_hosvd:0.94 subspace:0.8 recomputed_hosvd8:0.97 recomputed_hosvd8:0.999
tails --last 4 8 --seeds 233 234 235 --methods plain hosvd:0.8 deflated_hosvd:0.94 recomputed_hosvd8:0.999 \
  subspace:0.8 subspace:0.81 subspace:0.82 subspace:0.83
while read -r run options; do
  folder=$out/$run-last42-seed233
  grep -qs '"kind": "memory"' "$folder/record.jsonl" && continue
  resume=()
  [ ! -e "$folder/checkpoint.pt" ] || resume=(--resume)
  # shellcheck disable=SC2086  # The options are several words.
  tuckprop train --model mcunet --weights "$weights" --data cifar10 --data-path "$data" --resolution 128 \
    --batch-size 64 --steps 1250 --validate-every 625 --learning-rate 0.005 --momentum 0.9 --last 42 --seed 233 \
    --codec $options --out "$folder" "${resume[@]}" || echo "failed: $run" >&2
done <<'RUNS'
plain plain
hosvd0.8 hosvd --epsilon 0.8
deflated_hosvd0.94 deflated_hosvd --epsilon 0.94
recomputed_hosvd80.999 hosvd8 --epsilon 0.999 --recompute
subspace0.8 subspace --epsilon 0.8
svd0.8 svd --epsilon 0.8 --channels-last
gradient_filter2 gradient_filter --patch 2 --channels-last
gradient_filter4 gradient_filter --patch 4 --channels-last
gradient_filter7 gradient_filter --patch 7 --channels-last
RUNS
