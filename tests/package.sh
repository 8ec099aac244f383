#!/usr/bin/env bash
# The Debian package: makes it, or tries it on a machine that has nothing for building.
#   bash tests/package.sh                  build/release/shardtune_VERSION_ARCH.deb
#   bash tests/package.sh --install FILE   installs it with apt-get, trains, exports, removes it again
# The second needs root and is meant for a bare Debian 12 (docs/installing.md).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

make_package() {
  # shellcheck disable=SC2086
  install_packages $SHARDTUNE_BUILD_PACKAGES $SHARDTUNE_PACKAGE_PACKAGES
  build_preset release "" shardtune
  (cd build/release && cpack) >build/package.log 2>&1 ||
    { tail -n 15 build/package.log >&2; fail 71 "cpack failed; its output is in build/package.log."; }
  local deb
  deb=$(ls -t build/release/shardtune_*.deb | head -n 1)
  echo "$deb: $(stat -c %s "$deb") bytes"
  echo "needs $(dpkg-deb --field "$deb" Depends)"
}

train_two_steps() {  # RANKS
  rm -rf run
  shardtune-run -n "$1" train run.yaml || fail 1 "training on $1 ranks left $?."
  [ "$(wc -l <run/metrics.jsonl)" -eq 2 ] || fail 1 "expected two steps in metrics.jsonl."
  cp run/adapter/adapter_model.safetensors "adapter-$1"
}

try_package() {  # FILE
  local deb model_maker=$PWD/tests/package/make_random_model.py work
  deb=$(realpath "$1")
  work=$(mktemp -d)
  SHARDTUNE_APT_LOG=$work/apt.log
  apt_get update || true
  # Python is for the model alone; the package does without.
  apt_get install -y --no-install-recommends python3 "$deb" ||
    { tail -n 15 "$work/apt.log" >&2; fail 1 "$deb could not be installed."; }
  cd "$work"
  python3 "$model_maker" model
  shardtune version
  cat >run.yaml <<'CONFIG'
model: {model_name_or_path: model, compute_dtype: float32}
adapter: {lora_rank: 4}
data: {train: [{path: model/train.jsonl, format: completion}], chat_template: chatml, max_length: 96}
training: {max_steps: 2, micro_batch_size: 2, global_batch_size: 4, learning_rate: 1e-2}
checkpoint: {output_dir: run}
CONFIG
  train_two_steps 1
  train_two_steps 2
  cmp adapter-1 adapter-2 || fail 1 "one rank and two made other adapters."
  shardtune export --model model --adapter run/adapter --to gguf --out gguf
  apt_get purge -y shardtune || fail 1 "the package cannot be removed."
  [ ! -e /usr/bin/shardtune ] || fail 1 "the program is still there."
  cd / && rm -rf "$work"
  echo "tests/package.sh: installed, trained on 1 and 2 ranks, exported, removed"
}

case ${1:-} in
  '') make_package ;;
  --install)
    [ -f "${2:-}" ] || fail 66 "tests/package.sh: expected a .deb file after --install."
    try_package "$2"
    ;;
  *) fail 64 "tests/package.sh: expected --install FILE or nothing, found '$1'." ;;
esac
