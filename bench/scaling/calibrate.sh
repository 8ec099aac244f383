#!/usr/bin/env bash
# What simulate.py is calibrated with and checked against, on this machine, idle: one rank's seconds
# per lease; N ranks that do not talk (what sharing cores and memory costs); collectives; real runs.
#   bash bench/scaling/calibrate.sh CONFIG.yaml OUT_FOLDER [ROUNDS] [BUILD_FOLDER]
# CONFIG: 8 micro-batches a step. Every rank has one thread. Ranks that talk and ranks that do not
# take turns, ROUNDS times (2), so that a machine that slows down does so for both.
set -euo pipefail
cd "$(dirname "$0")/../.."
config=$1 out=$2 rounds=${3:-2} build=${4:-build/release}
mkdir -p "$out"
schedule=$build/bench/scaling/scaling_schedule
export OMP_NUM_THREADS=1 SHARDTUNE_BINARY=$build/launch/shardtune
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
alone() {  # RANKS ROUND
  local pids=() i
  for ((i = 0; i < $1; i++)); do
    "$schedule" measure "$config" 2 --set "training.global_batch_size=$((8 / $1))" \
      >"$out/alone-$1-$i-$2.json" &
    pids+=($!)
  done
  wait "${pids[@]}"
}
together() {  # RANKS STAGE ROUND
  bash launch/run -n "$1" train "$config" --resume never \
    --set "parallel.zero_optimization.stage=$2" --set training.max_steps=3 \
    --set checkpoint.output_dir="$out/run" 2>/dev/null
  cp "$out/run/metrics.jsonl" "$out/run-$1-$2-$3.jsonl"
  rm -rf "$out/run"
}
# walk_bench takes no --set.
sed "s/^parallel: {/parallel: {zero_optimization: {stage: 3}, /" "$config" >"$out/stage3.yaml"
for ((round = 0; round < rounds; round++)); do
  alone 1 "$round"
  for n in 2 4 8; do
    alone "$n" "$round"
    together "$n" 2 "$round"
    together "$n" 3 "$round"
  done
done
for n in 2 4 8; do
  mpirun --quiet --oversubscribe --bind-to none -n "$n" "$build/bench/parallel/collectives_bench" 4 \
    >"$out/collectives-$n.txt"
  mpirun --quiet --oversubscribe --bind-to none -n "$n" "$build/bench/parallel/walk_bench" \
    "$out/stage3.yaml" 5 >"$out/walk-$n.json"
done
date -u +%F >"$out/date.txt"
