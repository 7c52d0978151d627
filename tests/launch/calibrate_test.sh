#!/usr/bin/env bash
# calibrate, and what plan and train say with its file. Argument: the program.
set -uo pipefail
shoal=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
# check NAME EXIT TEXT COMMAND...: COMMAND ends with EXIT and says TEXT.
check() {
  local name=$1 want=$2 text=$3 out code
  shift 3
  out=$("$@" 2>&1)
  code=$?
  if [ $code -ne "$want" ] || ! grep -qF -- "$text" <<<"$out"; then
    echo "FAILED: $name: exit $code (wanted $want), output (wanted '$text'):"
    echo "$out"
    failures=$((failures + 1))
  fi
}
echo 'model { transformer { layers: 1 width: 16 heads: 2 } } data { dataset { path: "'"$work"'/d" } max_tokens: 32 held_out: 0 } global_batch { tokens: 64 } duration { steps: 2 }' >"$work/job"
seq 1 500 >"$work/text.txt"
check "data build" 0 "1 documents" "$shoal" data build --out "$work/d" "$work/text.txt"
check "calibrate" 0 "holds the calibration of 1 rank x 1 thread, FP32" "$shoal" calibrate --threads 1 --compute FP32 --out "$work/calibration.json"
check "predicted step time" 0 "step time of 1 rank x 1 thread" "$shoal" plan "$work/job" --ranks 1 --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json"
check "of scaled residual branches too" 0 "step time of 1 rank x 1 thread" "$shoal" plan "$work/job" --ranks 1 --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json" --set 'optim.width_rule={ preset: COMPLETE_P base_width: 8 base_depth: 2 }'
check "predicted and measured" 0 "ms, measured " "$shoal" train "$work/job" --run_dir "$work/run8" --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json"
check "calibrate for two ranks" 0 "holds the calibration of 2 ranks x 1 thread, FP32" "$shoal" calibrate --local_ranks 2 --threads 1 --compute FP32 --out "$work/calibration.json"
# A file of other ranks, as plans of codes read it, or of another host is refused, with what it is of and what the run is.
foreign=("$shoal" train "$work/job" --set runtime.threads_per_rank=1 --set runtime.compute=FP32)
of_both() { echo "$1.json is of 2 ranks x 1 thread, FP32, on $2; of 1 rank x 1 thread, FP32, on $2; this run is of $3 x 1 thread, FP32, on $(hostname); make one: "; }
check "of other ranks" 2 "$(of_both calibration "$(hostname)" "3 ranks")mpirun -n 3 " "${foreign[@]}" --run_dir "$work/foreign3" --local_ranks 3 \
  --set 'global_batch={ tokens: 96 }' --set 'comm.compression={ mode: LGRECO_TIME }' --set runtime.calibration="$work/calibration.json"
sed 's/"host": *"[^"]*"/"host":"elsewhere"/' "$work/calibration.json" >"$work/elsewhere.json"
check "of another host" 2 "$(of_both elsewhere elsewhere "1 rank")shoal calibrate " "${foreign[@]}" --run_dir "$work/foreign1" --set runtime.calibration="$work/elsewhere.json"
spread=(--set 'micro_batch={ tokens: 32 }' --set 'parallel.sequence={}' --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json")
check "costs of sequences" 0 "ms a micro-batch (as calibrated: 2 ranks x 1 thread" "$shoal" plan "$work/job" --ranks 2 "${spread[@]}"
check "of these ranks alone" 2 "this run is of 4 ranks" "$shoal" plan "$work/job" --ranks 4 "${spread[@]}"
check "both are kept" 0 "step time of 1 rank x 1 thread" "$shoal" plan "$work/job" --ranks 1 --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json"
check "spread sequences" 0 "(as calibrated: 2 ranks x 1 thread, FP32, on " "$shoal" plan "$work/job" --ranks 2 --set runtime.threads_per_rank=1 --set runtime.compute=FP32 --set runtime.calibration="$work/calibration.json" --set 'micro_batch={ tokens: 16 }' --set 'parallel.sequence={}'
exit $((failures > 0))
