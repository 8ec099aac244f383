#!/usr/bin/env bash
# Fuzzes the parsers of files of strangers with clang's libFuzzer under the address and
# undefined-behaviour sanitizers, each for a number of inputs. Finds are kept in build/fuzz/found;
# what was learned about reachable code stays in build/fuzz/corpus for the next run. Adds rows to
# docs/reports/fuzz-DATE.md.
#   bash tests/fuzz.sh [INPUTS=250000] [PARSER...]    parsers: the folders of tests/fuzz/seeds
#   bash tests/fuzz.sh again FILE PARSER              one input once more, with its stack
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

# shellcheck disable=SC2086
install_packages $SHARDTUNE_BUILD_PACKAGES clang-14 libomp-14-dev
build_preset fuzz "-DSHARDTUNE_TESTS=ON" fuzzer

# One input may take 1 s of processor time (tests/fuzz/fuzzer.cpp) and 256 MB in one piece. libFuzzer's
# own limit is in wall time: it is for inputs that never end.
limits=(-rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=300 -max_len=4096)
export ASAN_OPTIONS=allocator_may_return_null=0 UBSAN_OPTIONS=print_stacktrace=1
[ -d /dev/shm ] && export TMPDIR=/dev/shm

if [ "${1:-}" = again ]; then
  SHARDTUNE_FUZZ_PARSER=$3 exec build/fuzz/tests/fuzz/fuzzer "${limits[@]}" "$2"
fi

inputs=${1:-250000}
shift || true
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || mapfile -t wanted < <(find tests/fuzz/seeds -mindepth 1 -type d -printf '%f\n' | sort)

mkdir -p docs/reports build/fuzz/found
report=docs/reports/fuzz-$(date -u +%F).md
if [ ! -e "$report" ]; then
  {
    echo "# Fuzzing of $(date -u +%F)"
    echo
    echo "libFuzzer of clang 14 with address and undefined-behaviour sanitizers; one input at most 1 s" \
      "of processor time and 256 MB in one piece ($0). Edges: what the corpus reaches of the program's" \
      "code, standard library included."
    echo
    echo "| parser | commit | seconds | inputs | edges | corpus | result |"
    echo "|---|---|---|---|---|---|---|"
  } >"$report"
fi

result=0
for parser in "${wanted[@]}"; do
  corpus=build/fuzz/corpus/$parser
  log=build/fuzz/$parser.log
  mkdir -p "$corpus"
  outcome="nothing found"
  begin=$SECONDS
  SHARDTUNE_FUZZ_PARSER=$parser \
    build/fuzz/tests/fuzz/fuzzer "${limits[@]}" -runs="$inputs" -print_final_stats=1 \
    -artifact_prefix="build/fuzz/found/$parser-" "$corpus" "tests/fuzz/seeds/$parser" >"$log" 2>&1 </dev/null ||
    { outcome="FOUND: $(grep -am1 -E 'SUMMARY|this input took' "$log" || echo "see $log")"; result=1; tail -n 30 "$log"; }
  executed=$(grep -aoP 'stat::number_of_executed_units: \K\d+' "$log" || grep -aoP '^#\K\d+' "$log" | tail -n 1)
  edges=$(grep -aoP ' cov: \K\d+' "$log" | tail -n 1)
  echo "| $parser | $(git rev-parse --short HEAD 2>/dev/null || echo unknown) | $((SECONDS - begin)) |" \
    "${executed:-?} | ${edges:-?} | $(find "$corpus" -type f | wc -l) | $outcome |" | tee -a "$report"
done
exit $result
