"""Figures of sequences spread over ranks: real steps on the virtual cluster, what one rank pays, memory of attention."""
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from figures_lib.measure import ENV, ROOT, SHOAL, Options, at_least, at_most, at_most_paired, notes, row, run, run_json, spelled
from figures_lib.studies import perl_entries

NODES, RANKS_PER_NODE, RATE = 4, 2, "1gbit"
WARMUP = 4  # steps until the costs follow what was measured
JOB = ROOT / "examples/longtail_sp/job.textproto"


@contextlib.contextmanager
def cluster():
    """The virtual cluster; yields a function that runs a command on all of its ranks."""
    tool = str(ROOT / "launch" / "virtual-cluster")
    up = subprocess.run([tool, "up", f"--nodes={NODES}", f"--ranks_per_node={RANKS_PER_NODE}", f"--rate={RATE}"], capture_output=True, text=True, env=ENV)
    if up.returncode != 0:
        sys.exit(f"{tool} up exited {up.returncode}\n{up.stdout}{up.stderr}")
    try:
        yield lambda command: run([tool, "run", "--", *command])
    finally:
        subprocess.run([tool, "down"], capture_output=True, env=ENV, check=True)


def steps_of(on_all, planner, steps, plans=None):
    """metrics.jsonl of a run by this planner, a dictionary a step. Its plans, as lines to replay, are put into the list `plans`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [SHOAL, "train", JOB, "--run_dir", f"{folder}/run", "--set", f"duration={{ steps: {steps} }}", "--set", f"parallel.sequence={{ {planner} }}",
                   "--set", "eval={ max_tokens: 4096 }", "--set", "optim.schedule.warmup={ steps: 2 }", "--set", "log={ tensorboard: false }"]
        on_all(command)
        if plans is not None:
            plans += (pathlib.Path(folder) / "run/plans/sequences.jsonl").read_text().splitlines()
        return [json.loads(line) for line in (pathlib.Path(folder) / "run/metrics.jsonl").read_text().splitlines()]


PLANNERS = dict(flexsp='planner: "flexsp"', static_8='planner: "static" degree: 8', per_batch='planner: "per_batch"', sort_and_chunk='planner: "sort_and_chunk"',
                greedy='planner: "greedy"', in_order='planner: "in_order"')


IN_TURN = ("flexsp", "static_8", "greedy")


def in_turn(on_all, plans):
    """{planner: seconds of the same steps} by the plans of IN_TURN, which as many runs replay in turn: step by step one's, then the next one's, so
    that a machine whose speed drifts is as fast for all. Steps that fitted the costs count for none."""
    totals = dict.fromkeys(IN_TURN, 0.0)
    steps = len(plans[IN_TURN[0]])
    with tempfile.TemporaryDirectory() as folder:
        replay = pathlib.Path(folder) / "plans.jsonl"
        for begins in range(len(IN_TURN)):
            of_step = [IN_TURN[(begins + s) % len(IN_TURN)] for s in range(steps)]
            replay.write_text("".join(plans[name][s] + "\n" for s, name in enumerate(of_step)))
            for name, step in list(zip(of_step, steps_of(on_all, f'planner: "flexsp" replay: "{replay}"', steps)))[WARMUP:]:
                totals[name] += step["seconds"]
    return totals


def longtail_sp():
    """Steps of examples/longtail_sp on 4 nodes x 2 ranks at 1 Gbit/s: flexsp's plans in turn with static and greedy ones; by every planner; predictions."""
    perl_entries()
    steps = WARMUP + 7
    found, turns = [], []
    with cluster() as on_all:
        for repeat in range(Options.repeats):
            # Forth and back: the machine's speed drifts by more than planners differ.
            order = list(PLANNERS) if repeat % 2 == 0 else list(reversed(PLANNERS))
            plans = {name: [] for name in PLANNERS}
            found.append({name: steps_of(on_all, PLANNERS[name], steps, plans[name]) for name in order})
            turns.append(in_turn(on_all, plans))
    times = {name: [sum(s["seconds"] for s in one[name][WARMUP:]) for one in found] for name in PLANNERS}

    def spell(name):
        return spelled((t / (steps - WARMUP) for t in times[name]), "{:.3f}", "s a step")

    def spell_turns(name):
        return spelled((turn[name] / (steps - WARMUP) for turn in turns), "{:.3f}", "s a step")
    def predicted(name):
        """Seconds of a step by the costs that its own run had fitted until then; one run after the other."""
        return statistics.mean(s["plan_predicted_seconds"] for one in found for s in one[name][WARMUP:])
    rows = [at_least("longtail_sp_over_static", spell_turns("flexsp"), spell_turns("static_8"), [turn["static_8"] / turn["flexsp"] for turn in turns], 1.3,
                     notes("degree 8, the only one that holds the longest sequence; steps in turn",
                           f"predicted {predicted('static_8') / predicted('flexsp'):.2f}x ({predicted('flexsp'):.2f} and {predicted('static_8'):.2f} s a step)")),
            row("longtail_sp_over_greedy", spell_turns("flexsp"), spell_turns("greedy"), [turn["greedy"] / turn["flexsp"] for turn in turns], "reported", True,
                "steps in turn")]
    for name in ("static_8", "per_batch", "sort_and_chunk", "greedy", "in_order"):
        ratios = [other / ours for other, ours in zip(times[name], times["flexsp"])]
        rows.append(row(f"longtail_sp_run_over_{name}", spell("flexsp"), spell(name), ratios, "reported", True,
                        notes("one run after the other", f"predicted {predicted(name) / predicted('flexsp'):.2f}x")))
    losses = [max(abs(s["loss"] - f["loss"]) / f["loss"] for s, f in zip(one[name], one["flexsp"])) for one in found for name in PLANNERS]
    rows.append(row("longtail_sp_losses", f"{max(losses):.2%} apart at most", "flexsp", [], "<= 1%", max(losses) <= 0.01, "training loss of each step, all planners"))
    exposed = [sum(s["plan_exposed_seconds"] for s in one["flexsp"][WARMUP:]) / times["flexsp"][i] for i, one in enumerate(found)]
    exchanged = [sum(s["plan_exchange_seconds"] for s in one["flexsp"][WARMUP:]) / times["flexsp"][i] for i, one in enumerate(found)]
    rows.append(row("longtail_sp_plan_exposed", spelled((100 * e for e in exposed), "{:.3f}", "% of the step"), "-", [], "<= 0.1%",
                    statistics.median(exposed) <= 0.001, f"broadcast and agreement take {statistics.median(exchanged):.2%} besides"))
    for name in ("flexsp", "static_8", "in_order"):
        off = sorted(abs(s["plan_predicted_seconds"] - s["seconds"]) / s["seconds"] for one in found for s in one[name][WARMUP:])
        middle, high = statistics.median(off), off[int(0.95 * (len(off) - 1))]
        rows.append(row(f"longtail_sp_prediction_{name}", f"median {middle:.1%}, 95th percentile {high:.1%}", "measured", [], "<= 10%, <= 25%",
                        middle <= 0.10 and high <= 0.25, f"{len(off)} steps" + (", deliberately unbalanced" if name == "in_order" else "")))
    return rows


