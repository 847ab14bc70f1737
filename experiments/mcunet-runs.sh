# What the scripts that train MCUNet on a subset of CIFAR-10 share; they source it and set data, weights and out.
# A run that is done is skipped, one that was cut off goes on. One thread a run.
export OMP_NUM_THREADS=1
mkdir -p "${out:?}"

# Print the command of one run: METHOD LAST SEED, then the arguments of `tuckprop train` for images and schedule.
# A method is a codec and its settings with colons between, such as hosvd:--epsilon:0.9.
command_of() {
  local method=$1 last=$2 seed=$3 resume=()
  shift 3
  local run=$out/${method//:/}-last$last-seed$seed
  ! grep -qs '"kind": "memory"' "$run/record.jsonl" || return 0
  [ ! -e "$run/checkpoint.pt" ] || resume=(--resume)
  echo tuckprop train --model mcunet --weights "${weights:?}" --data cifar10 --data-path "${data:?}" --resolution 128 \
    "$@" --channels-last --codec "${method//:/ }" --last "$last" --seed "$seed" --out "$run" "${resume[@]}"
}

# Run the commands on standard input, two at a time.
two_at_a_time() {
  xargs -P 2 -I{} sh -c '{} >/dev/null || echo "failed: {}" >&2'
}
