#!/usr/bin/env bash
# The built program from outside: exit codes and messages of the contract. Argument: the program.
set -uo pipefail
shoal=$1
examples=$(cd "$(dirname "$0")/../../examples" && pwd)
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
for command in doctor calibrate validate plan train eval sample data launch experiment convert stop inspect diff report why-hang bench; do
  check "help lists $command" 0 "  $command " "$shoal" --help
done
check "unknown command" 2 "" "$shoal" trian
check "doctor" 0 "instruction set" "$shoal" doctor
check "missing job" 2 "none.textproto" "$shoal" validate "$work/none.textproto"
echo 'model { transformer { layers: 1 width: 16 heads: 2 } } data { dataset { path: "'"$work"'/d" } max_tokens: 32 } global_batch { tokens: 64 } duration { steps: 2 }' >"$work/job"
check "valid" 0 "is valid" "$shoal" validate "$work/job"
check "several errors" 2 "did you mean 'layers'" "$shoal" validate "$work/job" --set model.transformer.layrs=3
check "cuda" 2 "this build has no CUDA back end" "$shoal" validate "$work/job" --set runtime.device=CUDA
# wrong NAME TEXT FIELD=VALUE...: such a job ends with 2 and says TEXT.
wrong() {
  local name=$1 text=$2 sets=()
  shift 2
  for set in "$@"; do sets+=(--set "$set"); done
  check "$name" 2 "$text" "$shoal" validate "$work/job" "${sets[@]}"
}
wrong "two optimizers" "exclude each other" 'optim={ adamw {} sgd {} }'
wrong "another optimizer's field" "unknown field 'optim.sgd.beta1'; it takes: momentum" 'optim.sgd={ beta1: 0.9 }'
wrong "an option out of range" "optim.adamw.beta1 is 2; it lies in [0, 1)" 'optim.adamw={ beta1: 2 }'
wrong "a group that nothing falls to" "optim.group.match 'layer9' matches no parameter; there are tokens.weight, " 'optim.group={ match: "layer9" }'
wrong "a group without a match" "optim.group has no match" 'optim.group={ weight_decay: 0.1 }'
wrong "a group that is no regular expression" "'(' is no regular expression" 'optim.group={ match: "(" }'
wrong "AdamW adapts nothing" "optim.group.adapt does not apply to AdamW" 'optim.group={ match: "norm" adapt: true }'
wrong "SGD has no epsilon" "optim.group.epsilon does not apply to SGD" optim.sgd={} 'optim.group={ match: "norm" epsilon: 1e-6 }'
wrong "SGD has no width rule" "optim.width_rule does not apply to SGD" optim.sgd={} 'optim.width_rule={ base_width: 8 }'
wrong "LARS has no time scales" "optim.reference_batch does not apply to LARS" optim.lars={} 'optim.reference_batch={ tokens: 64 }'
wrong "AdaGrad-Norm has no moments" "optim.moments: BF16 does not apply to AdaGrad-Norm" optim.adagrad_norm={} optim.moments=BF16
wrong "Muon of vectors" "which Muon updates without it" optim.muon={} 'optim.group={ match: "norm" update: MUON }'
wrong "a split of nothing" "optim.muon.split.match 'layer9' matches no matrix" 'optim.muon={ split { match: "layer9" rows: 3 } }'
wrong "a split of other rows" "sum up to 3, but 'blocks.0.attention.q.weight' has 16 rows" 'optim.muon={ split { match: "attention.q" rows: 3 } }'
wrong "a noise group of nothing" "optim.muon.noise_adaptive.group 'layer9' matches no matrix" 'optim.muon={ noise_adaptive { group: "layer9" } }'
check "missing data" 3 "shoal data build" "$shoal" train "$work/job" --run_dir "$work/run0"
check "state of a failed run" 0 "failed: " cat "$work/run0/state"
mkdir "$work/texts"
for i in 1 2 3 4; do seq 1 $((i * 20)) >"$work/texts/$i.txt"; done
check "data build" 0 "4 documents" "$shoal" data build --out "$work/d" "$work/texts"
check "data info" 0 "4 documents" "$shoal" data info "$work/d"
check "plan" 0 "optimizer state" "$shoal" plan "$work/job" --ranks 4
printf '100\n4000\n\n# a comment\n20000\n' >"$work/lengths"
check "sequence plans" 0 "greedy " "$shoal" plan --lengths "$work/lengths" --ranks 64
check "what they assume" 0 "5949 tokens a rank" "$shoal" plan --lengths "$work/lengths" --ranks 64
check "one planner, one plan" 0 "first step by tier0: <" "$shoal" plan --lengths "$work/lengths" --ranks 14 --model 7b --max-tokens 20000 --planner tier0 --explain
check "as JSON" 0 '"plan_seconds"' "$shoal" plan --lengths "$work/lengths" --ranks 64 --batch 2 --json
check "sequence plans of a dataset" 0 "1 batches of 4 of its documents" "$shoal" plan --lengths "$work/d" --ranks 16
printf 'probability,tokens\n0,10\n0.5,300\n1,90000\n' >"$work/quantiles.csv"
check "sequence plans of quantiles" 0 "2 batches of 64, sampled" "$shoal" plan --lengths "$work/quantiles.csv" --ranks 16 --batch 64 --batches 2
check "no static degree for 14 ranks" 0 "static: no degree that divides 14 ranks (2 at most)" "$shoal" plan --lengths "$work/lengths" --ranks 14 --max-tokens 20000
check "an over-long sequence" 2 "lengths:5: sequence 2 has 20000 tokens" "$shoal" plan --lengths "$work/lengths" --ranks 7
check "its bytes" 2 "Its activations need 87.5 GiB and the group has " "$shoal" plan --lengths "$work/lengths" --ranks 7
check "no ranks" 2 "not in range 1 to 1048576" "$shoal" plan --lengths "$work/lengths" --ranks 0
check "a degree of another planner" 2 "--degree is of planner static; planner flexsp chooses degrees itself" "$shoal" plan --lengths "$work/lengths" --ranks 64 --planner flexsp --degree 4
check "a model that does not fit" 2 "take at least" "$shoal" plan --lengths "$work/lengths" --ranks 2 --model 30b
check "an unknown model" 2 "there are 7b, 13b and 30b" "$shoal" plan --lengths "$work/lengths" --ranks 64 --model 70b
check "an unknown planner" 2 "did you mean 'greedy'" "$shoal" plan --lengths "$work/lengths" --ranks 64 --planner gredy
check "a line that is no length" 3 "bad:2: 'x7' is no number of tokens" bash -c "printf '5\nx7\n' >$work/bad; $shoal plan --lengths $work/bad --ranks 64"
check "a length of nothing" 3 "bad:1: a length of 0 tokens" bash -c "echo 0 >$work/bad; $shoal plan --lengths $work/bad --ranks 64"
check "quantiles that fall" 3 "bad:3: quantiles ascend" bash -c "printf 'probability,tokens\n0.5,9\n0.4,10\n' >$work/bad; $shoal plan --lengths $work/bad --ranks 64"
check "quantiles of longer sequences" 2 "no sequence is as short as 5 tokens" "$shoal" plan --lengths "$work/quantiles.csv" --ranks 64 --max-tokens 5
check "the order of a plan" 0 "ranks   8-11" "$shoal" plan --lengths "$work/lengths" --ranks 14 --max-tokens 20000 --explain
check "quick bounds" 0 "quick bounds" "$shoal" plan --lengths "$work/lengths" --ranks 64 --bound quick
check "a bound that there is not" 2 "--bound" "$shoal" plan --lengths "$work/lengths" --ranks 64 --bound ilp
check "bounds of a job" 2 "--bound" "$shoal" plan "$work/job" --ranks 4 --bound lp
if "$shoal" doctor | grep -q "linear programs *CLP"; then
  check "bounds by linear programs" 0 "ms a batch; CLP" "$shoal" plan --lengths "$work/lengths" --ranks 64
  check "what they are" 0 "linear programs 0." "$shoal" plan --lengths "$work/lengths" --ranks 64 --explain
  check "a longer search" 0 "flexsp_x10 " "$shoal" plan --lengths "$work/lengths" --ranks 64 --bound search
  check "bounds as JSON" 0 '"bound_errors":0' "$shoal" plan --lengths "$work/lengths" --ranks 64 --json
