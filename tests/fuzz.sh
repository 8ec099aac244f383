#!/usr/bin/env bash
# Fuzzes the parsers of files of strangers with clang's libFuzzer under the address and
# undefined-behaviour sanitizers, each for a number of inputs. Finds are kept in build/fuzz/found;
# what was learned about reachable code stays in build/fuzz/corpus for the next run. Adds rows to
# docs/reports/fuzz-DATE.md.
#   bash tests/fuzz.sh [INPUTS=250000] [PARSER...]    parsers: the folders of tests/fuzz/seeds
#   bash tests/fuzz.sh again FILE PARSER              one input once more, with its stack
#   bash tests/fuzz.sh coverage                       lines that the seeds and that corpus reach
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

# shellcheck disable=SC2086
install_packages $SHARDTUNE_BUILD_PACKAGES clang-14 libomp-14-dev llvm-14

parsers() {
  find tests/fuzz/seeds -mindepth 1 -type d -printf '%f\n' | sort
}

# Lines of the parsers that are reached without a single new input, as a page of docs/reports.
coverage() {
  build_preset coverage "-DSHARDTUNE_TESTS=ON" fuzzer
  local parser profiles=build/coverage/profiles page
  page=docs/reports/fuzz-coverage-$(date -u +%F).md
  rm -rf "$profiles"
  mkdir -p "$profiles" docs/reports
  for parser in $(parsers); do
    mkdir -p "build/fuzz/corpus/$parser"
    SHARDTUNE_FUZZ_PARSER=$parser LLVM_PROFILE_FILE=$profiles/$parser.profraw \
      build/coverage/tests/fuzz/fuzzer -runs=0 "build/fuzz/corpus/$parser" "tests/fuzz/seeds/$parser" \
      >"$profiles/$parser.log" 2>&1 </dev/null || { tail -n 30 "$profiles/$parser.log"; return 1; }
  done
  llvm-profdata-14 merge -o "$profiles/all" "$profiles"/*.profraw
  {
    echo "# Lines of the parsers that their fuzzers' inputs reach, $(date -u +%F)"
    echo
    echo "$(wc -l <tests/fuzz/seeds/expected.tsv) seeds of tests/fuzz/seeds and" \
      "$(find build/fuzz/corpus -type f | wc -l) inputs found by fuzzing; commit" \
      "$(git rev-parse --short HEAD 2>/dev/null || echo unknown), clang 14 ($0 coverage). Of functions" \
      "that no input entered no line is counted; they are named."
    echo
    python3 tests/fuzz/coverage.py build/coverage/tests/fuzz/fuzzer "$profiles/all"
  } | tee "$page"
}

if [ "${1:-}" = coverage ]; then
  coverage
  exit
fi
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
[ ${#wanted[@]} -gt 0 ] || mapfile -t wanted < <(parsers)

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
