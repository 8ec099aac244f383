#!/usr/bin/env bash
# What simulate.py is calibrated with and checked against, on this machine, idle: one rank's seconds
# per lease; N ranks that do not talk (what sharing cores and memory costs); collectives; real runs.
#   bash bench/scaling/calibrate.sh CONFIG.yaml OUT_FOLDER [BUILD_FOLDER]
# CONFIG: 8 micro-batches a step. Every rank has one thread.
set -euo pipefail
cd "$(dirname "$0")/../.."
config=$1 out=$2 build=${3:-build/release}
mkdir -p "$out"
schedule=$build/bench/scaling/scaling_schedule
export OMP_NUM_THREADS=1 SHARDTUNE_BINARY=$build/launch/shardtune
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
for n in 1 2 4 8; do
  pids=()
  for ((i = 0; i < n; i++)); do
    "$schedule" measure "$config" 2 --set "training.global_batch_size=$((8 / n))" \
      >"$out/alone-$n-$i.json" &
    pids+=($!)
  done
  wait "${pids[@]}"
done
for stage in 3 2; do
  for n in 2 4 8; do
    bash launch/run -n "$n" train "$config" --resume never \
      --set "parallel.zero_optimization.stage=$stage" --set checkpoint.output_dir="$out/run" 2>/dev/null
    cp "$out/run/metrics.jsonl" "$out/run-$n-$stage.jsonl"
    rm -rf "$out/run"
  done
done
for n in 2 4 8; do
  mpirun --quiet --oversubscribe --bind-to none -n "$n" "$build/bench/parallel/collectives_bench" 4 \
    >"$out/collectives-$n.txt"
done
date -u +%F >"$out/date.txt"
