#!/usr/bin/env bash
# What is too long for every change: the full number of repetitions, the thread sanitizer,
# clang-tidy, and the live comparisons with Python peers. Writes docs/reports/long-DATE.md; a second
# run of the day adds its rows. docs/reliability.md says which requirement a part stands for.
#   bash tests/long.sh              everything
#   bash tests/long.sh PART...      kill-1 kill-2 kill-3 kill-4 elastic-resume async-save-0 ...
#                                   async-save-4 tests avx2 baseline asan tsan tidy peers
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
wanted=" $* "
if [ ! -e "$report" ]; then
  {
    echo "# Long runs of $(date -u +%F)"
    echo
    echo "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores," \
      "$(. /etc/os-release && echo "$PRETTY_NAME")."
    echo
    echo "| part | commit | seconds | result |"
    echo "|---|---|---|---|"
  } >"$report"
fi

is_wanted() { [ "$wanted" = "  " ] || [[ "$wanted" == *" $1 "* ]]; }

row() {  # PART SECONDS RESULT
  echo "| $1 | $(git rev-parse --short HEAD 2>/dev/null || echo unknown) | $2 | $3 |" >>"$report"
}

part() {  # NAME COMMAND...: runs it when wanted, its output to a log, one row to the report
  local name=$1 log start=$SECONDS outcome=passed told
  shift
  is_wanted "$name" || return 0
  log="build/long-$name.log"
  echo "== $name"
  ("$@") >"$log" 2>&1 </dev/null || { outcome="FAILED"; result=1; tail -n 40 "$log"; }
  # ctest's last line, and what tests tell of themselves in lines "report: ...".
  told=$({ grep -h '% tests passed' "$log" || true; grep -oh 'report: .*' "$log" | cut -c9- || true; } |
    paste -sd ';' | sed 's/;/; /g')
  row "$name" $((SECONDS - start)) "$outcome${told:+: $told}"
}

# In a release build; -V because the tests tell figures.
release_tests() { ctest --test-dir build/release -V --no-tests=error "$@"; }

tidy() {
  git ls-files '*.cpp' | grep -v '^tests/' |
    xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/release --quiet --warnings-as-errors='*'
}
# Of the thread sanitizer's build; oneDNN's own threads are not instrumented.
tsan_tests() { OMP_NUM_THREADS=1 ctest --test-dir build/tsan --no-tests=error "$@"; }
all_under_tsan() {
  build_preset tsan "-DSHARDTUNE_TESTS=ON"
  tsan_tests -j "$(nproc)" --output-on-failure -L unit -E "architecture|$apart"
}
async_save() {  # SERIES
  build_preset tsan "-DSHARDTUNE_TESTS=ON" async_save_test
  tsan_tests -V -R "AsyncSaveSeries.*/$1\$"
}
# With run-time dispatch held down: the forms for machines without AVX-512 or AVX2.
tests_under() {  # INSTRUCTION_SET
  SHARDTUNE_MAX_CPU_ISA=$1 ctest --test-dir build/release -j "$(nproc)" --output-on-failure \
    --no-tests=error -L unit -E "architecture|avx2[.]|baseline[.]|$apart"
}
all_under_asan() {
  build_preset asan "-DSHARDTUNE_TESTS=ON"
  ctest --test-dir build/asan -j "$(nproc)" --output-on-failure --no-tests=error -L unit -E "$apart"
}

# What has a part of its own.
apart='KillTest|ElasticResume|AsyncSaveSeries'
build_preset release "-DSHARDTUNE_TESTS=ON -DSHARDTUNE_WERROR=ON"
for ranks in 1 2 3 4; do
  part "kill-$ranks" release_tests -R "KillTest.*/$ranks\$"
done
part elastic-resume release_tests -R ElasticResume
for series in 0 1 2 3 4; do
  part "async-save-$series" async_save "$series"
done
part tests ctest --test-dir build/release -j "$(nproc)" --output-on-failure --no-tests=error \
  -LE parity -E "$apart"
part avx2 tests_under avx2
part baseline tests_under baseline
part asan all_under_asan
part tsan all_under_tsan
part tidy tidy
if [ -n "${SHARDTUNE_PEERS_PYTHON:-}" ]; then
  part peers ctest --test-dir build/release --output-on-failure --no-tests=error -L parity
elif is_wanted peers; then
  row peers - "not run: SHARDTUNE_PEERS_PYTHON is not set"
fi
cat "$report"
exit $result
