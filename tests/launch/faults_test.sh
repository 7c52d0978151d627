#!/usr/bin/env bash
# Faults under mpirun: a killed rank ends the job within 5 s; a stopped one is named by the survivors within the deadline + 5 s, exit 4;
# SIGUSR1 saves and ends with 0. Argument: the program.
set -uo pipefail
shoal=$1
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
work=$(mktemp -d)
trap 'pkill -KILL -f "$work/" 2>/dev/null; rm -rf "$work"' EXIT
seq 1 20000 >"$work/text"
"$shoal" data build --out "$work/d" "$work/text" >/dev/null
echo 'model { transformer { layers: 1 width: 32 heads: 2 } } data { dataset { path: "'"$work"'/d" } max_tokens: 32 held_out: 0 }
global_batch { tokens: 128 } duration { steps: 1000000 } comm { deadline_seconds: 3 } log { every_steps: 1000 }' >"$work/job"
failures=0
fail() { echo "FAILED: $1"; cat "$work/log"; failures=$((failures + 1)); }

# start NAME: two ranks run; waits until they train. Sets $mpirun and $ranks.
start() {
  mpirun -n 2 --oversubscribe --bind-to none "$shoal" train "$work/job" --run_dir "$work/$1" >"$work/log" 2>&1 &
  mpirun=$!
  for _ in $(seq 100); do
    [ -s "$work/$1/metrics.jsonl" ] && break
    sleep 0.1
  done
  mapfile -t ranks < <(pgrep -P "$mpirun" -f "$work/job")
  [ "${#ranks[@]}" -eq 2 ] || fail "$1: ${#ranks[@]} ranks are running"
}
# ended WITHIN: waits for mpirun; sets $code and $seconds.
ended() {
  local begin=$SECONDS
  ( sleep "$1"; kill -KILL "$mpirun" 2>/dev/null ) & local guard=$!
  wait "$mpirun"; code=$?
  seconds=$((SECONDS - begin))
  kill "$guard" 2>/dev/null
}

start killed
kill -KILL "${ranks[1]}"
ended 20
[ $code -ne 0 ] && [ $seconds -le 5 ] || fail "killed rank: exit $code after $seconds s"

start stopped
kill -STOP "${ranks[1]}"
ended 30
[ $code -eq 4 ] && [ $seconds -le 9 ] || fail "stopped rank: exit $code after $seconds s"
grep -q 'rank 1 ' "$work/log" || fail "stopped rank: nobody names rank 1"
grep -q '^failed: ' "$work/stopped/state" || fail "stopped rank: state is $(cat "$work/stopped/state")"
"$shoal" why-hang "$work/stopped" | grep -q 'rank 0: ' || fail "why-hang says nothing of the stopped run"

start asked
kill -USR1 "$mpirun"
ended 30
[ $code -eq 0 ] || fail "SIGUSR1: exit $code"
grep -q '^stopped at step ' "$work/asked/state" || fail "SIGUSR1: state is $(cat "$work/asked/state")"
[ -e "$work/asked/checkpoints/latest" ] || fail "SIGUSR1: no checkpoint"

start file
"$shoal" stop "$work/file" >/dev/null
ended 30
[ $code -eq 0 ] && grep -q '^stopped at step ' "$work/file/state" || fail "shoal stop: exit $code, state $(cat "$work/file/state")"
exit $((failures > 0))
