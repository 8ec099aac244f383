#!/usr/bin/env bash
# Installs what is missing, builds, and runs the test suite (DESIGN section 8.17): one Release build
# with warnings as errors, the parsers once more under the address and undefined-behaviour
# sanitizers. Long runs and live comparisons with Python peers are not part of it: tests/long.sh.
#   bash tests/run.sh [CTEST ARGUMENT]...       for example: bash tests/run.sh -R Safetensors
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

begin=$SECONDS
say() { printf '\n== %s (after %d s)\n' "$1" $((SECONDS - begin)); }

# Repetitions of the long randomised tests are divided by this.
export SHARDTUNE_TEST_SCALE=${SHARDTUNE_TEST_SCALE:-20}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none
jobs=$(nproc)

say "packages"
# shellcheck disable=SC2086
install_packages $SHARDTUNE_BUILD_PACKAGES $SHARDTUNE_MODEL_PACKAGES $SHARDTUNE_TEST_PACKAGES

say "model"
if (fetch_model); then
  export SHARDTUNE_MODEL=${SHARDTUNE_MODEL:-$SHARDTUNE_CACHE_DIR/$SHARDTUNE_MODEL_FILE}
else
  echo "tests that need $SHARDTUNE_MODEL_FILE will be skipped"
fi

say "Release build"
build_preset release "-DSHARDTUNE_TESTS=ON -DSHARDTUNE_WERROR=ON"

say "sanitizer build of the parsers"
build_preset asan "-DSHARDTUNE_TESTS=ON" io_test data_test

result=0
for folder in io data; do
  say "parsers under sanitizers: $folder"
  ctest --test-dir "build/asan/tests/$folder" -j "$jobs" --output-on-failure --no-tests=error \
    >"build/asan-$folder.log" 2>&1 || result=1
  if [ $result -eq 0 ]; then
    grep 'tests passed' "build/asan-$folder.log"
  else
    tail -n 60 "build/asan-$folder.log"
  fi
done

say "tests"
ctest --test-dir build/release -j "$jobs" --output-on-failure --no-tests=error \
  -LE 'parity|long' "$@" || result=1
[ $result -eq 0 ] || echo "tests/run.sh: something above failed" >&2
exit $result
