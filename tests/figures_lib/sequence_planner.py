"""Figures of sequence planning, offline: plan times, certified gaps, and predicted steps against the baselines."""
import math
import os
import pathlib
import statistics
import tempfile

from figures_lib.measure import ROOT, SHOAL, Options, at_least, lasts_at_most, notes, row, run_json

# Lengths that the rows are about; where the file lies elsewhere, SHOAL_LENGTHS names it.
QUANTILES = pathlib.Path(os.environ.get("SHOAL_LENGTHS", ROOT.parent / "shared/data/wikipedia_length_quantiles.csv"))
BATCHES = 40
# Lengths, ranks, longest sequence, global batch, goal of the gap after the linear programs (None: shown only).
INLINE = 0.07  # largest gap by quick bounds, which a step shows
GAPS = (("wikipedia", 64, 384, 512, 0.03), ("wikipedia", 32, 128, 256, 0.035), ("wikipedia", 16, 64, 128, 0.015), ("wikipedia", 8, 32, 128, 0.015),
        ("heavy", 64, 384, 512, None), ("heavy", 16, 64, 128, None), ("mild", 64, 384, 512, None))
# Median and sigma of lognormal lengths: a heavy tail, and one about as light as short-document corpora have.
LOGNORMAL = dict(heavy=(1500, 1.6), mild=(700, 1.0))
QUANTILE_STEPS = 2000
BASELINES = dict(static=1.75, per_batch=1.4, sort_and_chunk=1.04, greedy=1.1)


def lengths_file(name, folder):
    """Quantiles of these lengths."""
    if name == "wikipedia":
        return QUANTILES
    median, sigma = LOGNORMAL[name]
    path = pathlib.Path(folder) / f"{name}.csv"
    probabilities = [(i + 0.5) / QUANTILE_STEPS for i in range(QUANTILE_STEPS)] + [1 - 10 ** -k for k in (4, 5, 6)]
    tokens = [max(1, round(median * math.exp(sigma * statistics.NormalDist().inv_cdf(p)))) for p in probabilities]
    path.write_text("probability,tokens\n" + "".join(f"{p:.8f},{t}\n" for p, t in zip(probabilities, tokens)))
    return path


def plan(lengths, ranks, kilo_tokens, batch, seed, *flags):
    return run_json([SHOAL, "plan", "--lengths", lengths, f"--ranks={ranks}", f"--batch={batch}", f"--batches={BATCHES}",
                     f"--max-tokens={kilo_tokens * 1024}", f"--seed={seed}", "--model=7b", "--json", *flags])


def times_and_steps(repeats):
    """Rows of the largest Wikipedia case: how long planners and bounds take, and predicted steps of the baselines."""
    planners = [r["planners"] for r in repeats]
    rows = []
    for name, limit in (("tier0", 0.020), ("flexsp", 0.150)):
        seconds = [t for p in planners for t in p[name]["plan_seconds"]]
        rows.append(lasts_at_most(f"sequence_plan_{name}", seconds, limit, f"512 sequences on 64 ranks, slowest {1e3 * max(seconds):.0f} ms"))
    bounds = [t for r in repeats for t in r["bound_seconds"]]
    if bounds:
        rows.append(lasts_at_most("sequence_bound_lp", bounds, 0.250, f"one thread, slowest {1e3 * max(bounds):.0f} ms"))
    ours = statistics.mean(s for p in planners for s in p["flexsp"]["seconds"])
    for name, least in BASELINES.items():
        theirs = statistics.mean(s for p in planners for s in p[name]["seconds"])
        ratios = [statistics.mean(b / a for a, b in zip(p["flexsp"]["seconds"], p[name]["seconds"])) for p in planners]
        rows.append(at_least(f"sequence_step_{name}", f"{ours:.2f} s", f"{theirs:.2f} s", ratios, least, "predicted, not measured"))
    return rows


def gap_row(lengths, ranks, kilo_tokens, batch, goal, repeats):
    """Gaps as a step sees them (quick bounds), with linear programs, and of the longer search's plan."""
    inline = statistics.mean(g for r in repeats for g in r["planners"]["flexsp"]["quick_gap"])
    area_alone = statistics.mean(g for r in repeats for g in r["planners"]["flexsp"]["area_gap"])
    what = notes(f"{kilo_tokens}K limit, {BATCHES} batches of {batch} for each of {len(repeats)} seeds", f"{area_alone:.2%} to LB1 alone")
    unknown = sum(r["bound_errors"] for r in repeats)
    name = f"sequence_gap_{lengths}_{ranks}"
    if not repeats[0]["solver"] or unknown:
        return row(name, f"{inline:.2%}", "quick bound", [], f"<= {goal:.2%}" if goal else "-", "no CLP" if unknown == 0 else False,
                   notes(what, f"{unknown} gaps unknown" if unknown else "built without CLP"))
    lp = [statistics.mean(r["planners"]["flexsp"]["gap"]) for r in repeats]
    searched = statistics.mean(g for r in repeats for g in r["planners"]["flexsp_x10"]["gap"])
    worst = max(g for r in repeats for g in r["planners"]["flexsp"]["gap"])
    return row(name, f"{inline:.2%} inline, {statistics.mean(lp):.2%} with linear programs, {searched:.2%} with ten times the search", "bound",
               [1 + g for g in lp], f"<= {INLINE:.0%} inline, {goal:.2%}" if goal else "-",
               "-" if goal is None else inline <= INLINE and statistics.mean(lp) <= goal, notes(what, f"worst batch {worst:.1%}"))


def many_ranks():
    """Tier 0 of 8,192 sequences on 1,024 ranks."""
    batches = 5
    repeats = [run_json([SHOAL, "plan", "--lengths", QUANTILES, "--ranks=1024", "--batch=8192", f"--batches={batches}", "--max-tokens=393216", f"--seed={seed}",
                         "--model=7b", "--planner=tier0", "--bound=quick", "--json"]) for seed in range(1, Options.repeats + 1)]
    seconds = [t for r in repeats for t in r["planners"]["tier0"]["plan_seconds"]]
    return lasts_at_most("sequence_plan_tier0_1024", seconds, 0.400, f"8,192 sequences on 1,024 ranks, {len(seconds)} batches, slowest {1e3 * max(seconds):.0f} ms")


def sequence_planner():
    """Plans of Wikipedia-like and lognormal lengths, constants of GPT-7B on A100: times of planners and bounds, certified gaps, predicted steps of the baselines."""
    if not QUANTILES.exists():
        return [row("sequence_planner", "-", f"{QUANTILES} is missing", [], "-", None)]
    bound = "search" if plan(QUANTILES, 8, 32, 8, 1, "--bound=quick")["solver"] else "quick"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for lengths, ranks, kilo_tokens, batch, goal in GAPS:
            path = lengths_file(lengths, folder)
            repeats = [plan(path, ranks, kilo_tokens, batch, seed, f"--bound={bound}") for seed in range(1, Options.repeats + 1)]
            if (lengths, ranks) == ("wikipedia", 64):
                rows += times_and_steps(repeats)
            rows.append(gap_row(lengths, ranks, kilo_tokens, batch, goal, repeats))
    return [*rows, many_ranks()]