else
  check "no linear programs" 0 "quick bounds; built without CLP" "$shoal" plan --lengths "$work/lengths" --ranks 64
  check "what to install" 2 "install coinor-libclp-dev" "$shoal" plan --lengths "$work/lengths" --ranks 64 --bound lp
fi
check "no lengths" 3 "has no lengths" bash -c "echo '#' >$work/bad; $shoal plan --lengths $work/bad --ranks 64"
check "no such file of lengths" 3 "none" "$shoal" plan --lengths "$work/none" --ranks 64
check "a job or lengths" 2 "job, or --lengths FILE," "$shoal" plan --ranks 4
check "not both" 2 "excludes" "$shoal" plan "$work/job" --lengths "$work/lengths" --ranks 4
check "a flag of sequence plans" 2 "--explain" "$shoal" plan "$work/job" --explain
check "several ranks of a job" 2 "of a cluster only" "$shoal" plan "$work/job" --ranks 2,4
sed 's/nodes: 8/nodes: 1/; s/"wikipedia_lengths.csv"/"quantiles.csv"/' "$examples/flexsp_paper/7b_192k.textproto" >"$work/cluster"
check "a cluster" 0 "published with FlexSP (arXiv 2412.01523, its code's profile of GPT-7B), not measured here" "$shoal" plan --cluster "$work/cluster" --batches 2
check "several sizes of it" 0 "16 ranks, 2 nodes (more than the file has)" "$shoal" plan --cluster "$work/cluster" --batches 1 --ranks 8,16
check "one degree of it" 0 "static " "$shoal" plan --cluster "$work/cluster" --batches 1 --planner static --degree 8
check "a degree that is none" 2 "--degree is 3; degrees are powers of two" "$shoal" plan --cluster "$work/cluster" --batches 1 --planner static --degree 3
check "a degree above the ranks" 2 "static: degree 64 does not divide 8 ranks" "$shoal" plan --cluster "$work/cluster" --batches 1 --planner static --degree 64
check "what steps are spent on" 0 "all-to-all" "$shoal" plan --cluster "$work/cluster" --batches 1 --explain
check "a cluster as JSON" 0 '"terms":{"exchange"' "$shoal" plan --cluster "$work/cluster" --batches 1 --json
check "other lengths" 0 "lengths: 1 batches of 3" "$shoal" plan --cluster "$work/cluster" --lengths "$work/lengths" --set lengths.sequences=3 --batches 1
check "sequences by ranks" 0 "1 batches of 1024" "$shoal" plan --cluster "$work/cluster" --batches 1 --ranks 16 --set lengths.scaling=WITH_RANKS
check "a plot over ranks" 0 "" "$shoal" plan --cluster "$work/cluster" --batches 1 --ranks 8,16 --plot "$work/rates.svg"
check "that is there" 0 "predicted tokens per second" cat "$work/rates.svg"
check "a plot of one size" 2 "give --ranks several numbers" "$shoal" plan --cluster "$work/cluster" --batches 1 --plot "$work/rates.svg"
check "no such cluster" 2 "cluster file" "$shoal" plan --cluster "$work/none"
check "a cluster's unknown field" 2 "did you mean 'intra_gb_per_s'" bash -c "sed 's/intra_gb/intre_gb/' $work/cluster >$work/bad; $shoal plan --cluster $work/bad"
check "a bandwidth below 0" 2 "bad:18:3: links.intra_gb_per_s is -300; it is above 0" bash -c "sed 's/intra_gb_per_s: 300/intra_gb_per_s: -300/' $work/cluster >$work/bad; $shoal plan --cluster $work/bad"
check "half a node" 2 "12 ranks are no whole number of nodes of 8; nearest valid: 8 or 16" "$shoal" plan --cluster "$work/cluster" --ranks 12
check "a sequence that fits nowhere" 2 "long:2: sequence 1 has 300000 tokens" bash -c "printf '5\n300000\n' >$work/long; $shoal plan --cluster $work/cluster --lengths $work/long"
check "lengths of a cluster that are none" 3 "long:2: 'x' is no number of tokens" bash -c "printf '5\nx\n' >$work/long; $shoal plan --cluster $work/cluster --lengths $work/long"
check "states that do not fit" 2 "take at least" "$shoal" plan --cluster "$work/cluster" --set model.layers=100
check "a cluster has constants of its own" 2 "excludes" "$shoal" plan --cluster "$work/cluster" --model 7b
check "a cluster's planner" 2 "did you mean 'greedy'" "$shoal" plan --cluster "$work/cluster" --planner gredy
check "too little memory" 5 "too little memory on" "$shoal" train "$work/job" --run_dir "$work/huge" --set model.transformer.layers=20000 --set model.transformer.width=8192
check "train" 0 "finished at step 2" "$shoal" train "$work/job" --run_dir "$work/run" --local_ranks=2
check "resume refuses another job" 2 "seed: unset -> 9" "$shoal" train "$work/job" --run-dir "$work/run" --set seed=9
check "resume accepts named fields" 0 "resumed at step 2" "$shoal" train "$work/job" --run_dir "$work/run" --set 'duration={ steps: 3 }' --resume_with duration.steps
check "spectra of a schedule that decays" 0 "no fit with $work/run: its rate is 0.1 of the peak" "$shoal" inspect --spectral "$work/run" "$work/run"
check "another optimizer" 2 "optim.kind: AdamW -> SGD, whose moments only --reset_optimizer starts anew" "$shoal" train "$work/job" --run_dir "$work/run" --set 'duration={ steps: 3 }' --set 'optim={ sgd {} }'
check "another optimizer by its group" 2 "optim.kind: AdamW -> SGD" "$shoal" train "$work/job" --run_dir "$work/run" --set 'duration={ steps: 3 }' --set 'optim={ sgd { nesterov: true } }' --resume_with optim
check "another optimizer with fresh moments" 0 "resumed at step 3" "$shoal" train "$work/job" --run_dir "$work/run" --set 'duration={ steps: 5 }' --set 'optim={ sgd {} learning_rate: 0.01 }' --resume_with duration --reset_optimizer
check "an alias of a field" 2 "data.images is for image models" "$shoal" train "$work/job" --run_dir "$work/run" --skip_bad_images
check "eval" 0 "held-out loss" "$shoal" eval "$work/run"
check "sample" 0 "1" "$shoal" sample "$work/run" --prompt 1 --tokens 5
check "inspect" 0 "tokens.weight" "$shoal" inspect "$work/run"
check "spectra" 0 "rms gain" "$shoal" inspect --spectral "$work/run"
check "diff" 0 "equal bit for bit" "$shoal" diff "$work/run" "$work/run"
check "convert" 0 "holds the weights" "$shoal" convert "$work/run" "$work/w.safetensors"
check "convert to a Hugging Face folder" 0 "holds the weights" "$shoal" convert "$work/run" "$work/hf"
check "convert back" 0 "initial_weights: " "$shoal" convert "$work/hf" "$work/back.safetensors"
check "there and back changes nothing" 0 "" cmp "$work/w.safetensors" "$work/back.safetensors"
check "report" 0 "report.html" "$shoal" report "$work/run"
check "why-hang" 0 "nothing hangs" "$shoal" why-hang "$work/run"
check "stop of a finished run" 2 "is not running" "$shoal" stop "$work/run"
check "launch prints" 0 "--map-by slot:PE=4 " "$shoal" launch "$work/job" --ranks 2 --threads 4 --print
check "launch for Slurm" 0 "--signal=B:USR1@120" "$shoal" launch "$work/job" --ranks 8 --slurm
check "bench of factors" 0 '"rows":64' "$shoal" bench codec --codec powersgd_4 --parameters 4096 --steps 1
check "bench of thread ranks' links" 2 "comm.thread_link_mbit is of thread ranks" "$shoal" bench step "$work/job" --set comm.thread_link_mbit=100
check "bench of factors of no matrix" 2 "take --parameters 1024 or more" "$shoal" bench codec --codec powersgd_32 --parameters 1000
check "initial weights" 0 "finished" "$shoal" train "$work/job" --run_dir "$work/run2" --set model.initial_weights="$work/w.safetensors"
check "initial weights from Hugging Face" 0 "finished" "$shoal" train "$work/job" --run_dir "$work/run5" --set model.initial_weights="$work/hf"
rule='optim.width_rule={ preset: COMPLETE_P base_width: 8 base_depth: 2 base_head_size: 32 }'  # its multipliers are powers of two
check "width rule" 0 "width rule: logits times 0.5, attention scores times 0.7071, residual branches times 2" "$shoal" train "$work/job" --run_dir "$work/wide" --set "$rule" --grad-check 'norm|attention'
check "plan with a width rule" 0 "optimizer state" "$shoal" plan "$work/job" --ranks 4 --set "$rule"
check "multipliers go into Hugging Face weights" 0 "holds the weights" "$shoal" convert "$work/wide" "$work/wide_hf"
check "and come out of them" 0 "finished" "$shoal" train "$work/job" --run_dir "$work/wide2" --set "$rule" --set optim.learning_rate=0 --set model.initial_weights="$work/wide_hf"
check "the same weights" 0 "" cmp <("$shoal" eval "$work/wide" | cut -d: -f2) <("$shoal" eval "$work/wide2" | cut -d: -f2)
check "width rule without a base" 2 "width_rule has no base_width" "$shoal" validate "$work/job" --set 'optim.width_rule={ preset: MUP }'
check "initial weights of another model" 2 "norm_epsilon" "$shoal" train "$work/job" --run_dir "$work/run6" --set model.initial_weights="$work/hf" --set model.transformer.norm_epsilon=1e-3
check "grad check" 0 "gradients against differences" "$shoal" train "$work/job" --run_dir "$work/run10" --grad-check 'attention.q'
check "an allocation about to end" 0 "stopped at step 1" env SLURM_JOB_END_TIME=$(($(date +%s) + 60)) "$shoal" train "$work/job" --run_dir "$work/run7"
check "a named calibration must be there" 3 "no calibration of" "$shoal" train "$work/job" --run_dir "$work/run9" --set runtime.calibration="$work/none.json"
check "planned gradient codes are shown" 0 "planned within 0.5 of the squared error of q5" "$shoal" plan "$work/job" --ranks 2 --set "comm.compression={ mode: LGRECO_BYTES min_elements: 64 }"
check "a rank above the matrix" 2 "at most; take that, or exempt it" "$shoal" validate "$work/job" --set "comm.compression={ mode: UNIFORM codec: \"powersgd_200\" min_elements: 64 }"
check "a budget without a plan" 2 "error_budget is of modes" "$shoal" validate "$work/job" --set "comm.compression={ mode: UNIFORM codec: \"q4\" error_budget: 2 }"
check "truncated data" 3 "truncated" bash -c "head -c 30 $work/d.idx >$work/t.idx; cp $work/d.bin $work/t.bin; $shoal train $work/job --run_dir $work/run3 --set 'data.dataset={ path: \"$work/t\" }'"
check "over-long documents" 3 "document" "$shoal" train "$work/job" --run_dir "$work/run4" --set data.over_long=ERROR
check "averages of weights" 0 "finished" "$shoal" train "$work/job" --run_dir "$work/run11" --set 'optim.ema={ decay: 0.5 }'
check "eval takes the averages" 0 "(averages of weights): held-out loss" "$shoal" eval "$work/run11"
check "eval without them" 0 "00000002: held-out loss" "$shoal" eval "$work/run11" --no_ema
check "convert takes the averages" 0 "(averages of weights)" "$shoal" convert "$work/run11" "$work/ema.safetensors"
check "convert without them" 0 "" "$shoal" convert "$work/run11" "$work/no_ema.safetensors" --no_ema
check "the two differ" 1 "differ" cmp "$work/ema.safetensors" "$work/no_ema.safetensors"
check "plan names them" 0 "averages of weights" "$shoal" plan "$work/job" --set 'optim.ema={ decay: 0.5 }'
check "averages have a horizon" 2 "optim.ema names no horizon" "$shoal" validate "$work/job" --set 'optim.ema={ ramp_up: true }'
growth=(--set 'global_batch={ tokens: 64 }' --set 'duration={ samples: 60 }' --set 'optim.batch_growth={ eta: 0.5 test_every: 1 max { tokens: 512 } }')
check "a growing batch" 0 "the batch grows from 64 to " "$shoal" train "$work/job" --run_dir "$work/run12" --local_ranks=2 "${growth[@]}" --set 'micro_batch={ tokens: 32 }'
check "its report" 0 "" "$shoal" report "$work/run12"
check "its figure" 0 "Growing batch" cat "$work/run12/report.html"
check "growth of one rank needs two micro-batches" 2 "micro_batch is 33 and global_batch 64; take a micro_batch of at most 32, or 2 ranks" "$shoal" train "$work/job" --run_dir "$work/run13" "${growth[@]}" --set 'micro_batch={ tokens: 33 }'
check "growth keeps memory" 2 "write micro_batch" "$shoal" validate "$work/job" "${growth[@]}"
spread=(--set data.max_tokens=128 --set 'global_batch={ sequences: 6 }' --set 'micro_batch={ tokens: 32 }' --set 'model.transformer={ layers: 1 width: 24 heads: 6 }'
  --set 'parallel={ sequence { plans: DETERMINISTIC mode: ULYSSES } }')
check "how heads are shared" 0 "degree 4: 6 heads between 4 ranks, not evenly: up to 2 each" "$shoal" plan "$work/job" --ranks 4 "${spread[@]}"
check "a step of spread sequences" 0 "FLOPs a rank" "$shoal" plan "$work/job" --ranks 4 "${spread[@]}"
first=$("$shoal" plan "$work/job" --ranks 4 "${spread[@]}" | sed -n 's/.*, the longest [0-9]*: \(<.*>\), .*/\1/p')
check "training's first plan is the one that plan shows" 0 "plan ${first:?} " "$shoal" train "$work/job" --run_dir "$work/run14" --local_ranks=4 "${spread[@]}"
sed -i 's/"measured"/"measure"/' "$work/run14/plans/sequences.jsonl"
check "report without what is damaged" 0 "report.html" "$shoal" report "$work/run14"
check "and with a word of it" 0 "2 damaged lines of plans/sequences.jsonl left out." cat "$work/run14/report.html"
echo "$(hostname) $$" >"$work/run/lock"
check "locked run directory" 7 "is in use by process $$" "$shoal" train "$work/job" --run_dir "$work/run"
exit $((failures > 0))
