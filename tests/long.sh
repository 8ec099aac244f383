#!/usr/bin/env bash
# What is too long for every change: the full number of repetitions, the thread sanitizer,
# clang-tidy, and the live comparisons with Python peers. Writes docs/reports/long-DATE.md.
#   bash tests/long.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh
export SHARDTUNE_TEST_SCALE=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none

# shellcheck disable=SC2086
install_packages $SHARDTUNE_BUILD_PACKAGES $SHARDTUNE_MODEL_PACKAGES $SHARDTUNE_TEST_PACKAGES \
  clang-14 clang-tidy-14 libomp-14-dev
fetch_model
export SHARDTUNE_MODEL=${SHARDTUNE_MODEL:-$SHARDTUNE_CACHE_DIR/$SHARDTUNE_MODEL_FILE}

mkdir -p docs/reports build
report=docs/reports/long-$(date -u +%F).md
result=0
{
  echo "# Long run of $(date -u +%F)"
  echo
  echo "Commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)," \
    "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), $(nproc) cores," \
    "$(. /etc/os-release && echo "$PRETTY_NAME")."
  echo
  echo "| part | seconds | result |"
  echo "|---|---|---|"
} >"$report"

part() {  # NAME COMMAND...: runs it, its output to a log, one row to the report
  local name=$1 log start=$SECONDS outcome=passed
  shift
  log="build/long-${name// /-}.log"
  echo "== $name"
  ("$@") >"$log" 2>&1 </dev/null || { outcome="FAILED"; result=1; tail -n 40 "$log"; }
  local closing
  closing=$(grep -h 'tests passed' "$log" | tail -n 1 || true)
  echo "| $name | $((SECONDS - start)) | $outcome${closing:+: $closing} |" >>"$report"
}

tidy() {
  git ls-files '*.cpp' | grep -v '^tests/' |
    xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/release --quiet --warnings-as-errors='*'
}
thread_sanitizer() {
  build_preset tsan "-DSHARDTUNE_TESTS=ON"
  # oneDNN's own threads are not instrumented.
  OMP_NUM_THREADS=1 ctest --test-dir build/tsan -j "$(nproc)" --output-on-failure \
    --no-tests=error -L unit -E 'architecture'
}

build_preset release "-DSHARDTUNE_TESTS=ON -DSHARDTUNE_WERROR=ON"
part "all tests at full count" ctest --test-dir build/release -j "$(nproc)" --output-on-failure \
  --no-tests=error -LE parity
build_preset asan "-DSHARDTUNE_TESTS=ON"
part "all tests under sanitizers" ctest --test-dir build/asan -j "$(nproc)" --output-on-failure \
  --no-tests=error -L unit
part "thread sanitizer" thread_sanitizer
part "clang-tidy" tidy
if [ -n "${SHARDTUNE_PEERS_PYTHON:-}" ]; then
  part "comparisons with Python peers" ctest --test-dir build/release --output-on-failure \
    --no-tests=error -L parity
else
  echo "| comparisons with Python peers | - | not run: SHARDTUNE_PEERS_PYTHON is not set |" >>"$report"
fi
cat "$report"
exit $result
