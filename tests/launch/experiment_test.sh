#!/usr/bin/env bash
# Sweeps from outside: run, run again, one run undone, killed and stopped in the middle, two in one folder. Argument: the program.
set -uo pipefail
shoal=$1
examples=$(cd "$(dirname "$0")/../../examples" && pwd)
work=$(mktemp -d)
sweep=0
trap '[ $sweep = 0 ] || kill -KILL $sweep 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
mkdir texts
for i in $(seq 30); do seq $((i * 40)) $((i * 80)) >"texts/$i"; done
"$shoal" data build --out d texts >/dev/null
echo 'model { transformer { layers: 1 width: 32 heads: 2 } } data { dataset { path: "d" } max_tokens: 64 held_out: 0.1 } global_batch { tokens: 256 }
duration { steps: 20 } runtime { threads_per_rank: 1 } checkpoint { every { steps: 20 } } log { every_steps: 1000 tensorboard: false }' >job.textproto
cat >sweep.textproto <<'SWEEP'
name: "tiny"
job: "job.textproto"
axis { field: "optim.learning_rate" value: ["1e-3", "3e-3"] }
seeds: [1, 2]
jobs_at_once: 1
SWEEP
failures=0
fail() { echo "FAILED: $1"; cat "$work/log" 2>/dev/null; failures=$((failures + 1)); }
# check NAME EXIT TEXT COMMAND...: COMMAND ends with EXIT and says TEXT; its output is left in log.
check() {
  local name=$1 want=$2 text=$3 code
  shift 3
  "$@" >log 2>&1
  code=$?
  [ $code -eq "$want" ] && grep -qF -- "$text" log || fail "$name: exit $code (wanted $want, and '$text')"
}
# inodes FOLDER: of every run's metrics; a run that starts again writes a new file.
inodes() { stat -c '%i %n' "$1"/runs/*/metrics.jsonl; }
wait_for() {
  for _ in $(seq 300); do
    "$@" 2>/dev/null && return 0
    sleep 0.1
  done
  return 1
}

check "sweep" 0 "[4/4]" "$shoal" experiment sweep.textproto --folder out
grep -q 'held-out loss, mean and range over seeds' log || fail "no table"
[ "$(grep -c ',finished,tokens,[0-9]' out/results.csv)" = 4 ] || fail "results.csv: $(cat out/results.csv)"
python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse("out/results.svg")' >log 2>&1 || fail "results.svg is no XML"
grep -q 'finished at step 20' 'out/runs/learning_rate=1e-3,seed=2/logs/console.log' || fail "a run's own log"

before=$(inodes out)
check "again" 0 "all have ended" "$shoal" experiment sweep.textproto --folder out
[ "$(inodes out)" = "$before" ] || fail "a finished run was repeated"

rm 'out/runs/learning_rate=3e-3,seed=1/state'
check "one run undone" 0 "[1/1] learning_rate=3e-3,seed=1 | held-out loss" "$shoal" experiment sweep.textproto --folder out
changed=$(diff <(echo "$before") <(inodes out) | grep -c '^>')
[ "$changed" = 1 ] || fail "$changed runs were repeated instead of one"

check "more seeds" 0 "[2/2] learning_rate=3e-3,seed=3" "$shoal" experiment sweep.textproto --folder out --sweep 'seeds=[1,2,3]'
check "a changed job" 0 "that run is out/old/learning_rate=1e-3,seed=1-1 now" "$shoal" experiment sweep.textproto --folder out --set duration.steps=21
grep -q finished 'out/old/learning_rate=1e-3,seed=1-1/state' || fail "the earlier run is gone"
check "report of several" 0 "out/runs/report.html" "$shoal" report out/runs/*/
grep -q 'learning_rate=3e-3,seed=2' out/runs/report.html || fail "the page lacks a run"
check "report elsewhere, one without metrics" 0 "out has no metrics" "$shoal" report out 'out/runs/learning_rate=1e-3,seed=1' --out page.html
check "report of nothing" 3 "none of 2 runs" "$shoal" report out texts
check "collect" 0 "results.svg" "$shoal" experiment sweep.textproto --folder out --set duration.steps=21 --collect
check "list" 0 "   4  finished    learning_rate=3e-3,seed=2" "$shoal" experiment sweep.textproto --folder out --set duration.steps=21 --list

# One command trains a codec beside those of the example's file.
links=(experiment "$examples/compression/links.textproto" --folder links --point 'codes:q3=comm.compression={ mode: UNIFORM codec: "q3" }')
"$shoal" "${links[@]}" --list >log 2>&1
[ "$(grep -c ' codes=\(fp32\|bf16\|q4\|q3\),thread_link_mbit=\(100\|1000\|10000\),ranks=2,seed=[123]$' log)" = 36 ] || fail "a codec beside others over rates and seeds"
for run in codes={q3,fp32},thread_link_mbit=1000,ranks=2,seed=2; do
  check "$run" 0 "[1/1] $run" "$shoal" "${links[@]}" --run $run --set 'data.dataset={ path: "d" }' --set data.held_out=0.1 --set duration.steps=2 \
    --set 'optim.schedule={ shape: CONSTANT }' --set 'global_batch={ tokens: 256 }' --set 'eval={}'
done
bytes() { tail -1 "links/runs/codes=$1,thread_link_mbit=1000,ranks=2,seed=2/metrics.jsonl" | sed -n 's/.*"reduced_bytes":\([0-9]*\).*/\1/p'; }
[ $((4 * $(bytes q3))) -lt "$(bytes fp32)" ] || fail "q3 sends $(bytes q3) bytes a step, fp32 $(bytes fp32)"

# Long enough to be met in the middle.
long=(experiment sweep.textproto --folder long --set duration.steps=1500)
"$shoal" "${long[@]}" >log 2>&1 &
sweep=$!
wait_for grep -q '^\[1/4\]' log || fail "no run ends"
wait_for test -s 'long/runs/learning_rate=1e-3,seed=2/metrics.jsonl' || fail "the second run does not begin"
first=$(inodes long | grep 'rate=1e-3,seed=1/')
check "a second sweep in the folder" 7 "is in use by process $sweep" "$shoal" "${long[@]}"
kill -KILL $sweep
wait $sweep 2>/dev/null
check "killed and run again" 0 "[3/3]" "$shoal" "${long[@]}"
grep -q '^long: 4 runs, 3 to do' log || fail "killed and run again: $(head -1 log)"
[ "$(inodes long | grep 'rate=1e-3,seed=1/')" = "$first" ] || fail "killed and run again: a finished run was repeated"
grep -q 'resumed at step' 'long/runs/learning_rate=1e-3,seed=2/logs/console.log' || fail "the killed run's progress is lost"

for signal in INT TERM; do
  "$shoal" "${long[@]/long/$signal}" --set log.every_steps=500 >log 2>&1 &
  sweep=$!
  wait_for test -s "$signal/runs/learning_rate=1e-3,seed=1/metrics.jsonl" || fail "$signal: nothing runs"
  kill -$signal $sweep
  wait $sweep
  code=$?
  [ $code -eq 0 ] && grep -q 'stopped; 4 runs are left' log || fail "$signal: exit $code"
  grep -q '^stopped at step' "$signal/runs/learning_rate=1e-3,seed=1/state" || fail "$signal: the run was not saved"
done
sweep=0

check "wrong axis" 2 "sweep.textproto:3:8: unknown field 'optim.lerning_rate': no 'lerning_rate'; did you mean 'learning_rate'?" \
  bash -c "sed -i.bak 's/learning_rate/lerning_rate/' sweep.textproto; $shoal experiment sweep.textproto --folder out; code=\$?; mv sweep.textproto.bak sweep.textproto; exit \$code"
check "a run that fails does not end the sweep" 3 "[4/4]" "$shoal" experiment sweep.textproto --folder failing --sweep \
  'axis={ name: "data" point { label: "none" set: "data.dataset={ path: \"missing\" }" } point { label: "there" } }'
grep -q '^\[1/4\] data=none,seed=1 | FAILED (exit 3): .*; see failing/runs/data=none,seed=1/logs/console.log' log || fail "a failed run's line"
[ "$(grep -c ',finished,' failing/results.csv)" = 2 ] || fail "the others did not run"
check "a diverged run is a result" 0 "DIVERGED" "$shoal" experiment sweep.textproto --folder diverging --sweep 'seeds=[1]' --set optim.clip_norm=0 \
  --set 'optim.sgd={}' --set optim.guard.max_skipped=0 --sweep 'axis={ field: "optim.learning_rate" value: ["1e-3", "9e5"] }'
grep -q ',diverged,' diverging/results.csv || fail "results.csv does not say diverged"
check "a diverged run is not repeated" 0 "all have ended" "$shoal" experiment sweep.textproto --folder diverging --sweep 'seeds=[1]' --set optim.clip_norm=0 \
  --set 'optim.sgd={}' --set optim.guard.max_skipped=0 --sweep 'axis={ field: "optim.learning_rate" value: ["1e-3", "9e5"] }'

check "array" 0 "#SBATCH --array=0-3%1" "$shoal" experiment sweep.textproto --folder array --slurm --minutes 5
bash -n log || fail "the array's script is no shell script"
check "one task of it" 0 "[1/1] learning_rate=1e-3,seed=2 | held-out loss" "$shoal" experiment sweep.textproto --folder array --run learning_rate=1e-3,seed=2
check "by number" 0 "learning_rate=1e-3,seed=2 has finished already" "$shoal" experiment sweep.textproto --folder array --run 2
check "no such run" 2 "'9' is no run" "$shoal" experiment sweep.textproto --folder array --run 9
check "what is left of it" 0 "#SBATCH --array=0-2%1" "$shoal" experiment sweep.textproto --folder array --slurm
check "not both" 2 "" "$shoal" experiment sweep.textproto --slurm --collect
exit $((failures > 0))
