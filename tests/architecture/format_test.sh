#!/usr/bin/env bash
# Every source file is as clang-format writes it. Run from anywhere: format_test.sh ROOT
set -u
cd "$1" || exit 1
format=$(command -v clang-format || command -v clang-format-14) ||
  { echo "SKIPPED: no clang-format"; exit 77; }
# Version 14 (Debian 12) is the one that decides: others break lines at other places.
"$format" --version | grep -q 'version 14\.' ||
  { echo "SKIPPED: needs clang-format 14, found $("$format" --version)"; exit 77; }
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  list=$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
else
  list=$(find . \( -path ./build -o -path ./runs \) -prune -o \
    \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print)
fi
[ "$(echo "$list" | wc -l)" -ge 20 ] || { echo "FAILED: no sources found in $1"; exit 1; }
echo "$list" | xargs "$format" --dry-run -Werror --style=file ||
  { echo "FAILED: run clang-format -i on the files above"; exit 1; }
