"""Figures of the simulator: speed-ups that `plan --cluster` predicts of FlexSP's set-ups, beside the published ones."""
import collections
import statistics

from figures_lib.measure import ROOT, SHOAL, Options, notes, run_json, within

EXAMPLES = ROOT / "examples/flexsp_paper"
STAND_IN = EXAMPLES / "commoncrawl_stand_in.csv"
GOAL = 0.15
MODELS = ("7b", "13b", "30b")
CONTEXTS = (64, 128, 192, 256, 384)  # thousand tokens


def predictions(name, seed, *flags):
    return run_json([SHOAL, "plan", "--cluster", EXAMPLES / f"{name}.textproto", "--json", f"--seed={seed}", *flags])["predictions"]


def step(prediction, planner):
    return statistics.mean(prediction["planners"][planner]["seconds"])


def ratio(prediction, slow, fast):
    return step(prediction, slow) / step(prediction, fast)


def shares(prediction, planner):
    """What a step is spent on, in percent, for rows that miss."""
    terms = prediction["planners"][planner]["terms"]
    spent = sum(terms.values())
    return f"{planner} {spent:.2f} s: " + ", ".join(f"{name} {100 * terms[name] / spent:.0f} %" for name in ("quadratic", "linear", "exchange", "fixed", "idle"))


def best(all_of, slow, fast):
    """The largest ratio, and the prediction that has it."""
    return max(((ratio(p, slow, fast), p) for p in all_of), key=lambda pair: pair[0])


# One speed-up of one seed: `planners` are those whose steps are shown, as `prediction` has them, where it misses.
SpeedUp = collections.namedtuple("SpeedUp", "name published predicted prediction planners note")


def speed_ups(seed):
    # sort_and_chunk is the paper's FlexSP, static its DeepSpeed, per_batch its BatchAda. Published are only the largest speed-ups.
    pipeline = ("static", "sort_and_chunk")
    found = []
    main = [predictions(f"{model}_{kilo}k", seed)[0] for model in MODELS for kilo in (192, 384)]
    for name, published, slow, fast in (("static", 1.72, *pipeline), ("per_batch", 1.42, "per_batch", "sort_and_chunk"), ("batch_ada", 1.34, "static", "per_batch")):
        found.append(SpeedUp(name, published, *best(main, slow, fast), (slow, fast), f"{slow} over {fast}, Wikipedia lengths, largest of 6 set-ups"))
    scaling = predictions("7b_128k_scaling", seed, "--lengths", STAND_IN, "--ranks=16,32,64")
    found.append(SpeedUp("scaling", 1.48, *best(scaling, *pipeline), pipeline, "128K, stand-in of CommonCrawl, largest of 16, 32 and 64 ranks"))
    for small, large, published in ((scaling[0], scaling[1], 1.91), (scaling[1], scaling[2], 1.82)):
        predicted = step(small, "sort_and_chunk") / step(large, "sort_and_chunk") * statistics.mean(large["tokens"]) / statistics.mean(small["tokens"])
        found.append(SpeedUp(f"{small['ranks']}_to_{large['ranks']}", published, predicted, large, ("sort_and_chunk",), f"tokens/s of sort_and_chunk; limits of {small['longest']} and {large['longest']} tokens"))
    contexts = [predictions("7b_384k", seed, "--lengths", STAND_IN, f"--max-tokens={kilo * 1024}", "--set", f"model.learned_positions={kilo * 1024}")[0] for kilo in CONTEXTS]
    over = [ratio(p, *pipeline) for p in contexts]
    for name, pick, published in (("contexts_least", min, 1.42), ("contexts_most", max, 1.51)):
        at = over.index(pick(over))
        found.append(SpeedUp(name, published, over[at], contexts[at], pipeline, f"stand-in of CommonCrawl, the {name.split('_')[1]} of {', '.join(f'{k}K' for k in CONTEXTS)}"))
    found.append(SpeedUp("case_study", 1.54, over[-1], contexts[-1], pipeline, "stand-in of CommonCrawl, 384K, mean of 40 batches; the paper shows two"))
    return found


def sequence_simulator():
    """Speed-ups predicted of the FlexSP paper's set-ups (64 A100; 7B, 13B, 30B; 192K, 384K) beside the published ones, term by term where they differ."""
    rows = []
    for seeds in zip(*(speed_ups(seed) for seed in range(1, Options.repeats + 1))):
        one = seeds[0]
        ratios = [s.predicted / s.published for s in seeds]
        misses = abs(statistics.median(ratios) - 1) > GOAL
        terms = [shares(one.prediction, planner) for planner in one.planners] if misses else []
        rows.append(within(f"sequence_simulator_{one.name}", f"{statistics.median(s.predicted for s in seeds):.2f}x", f"{one.published:.2f}x", ratios, GOAL, notes(one.note, *terms)))
    return rows