def sequence_one_rank():
    """A step on one rank with parallel.sequence against one without: the same micro-batches, all of degree 1; interleaved pairs."""
    perl_entries()
    common = ["--threads=1", "--steps=200", "--warmup=2", "--set", "data.max_tokens=1024", "--set", "global_batch={ sequences: 8 }",
              "--set", "micro_batch={ tokens: 8192 }", "--set", "data.held_out=0", "--set", "eval={}"]
    result = run_json([SHOAL, "bench", "sequence_pairs", JOB, *common])
    on, off = result["on"], result["off"]
    return [at_most_paired("sequence_one_rank", spelled((1e3 * s for s in on), "{:.1f}", "ms"), spelled((1e3 * s for s in off), "{:.1f}", "ms without"), on, off, 1.01)]


def sequence_memory():
    """Peak activation memory of a rank of attention on 32k tokens, 8 thread ranks against one rank, by mode; measured in the step's arena."""
    result = run_json([SHOAL, "bench", "sequence_memory", "--tokens=32768"])
    rows = []
    for mode, bytes_of_rank in result["rank_bytes"].items():
        ratio = bytes_of_rank / (result["one_rank_bytes"] / result["ranks"])
        rows.append(at_most(f"sequence_memory_{mode}", f"{bytes_of_rank / 2**20:.1f} MiB", f"{result['one_rank_bytes'] / 2**20:.1f} MiB / {result['ranks']}", [ratio], 1.1,
                            f"{result['tokens']} tokens, width {result['width']}, {result['heads']} heads"))
    return rows
