#!/usr/bin/env bash
# launch/run with a stand-in for the program: codes, signals, threads and arguments.
#   run_script_test.sh PATH_OF_LAUNCH_RUN
set -u
run=$1
scratch=$(mktemp -d "${TMPDIR:-/tmp}/run-script-XXXXXX")
cleanup() {
  # shellcheck disable=SC2046
  kill -KILL $(cat "$SHARDTUNE_BINARY".ready.* 2>/dev/null) 2>/dev/null
  rm -rf "$scratch"
}
trap cleanup EXIT
export TMPDIR=$scratch SHARDTUNE_BINARY=$scratch/shardtune
unset OMP_NUM_THREADS SHARDTUNE_STATUS_FILE
failures=0
checks=0

expect() {  # WHAT EXPECTED FOUND
  checks=$((checks + 1))
  if [ "$2" != "$3" ]; then
    failures=$((failures + 1))
    echo "FAILED: $1: expected '$2', found '$3'"
  fi
}

# Rank r does what the r-th word says: CODE leaves the code, "late" leaves 70 a second later, "wait" runs until USR1 and then leaves
# 75, "stuck" ignores USR1, "crash" is killed.
cat >"$SHARDTUNE_BINARY" <<'PROGRAM'
#!/usr/bin/env bash
rank=${OMPI_COMM_WORLD_RANK:-0}
leave() {
  [ -z "${SHARDTUNE_STATUS_FILE:-}" ] || echo "$rank $1" >>"$SHARDTUNE_STATUS_FILE"
  exit "$1"
}
words=("$@")
case ${words[$rank]} in
  threads) echo "$OMP_NUM_THREADS" ;;
  count) echo "$#:$2" ;;
  late) sleep 1; leave 70 ;;
  crash) kill -KILL $$ ;;
  stuck) trap '' USR1; echo $$ >"$0.ready.$rank"; while :; do sleep 0.1; done ;;
  wait) trap 'leave 75' USR1; echo $$ >"$0.ready.$rank"; while :; do sleep 0.1; done ;;
  *) leave "${words[$rank]}" ;;
esac
PROGRAM
chmod +x "$SHARDTUNE_BINARY"

quiet() { "$run" "$@" >/dev/null 2>&1; }
until_ready() {  # RANKS
  local tries=0
  while [ "$(ls "$SHARDTUNE_BINARY".ready.* 2>/dev/null | wc -l)" -lt "$1" ] && [ $tries -lt 200 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
}

quiet; expect "no arguments" 64 $?
quiet -n; expect "-n without a number" 64 $?
quiet -n 0 train; expect "zero ranks" 64 $?
quiet -n 2x train; expect "ranks not a number" 64 $?
quiet -n 2; expect "no command" 64 $?
quiet train; expect "no -n" 64 $?
quiet -n 2 --hostfile; expect "no hostfile" 64 $?
quiet -n 2 --hostfile "$scratch/none" 0 0; expect "hostfile is not there" 66 $?
echo '# no host' >"$scratch/hosts"
quiet -n 2 --hostfile "$scratch/hosts" 0 0; expect "hostfile without hosts" 64 $?
SHARDTUNE_BINARY=$scratch/none quiet -n 1 0; expect "no program" 66 $?
quiet -n 1 65; expect "one rank keeps its code" 65 $?
expect "one rank keeps its arguments" "2:a b" "$("$run" -n 1 count 'a b')"

if ! command -v mpirun >/dev/null; then
  echo "SKIPPED the rest: no mpirun"
  exit 77
fi
quiet -n 2 0 0; expect "both done" 0 $?
quiet -n 2 66 66; expect "both found the input missing" 66 $?
quiet -n 2 0 65; expect "one rank's code" 65 $?
quiet -n 3 late 76 late; expect "the cause, not the ranks that lost their peer" 76 $?
quiet -n 2 70 crash; expect "a killed rank is a lost peer" 70 $?
quiet -n 2 crash crash; code=$?
expect "all killed are lost" 70 $code
expect "arguments of two ranks" "2:a b" "$("$run" -n 2 count 'a b' 2>/dev/null | head -n 1)"
share=$(($(nproc) / 2))
expect "threads are shared out" $((share > 0 ? share : 1)) \
  "$("$run" -n 2 threads threads 2>/dev/null | head -n 1)"
expect "threads of the caller are kept" 3 \
  "$(OMP_NUM_THREADS=3 "$run" -n 2 threads threads 2>/dev/null | head -n 1)"

for signal in TERM INT; do
  rm -f "$SHARDTUNE_BINARY".ready.*
  # A background job of a script ignores INT unless job control is on.
  set -m
  "$run" -n 2 wait wait >/dev/null 2>&1 &
  pid=$!
  set +m
  until_ready 2
  kill -s $signal $pid
  wait $pid; expect "$signal asks the ranks to save" 75 $?
done

rm -f "$SHARDTUNE_BINARY".ready.*
"$run" -n 2 stuck stuck >/dev/null 2>&1 &
pid=$!
until_ready 2
kill -TERM $pid
sleep 1
expect "one signal waits for the ranks" yes "$(kill -0 $pid 2>/dev/null && echo yes)"
start=$SECONDS
kill -TERM $pid
wait $pid; expect "a second signal ends the ranks" 143 $?
expect "soon" yes "$([ $((SECONDS - start)) -le 10 ] && echo yes)"
sleep 0.5
for ready in "$SHARDTUNE_BINARY".ready.*; do
  # A zombie is gone: the one who inherited it has only not looked yet.
  expect "no rank is left" "" "$(grep -s '^State:' "/proc/$(cat "$ready")/status" | grep -v 'Z (')"
done
expect "no status file is left" "" "$(ls "$scratch" | grep status)"

echo "$((checks - failures)) of $checks checks passed"
[ $failures -eq 0 ]
