#!/usr/bin/env bash
# Measures the collectives on 2 and 4 ranks and writes the section of docs/benchmarks.md between its
# markers. For an idle machine; ROOT users need OMPI_ALLOW_RUN_AS_ROOT=1 and its _CONFIRM.
#   bash bench/parallel/run.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
bench=${1:-build/release}/bench/parallel/collectives_bench
[ -x "$bench" ] || { echo "error: $bench is not there. Build it with SHARDTUNE_BENCH=ON." >&2; exit 66; }
# Containers often forbid the one-copy transport, as in launch/run.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
section=$(mktemp)
trap 'rm -f "$section"' EXIT
for ranks in 2 4; do
  mpirun --quiet --oversubscribe --bind-to none -n "$ranks" "$bench" 256 | tee /dev/stderr |
    { [ "$ranks" -eq 2 ] && cat || tail -n +3; } >>"$section"
done
{
  echo
  echo "$(date -u +%F), commit $(git rev-parse --short HEAD)," \
    "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores, $(uname -r)," \
    "$(mpirun --version | head -n 1), single copy $OMPI_MCA_btl_vader_single_copy_mechanism."
} >>"$section"
awk -v section="$section" '
  /<!-- collectives:end -->/ {skip = 0}
  !skip {print}
  /<!-- collectives:begin -->/ {skip = 1; while ((getline line < section) > 0) print line}
' docs/benchmarks.md >docs/benchmarks.md.new
mv docs/benchmarks.md.new docs/benchmarks.md
