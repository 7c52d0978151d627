#!/usr/bin/env bash
# Faults under mpirun: a killed rank ends the job within 5 s; a stopped one is named by the survivors within the deadline + 5 s, exit 4;
# SIGUSR1 saves and ends with 0; ranks that do not fit together and a full disk are said before anything is lost. Argument: the program.
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

# start NAME FLAG...: two ranks run; waits until they train. Sets $mpirun and $ranks.
start() {
  mpirun -n 2 --oversubscribe --bind-to none "$shoal" train "$work/job" --run_dir "$work/$1" "${@:2}" >"$work/log" 2>&1 &
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
grep -q 'rank 1' "$work/log" || fail "killed rank: nobody names rank 1"

start stopped
kill -STOP "${ranks[1]}"
ended 30
[ $code -eq 4 ] && [ $seconds -le 9 ] || fail "stopped rank: exit $code after $seconds s"
grep -q 'rank 1 ' "$work/log" || fail "stopped rank: nobody names rank 1"
grep -q '^failed: ' "$work/stopped/state" || fail "stopped rank: state is $(cat "$work/stopped/state")"
"$shoal" why-hang "$work/stopped" | grep -q 'rank 0: ' || fail "why-hang says nothing of the stopped run"

start late
kill -STOP "${ranks[1]}"; sleep 1; kill -CONT "${ranks[1]}"
before=$(wc -l <"$work/late/metrics.jsonl")
sleep 1
[ "$(wc -l <"$work/late/metrics.jsonl")" -gt "$before" ] || fail "a rank that was late by less than its deadline: training does not go on"
"$shoal" stop "$work/late" >/dev/null
ended 30
[ $code -eq 0 ] || fail "a rank that was late by less than its deadline: exit $code"

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

# both NAME EXIT TEXT COMMAND...: two ranks of COMMAND end with EXIT and say TEXT.
both() {
  local name=$1 want=$2 text=$3
  shift 3
  timeout 60 mpirun --oversubscribe --bind-to none "$@" >"$work/log" 2>&1
  code=$?
  [ $code -eq "$want" ] && grep -qF -- "$text" "$work/log" || fail "$name: exit $code (wanted $want, and '$text')"
}

# A rank is killed while gradients travel as codes. What codes left out is in the checkpoint: resumed, losses are those of a run that never stopped.
codes=(--set 'comm.compression={ mode: UNIFORM codec: "q4" block: 128 min_elements: 512 }' --set 'checkpoint={ every { steps: 100 } }' --set duration.steps=3000)
start codes "${codes[@]}"
for _ in $(seq 100); do
  [ -e "$work/codes/checkpoints/latest" ] && break
  sleep 0.05
done
kill -KILL "${ranks[1]}"
ended 20
[ $code -ne 0 ] && [ -e "$work/codes/checkpoints/latest" ] || fail "killed among codes: exit $code, or no checkpoint"
both "killed among codes, resumed" 0 "resumed at step" -n 2 "$shoal" train "$work/job" --run_dir "$work/codes" "${codes[@]}"
both "codes, not killed" 0 "finished at step 3000" -n 2 "$shoal" train "$work/job" --run_dir "$work/unstopped" "${codes[@]}"
losses() { sed -n 's/.*"loss":\([^,]*\).*"step":\([0-9]*\).*/\2 \1/p' "$work/$1/metrics.jsonl"; }
[ "$(losses codes | wc -l)" -eq 3000 ] && cmp -s <(losses codes) <(losses unstopped) || fail "killed among codes: other losses, $(diff <(losses codes) <(losses unstopped) | head -3)"
"$shoal" diff "$work/codes" "$work/unstopped" >"$work/log" 2>&1; "$shoal" inspect "$work/codes" >>"$work/log" 2>&1
grep -q "^\([0-9]*\) of \1 tensors are equal" "$work/log" && grep -q "/residual" "$work/log" || fail "killed among codes: other state, or none of what codes left out"

train=("$shoal" train "$work/job" --set duration.steps=2)
both "ranks of different jobs" 7 "ranks differ in their job" -n 1 "${train[@]}" --run_dir "$work/differ" : -n 1 "${train[@]}" --run_dir "$work/differ" --set seed=5
both "sequences that these ranks cannot hold" 2 "a group of 2 ranks, the largest here (2 ranks), holds 16 tokens" -n 2 "${train[@]}" --run_dir "$work/long" \
  --set 'micro_batch={ tokens: 8 }' --set 'parallel.sequence={}'
[ ! -e "$work/long/job.textproto" ] || fail "sequences that these ranks cannot hold: the run directory keeps the job"
PMI_SIZE=4 "${train[@]}" --run_dir "$work/misled" >"$work/log" 2>&1
code=$?
[ $code -eq 7 ] && grep -q 'the launcher started 4 ranks' "$work/log" && [ ! -e "$work/misled" ] || fail "a launcher that MPI does not see: exit $code"

# A file system of its own for one rank, or a small one: needs a mount namespace (root, or user namespaces).
if unshare -m true 2>/dev/null; then apart=(unshare -m); elif unshare -rm true 2>/dev/null; then apart=(unshare -rm); else apart=(); fi
if [ ${#apart[@]} -gt 0 ]; then
  mkdir "$work/shared"
  cat >"$work/elsewhere" <<WRAPPER
#!/usr/bin/env bash
# Rank 1 sees another file system where rank 0 has its run directory.
[ "\$OMPI_COMM_WORLD_RANK" = 1 ] || exec "\$@"
exec ${apart[*]} bash -c 'mount -t tmpfs none "$work/shared" && exec "\$@"' - "\$@"
WRAPPER
  chmod +x "$work/elsewhere"
  both "a run directory that is not shared" 7 "is not shared: rank 1 on" -n 2 "$work/elsewhere" "${train[@]}" --run_dir "$work/shared/run"

  # A run of some steps, a disk that fills up, and the same run once there is room again.
  mkdir "$work/small"
  "${apart[@]}" bash -c '
    mount -t tmpfs -o size=3m none "$2/small"
    run=("$1" train "$2/job" --run_dir "$2/small/run" --set runtime.threads_per_rank=1 --resume_with duration.steps)
    "${run[@]}" --set duration.steps=2 || exit 90
    head -c 10m /dev/zero >"$2/small/fill" 2>/dev/null
    "${run[@]}" --set duration.steps=4; code=$?
    [ $code -eq 7 ] || { echo "with a full disk: exit $code"; exit 91; }
    rm "$2/small/fill"
    "${run[@]}" --set duration.steps=4' - "$shoal" "$work" >"$work/log" 2>&1
  code=$?
  [ $code -eq 0 ] && grep -q 'No space left' "$work/log" && grep -q 'resumed at step 2' "$work/log" || fail "a full disk: exit $code"
else
  echo "not run: a run directory that is not shared, a full disk (no mount namespaces here)"
fi
exit $((failures > 0))
