"""Figures of sequence planning, offline: plan times, certified gaps, and predicted steps against the baselines."""
import os
import pathlib
import statistics

from figures_lib.measure import ROOT, SHOAL, Options, at_least, lasts_at_most, notes, row, run_json

# Lengths that the rows are about; where the file lies elsewhere, SHOAL_LENGTHS names it.
QUANTILES = pathlib.Path(os.environ.get("SHOAL_LENGTHS", ROOT.parent / "shared/data/wikipedia_length_quantiles.csv"))
BATCHES = 40
# Ranks, longest sequence, global batch, goal of the gap.
GAPS = ((64, 384, 512, 0.07), (32, 128, 256, 0.035), (16, 64, 128, 0.015))
BASELINES = dict(static=1.75, per_batch=1.4, sort_and_chunk=1.04, greedy=1.1)


def plan(ranks, kilo_tokens, batch, seed=1):
    return run_json([SHOAL, "plan", "--lengths", QUANTILES, f"--ranks={ranks}", f"--batch={batch}", f"--batches={BATCHES}",
                     f"--max-tokens={kilo_tokens * 1024}", f"--seed={seed}", "--model=7b", "--json"])


def sequence_planner():
    """Plans of Wikipedia-like lengths, constants of GPT-7B on A100: times of tier 0 and 1, gaps to the bound, predicted steps of the baselines."""
    if not QUANTILES.exists():
        return [row("sequence_planner", "-", f"{QUANTILES} is missing", [], "-", None)]
    rows = []
    for ranks, kilo_tokens, batch, goal in GAPS:
        repeats = [plan(ranks, kilo_tokens, batch, seed) for seed in range(1, Options.repeats + 1)]
        planners = [r["planners"] for r in repeats]
        gaps = [statistics.mean(p["flexsp"]["gap"]) for p in planners]
        worst = max(max(p["flexsp"]["gap"]) for p in planners)
        area_alone = statistics.mean(statistics.mean(p["flexsp"]["area_gap"]) for p in planners)
        if ranks == 64:
            for name, limit in (("tier0", 0.020), ("flexsp", 0.150)):
                seconds = [t for p in planners for t in p[name]["plan_seconds"]]
                rows.append(lasts_at_most(f"sequence_plan_{name}", seconds, limit, f"512 sequences on 64 ranks, slowest {1e3 * max(seconds):.0f} ms"))
            ours = statistics.mean(s for p in planners for s in p["flexsp"]["seconds"])
            for name, least in BASELINES.items():
                theirs = statistics.mean(s for p in planners for s in p[name]["seconds"])
                ratios = [statistics.mean(b / a for a, b in zip(p["flexsp"]["seconds"], p[name]["seconds"])) for p in planners]
                rows.append(at_least(f"sequence_step_{name}", f"{ours:.2f} s", f"{theirs:.2f} s", ratios, least, "predicted, not measured"))
        rows.append(row(f"sequence_gap_{ranks}", f"{statistics.mean(gaps):.2%}", "bound", [1 + g for g in gaps], f"<= {goal:.2%}",
                        statistics.mean(gaps) <= goal, notes(f"{kilo_tokens}K limit, {BATCHES} batches of {batch} for each of {len(gaps)} seeds", f"worst {worst:.1%}", f"{area_alone:.2%} to LB1 alone")))
    return rows
