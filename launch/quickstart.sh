#!/usr/bin/env bash
# From a fresh Debian 12 to a fine-tuned, merged model: installs, builds, fetches SmolLM2-135M, then
# evaluates it, trains configs/quickstart.yaml on two ranks, evaluates the adapter, exports a merged
# model and generates from it. Ten minutes at most on two cores.
#   bash launch/quickstart.sh
# Outputs lie in runs/quickstart. An interrupted run goes on where it was; a finished one is started
# over. SHARDTUNE_CACHE names the folder of the fetched model (default ~/.cache/shardtune).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/setup.sh
. launch/setup.sh

config=configs/quickstart.yaml
out=runs/quickstart
ranks=2
eval_data=data/samples/eval.jsonl
begin=$SECONDS
step_number=0
export SHARDTUNE_BINARY=$PWD/build/release/launch/shardtune

step() {  # TITLE
  step_number=$((step_number + 1))
  printf '\n== %d/8 %s (%d s so far)\n' "$step_number" "$1" $((SECONDS - begin))
}
show() { echo "\$ $*"; }

json_number() {  # FILE KEY: the number, or - when it is not there
  python3 - "$1" "$2" <<'PYTHON'
import json, sys
value = json.load(open(sys.argv[1])).get(sys.argv[2])
print("-" if value is None else repr(value))
PYTHON
}

evaluate() {  # RESULT_FILE ARGUMENT...
  local result=$1
  shift
  # The longest expected answer has 34 tokens: more would only cost time.
  local command=(launch/run -n 1 eval --model "$model" "$@" --data "$eval_data"
    --metric exact_match --max-new-tokens 48 --batch-size 50 --json)
  show "${command[@]}"
  "${command[@]}" >"$result.partial" || fail $? "the evaluation failed; its message is above."
  mv "$result.partial" "$result"
  printf 'exact match %s, loss %s\n' "$(json_number "$result" exact_match)" \
    "$(json_number "$result" loss)"
}

step "packages"
# shellcheck disable=SC2086
install_packages $SHARDTUNE_BUILD_PACKAGES $SHARDTUNE_MODEL_PACKAGES

step "build (Release; $(nproc) cores)"
build_preset release "" shardtune
"$SHARDTUNE_BINARY" version >/dev/null ||
  fail 71 "$SHARDTUNE_BINARY was built but does not start; run '$SHARDTUNE_BINARY version'."

step "model"
fetch_model
model=$SHARDTUNE_CACHE_DIR/$SHARDTUNE_MODEL_FILE

# Only what this script and the trainer write is removed.
start_over() {  # WHY
  echo "$1: starting over (the files of that run are removed)"
  rm -rf "$out"/{adapter,merged} "$out"/checkpoint-* \
    "$out"/{metrics.jsonl,train.log,resolved_config.yaml} "$out"/eval-{base,adapter}.json* \
    "$out"/quickstart-{done,config.yaml}
}

# What an earlier run left: quickstart-done is written last, so its absence means an interruption.
if [ -e "$out/quickstart-done" ]; then
  start_over "$out holds a finished run"
elif [ -n "$(ls -d "$out"/checkpoint-* 2>/dev/null)" ]; then
  if cmp -s "$config" "$out/quickstart-config.yaml"; then
    echo "$out holds an interrupted run: going on from its newest checkpoint"
  else
    start_over "$out holds an interrupted run of another $config"
  fi
elif [ -e "$out/quickstart-config.yaml" ]; then
  start_over "$out holds a run that stopped before its first checkpoint"
fi
mkdir -p "$out" || fail 73 "$PWD/$out cannot be made. Clone to a folder you can write to."
cp "$config" "$out/quickstart-config.yaml"

step "evaluation of the base model on $eval_data"
if [ -s "$out/eval-base.json" ]; then
  echo "kept from the interrupted run: $out/eval-base.json"
else
  evaluate "$out/eval-base.json"
fi

step "training on $ranks ranks"
show launch/run -n $ranks train "$config" --set model.model_name_or_path="$model"
launch/run -n $ranks train "$config" --set model.model_name_or_path="$model" || {
  code=$?
  [ $code -ne 75 ] || fail 75 "stopped; its checkpoint is in $out. Run this again to go on."
  fail $code "the training failed; its message is above and in $out/train.log."
}

step "evaluation of the adapter"
evaluate "$out/eval-adapter.json" --adapter "$out/adapter"

step "export of the merged model"
rm -rf "$out/merged"
show launch/run -n 1 export --model "$model" --adapter "$out/adapter" --to hf --out "$out/merged"
launch/run -n 1 export --model "$model" --adapter "$out/adapter" --to hf --out "$out/merged" ||
  fail $? "the export failed; its message is above."

step "generation from the merged model"
prompt="Please, set the kitchen to 21 degrees."
show launch/run -n 1 generate --model "$out/merged" --prompt "$prompt"
launch/run -n 1 generate --model "$out/merged" --prompt "$prompt" --max-new-tokens 64 ||
  fail $? "the generation failed; its message is above."

touch "$out/quickstart-done"
python3 - "$out" $((SECONDS - begin)) <<'PYTHON'
import json, pathlib, statistics, sys

out, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
before = json.loads((out / "eval-base.json").read_text())
after = json.loads((out / "eval-adapter.json").read_text())
steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
speed = statistics.median(s["tokens_per_second"] for s in steps)
memory = max(s["peak_rss_bytes"] for s in steps)
rows = [
    ("", "before", "after"),
    ("exact match", f"{100 * before['exact_match']:.1f}%", f"{100 * after['exact_match']:.1f}%"),
    ("loss per answer token", f"{before['loss']:.4f}", f"{after['loss']:.4f}"),
]
print()
for name, first, second in rows:
    print(f"{name:<24}{first:>10}{second:>10}")
print(f"{'training speed':<24}{speed:>10.0f} tokens/s (median step, both ranks)")
print(f"{'peak memory per rank':<24}{memory / 1e6:>10.0f} MB")
print(f"{'whole quickstart':<24}{seconds:>10} s")
print(f"adapter (PEFT) in {out}/adapter, merged model (Hugging Face) in {out}/merged,")
print(f"metrics in {out}/metrics.jsonl, checkpoints and log in {out}")
PYTHON
