"""Figures of compressed gradient exchange: the planner, the exchange itself, bytes, quality, and steps on the virtual cluster."""
import contextlib
import functools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

from figures_lib import peers
from figures_lib.measure import BYTELM, ENV, ROOT, SHOAL, Options, at_least, at_most, lasts_at_most, median, notes, row, run, run_json, shoal_job, spelled, step_command
from figures_lib.studies import results_of, sweep_folder, text_data

NODES, SHARE = 4, 0.45
RATES = ("100mbit", "1gbit", "10gbit")
HEAD = "10.213.0.1"  # node 0 of a virtual cluster
PLANNED = ["comm.compression={ mode: LGRECO_TIME warmup_steps: 12 lead_steps: 8 table_steps: 2 replan_every_steps: 200 }"]
PLANNED_WARMUP = 47  # steps until a plan that knows the times of the one before has been looked at again
PLAIN = dict(fp32=[], bf16=['comm.compression={ mode: UNIFORM codec: "bf16" error_feedback: false }'])
CODES = ("q8", "q6", "q5", "ecsq_4", "q4")  # that the plan takes turns with


def planner():
    """Compression plans of 200 layers x 10 options: time with the bound, and distance to the optimum (30, 60 and 200 layers, 20 each)."""
    result = run_json([SHOAL, "bench", "planner", "--steps=20", "--warmup=2"])
    worst = max(result["gaps"])
    return [lasts_at_most("planner_200x10", result["seconds"], 0.010, f"slowest {1e3 * max(result['seconds']):.1f} ms"),
            row("planner_gap", f"{worst:.4%}", "optimum", [1 + gap for gap in result["gaps"]], "<= 0.5%", worst <= 0.005,
                f"of {len(result['gaps'])} instances the worst; printed bound within {max(result['bound_gaps']):.2%}")]


@contextlib.contextmanager
def cluster(rate, nodes=NODES):
    """A virtual cluster; yields a function that runs a command on all of its nodes and returns the last JSON line."""
    tool = str(ROOT / "launch" / "virtual-cluster")
    for _ in range(3):  # `up` measures what it gives, and refuses while a guest's host is busy with others
        up = subprocess.run([tool, "up", f"--nodes={nodes}", "--ranks_per_node=1", f"--rate={rate}", f"--cpu_share={SHARE}"], capture_output=True, text=True, env=ENV)
        if up.returncode == 0:
            break
    else:
        sys.exit(f"{tool} up exited {up.returncode}\n{up.stdout}{up.stderr}")

    def on_all(command):
        done = subprocess.run([tool, "run", "--", *map(str, command)], capture_output=True, text=True, env=ENV)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            sys.exit(f"{' '.join(map(str, command))}\nexited {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return json.loads(lines[-1])
    try:
        yield on_all
    finally:
        subprocess.run([tool, "down"], capture_output=True, env=ENV, check=True)


def exchange():
    """All-reduce of 1, 4 and 16 MB between 4 nodes of the virtual cluster at 1 Gbit/s, against MPI_Allreduce's best algorithm."""
    rows = []
    algorithms = {"as it chooses": [], **{f"algorithm {a}": [f"OMPI_MCA_coll_tuned_allreduce_algorithm={a}", "OMPI_MCA_coll_tuned_use_dynamic_rules=1"]
                                          for a in (3, 4, 5, 6)}}
    with cluster("1gbit") as on_all:
        for megabytes in (1, 4, 16):
            results = {name: [on_all(["env", *env, SHOAL, "bench", "exchange", f"--parameters={megabytes * 250000}", "--steps=9", "--warmup=2"])
                              for _ in range(Options.repeats)] for name, env in algorithms.items()}
            best = min(results, key=lambda name: min(statistics.median(r["mpi_seconds"]) for r in results[name]))
            ratios = [statistics.median(r["mpi_seconds"]) / statistics.median(r["ours_seconds"]) for r in results[best]]
            rows.append(at_least(f"exchange_{megabytes}MB", spelled((1e3 * statistics.median(r["ours_seconds"]) for r in results[best]), "{:.1f}", "ms"),
                                 spelled((1e3 * statistics.median(r["mpi_seconds"]) for r in results[best]), "{:.1f}", "ms"), ratios, 0.95,
                                 f"MPI_Allreduce, {best}"))
    return rows


def shoal_on(on_all, job, sets, steps, *flags, warmup=2):
    return on_all([*step_command(job, threads=1, steps=steps, warmup=warmup, sets=["parallel.zero=0", *sets]), *flags])


def in_turn(on_all, job, cycles):
    """The plan's steps and those of CODES for all layers, in turn, so that a machine whose speed drifts is as fast for all: {name: seconds of its
    steps}, {code: the plan's steps before and after each of its own, over it}, the plan's exposed seconds and those predicted."""
    result = shoal_on(on_all, job, PLANNED, 2 * len(CODES) * cycles, f"--turns={','.join(CODES)}", warmup=PLANNED_WARMUP)
    seconds, turns = result["step_seconds"], result["turns"]
    names = [turn or "lgreco_time" for turn in turns]
    ratios = {code: [(seconds[i - 1] + seconds[i + 1]) / 2 / seconds[i] for i in range(1, len(seconds) - 1) if turns[i] == code] for code in CODES}
    return dict(seconds={name: [s for s, n in zip(seconds, names) if n == name] for name in names}, ratios=ratios,
                exposed=statistics.median(e for e, turn in zip(result["exposed_seconds"], turns) if not turn),
                predicted=statistics.median(result.get("predicted_exposed_seconds", [math.nan])))


def torch_on(on_all, steps, *flags):
    model = [f"--{k}={v}" for k, v in BYTELM.items()]
    return on_all([peers.Peers.python, peers.SCRIPTS / "torch_step.py", *model, "--batch=2", "--tokens=256", "--threads=1", f"--steps={steps}", "--warmup=2",
                   f"--mpi-master={HEAD}", *flags])


def steps_at(rate):
    """Seconds of a step by name, a figure of each repeat; in_turn()'s of each; and what share of its steps bf16 waits for reductions.

    All others run before the plan's steps and again, backwards, after them: what the machine's speed drifts by falls out of their means.
    """
    steps, cycles = (5, 4) if rate == "100mbit" else (12, 20)
    times, planned, waits = {}, [], []
    with cluster(rate) as on_all, tempfile.TemporaryDirectory() as folder:
        job = shoal_job(pathlib.Path(folder), BYTELM, 2 * NODES, 256)
        job.write_text(job.read_text().replace(f"{folder}/data", str(ROOT / "build/data/perl-doc")))
        runs = {name: functools.partial(shoal_on, on_all, job, sets, steps) for name, sets in PLAIN.items()}
        if peers.torch():
            runs |= {"DDP bf16": lambda: torch_on(on_all, steps, "--bf16-hook"), "DDP fp32": lambda: torch_on(on_all, steps)}

        def measured(names):
            results = {}
            for name in names:
                results[name] = runs[name]()
                print(f"# {rate} {name}: {median(results[name]):.3f} s", file=sys.stderr, flush=True)
            return results
        for _ in range(Options.repeats):
            before = measured(runs)
            planned.append(in_turn(on_all, job, cycles))
            after = measured(reversed(runs))
            for name in runs:
                times.setdefault(name, []).append((median(before[name]) + median(after[name])) / 2)
            for name, seconds in planned[-1]["seconds"].items():
                times.setdefault(name, []).append(statistics.median(seconds))
                print(f"# {rate} {name}, in turn: {times[name][-1]:.3f} s", file=sys.stderr, flush=True)
            waits += [statistics.median(half["bf16"]["exposed_seconds"]) / median(half["bf16"]) for half in (before, after)]
    return times, planned, waits


def compression_steps():
    """Steps of the byte-LM, 4 nodes x 2 x 256 tokens on 0.45 cores each, at 0.1, 1 and 10 Gbit/s: codes against ours and DDP; on the Perl manual."""
    text_data()
    goals = {"100mbit": (2.5, 2.5), "1gbit": (1.3, 1.4), "10gbit": (0.98, 1.35)}
    for rate in RATES:
        rows = []
        times, planned, waits = steps_at(rate)

        def spell(name):
            return f"{statistics.median(times[name]):.3f} s"
        ours = times["lgreco_time"]
        all_times = ", ".join(f"{name} {statistics.median(t):.3f}" for name, t in times.items())
        rows.append(at_least(f"steps_{rate}_over_bf16", spell("lgreco_time"), spell("bf16"), [b / o for b, o in zip(times["bf16"], ours)], goals[rate][0],
                             notes(f"{statistics.median(waits):.0%} of the bf16 step is exposed", "seconds: " + all_times)))
        ddp = [min(pair) for pair in zip(times["DDP fp32"], times["DDP bf16"])] if peers.torch() else []
        rows.append(at_least(f"steps_{rate}_over_ddp", spell("lgreco_time"), f"{statistics.median(ddp):.3f} s" if ddp else peers.NO_TORCH,
                             [d / o for d, o in zip(ddp, ours)], goals[rate][1]))
        over = {name: [o / t for o, t in zip(ours, times[name])] for name in PLAIN}
        over |= {code: [statistics.median(one["ratios"][code]) for one in planned] for code in CODES}
        # q4 leaves eight times the plan's budget, which is half of q5's squared error.
        best = max((name for name in over if name != "q4"), key=lambda name: statistics.median(over[name]))
        rows.append(at_most(f"steps_{rate}_never_worse", spell("lgreco_time"), f"{best} {spell(best)}", over[best], 1.02,
                            notes("the plan over others: " + ", ".join(f"{name} {statistics.median(r):.3f}" for name, r in over.items()),
                                  f"of codes the median of {len(planned[0]['ratios'][CODES[0]])} or more steps in turn")))
        measured, predicted = [one["exposed"] for one in planned], [one["predicted"] for one in planned]
        off = [abs(m - p) for m, p in zip(measured, predicted)]
        allowed = [max(0.15 * m, 0.02 * t) for m, t in zip(measured, ours)]
        rows.append(row(f"steps_{rate}_prediction", spelled((1e3 * m for m in measured), "{:.0f}", "ms exposed"),
                        spelled((1e3 * p for p in predicted), "{:.0f}", "ms predicted"), [m / p for m, p in zip(measured, predicted) if p > 0],
                        "within max(15%, 2% of the step)", statistics.median(o / a for o, a in zip(off, allowed)) <= 1))
        yield from rows  # those of a rate are shown before the next is begun


def compression_bytes():
    """Bytes that lgreco_bytes needs at the error of uniform q4 on layers that are coded, GPT and ResNet of examples/compression, in training."""
    text_data()
    rows = []
    for name, file in (("gpt", "job"), ("resnet", "resnet")):
        ratios, texts = [], []
        for seed in range(1, Options.repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                run([SHOAL, "train", ROOT / f"examples/compression/{file}.textproto", "--local_ranks", "2", "--run_dir", f"{folder}/run", "--set", f"seed={seed}",
                     "--set", "comm.compression={ mode: LGRECO_BYTES codec: \"q4\" warmup_steps: 60 replan_every_steps: 60 }", "--set", "eval={}"])
                plans = [json.loads(line) for line in pathlib.Path(folder, "run/plans/compression.jsonl").read_text().splitlines()]
            plans = [p for p in plans if p["uniform_cost"] > 0]
            ratios.append(statistics.median(p["uniform_cost"] / p["cost"] for p in plans))
            texts.append(statistics.median(p["uniform_bytes"] / p["bytes"] for p in plans))
        rows.append(at_least(f"compression_bytes_{name}", "lgreco_bytes", "uniform q4", ratios, 1.3,
                             f"with what is exempt {statistics.median(texts):.2f}x; median over a run's plans"))
    return rows


def of_codes(lines, column, scale=1.0):
    """{codes: values of a column of results.csv, one a seed}"""
    found = {}
    for line in lines:
        found.setdefault(line["codes"], []).append(scale * float(line[column]))
    return found


def compression_equal_error():
    """GPT with uniform q4, with codes planned within its error, and with bf16, all on links of 100 Mbit/s, 3 seeds: bytes, exposed time, held-out loss."""
    text_data()
    with sweep_folder("compression/equal_error.textproto") as folder:
        lines = results_of(folder)
    losses, sent, exposed = of_codes(lines, "held_out_loss"), of_codes(lines, "reduced_bytes_per_step", 1e-6), of_codes(lines, "exposed_ms_per_step")
    return [row(f"equal_error_{codes}", spelled(losses[codes], "{:.4f}"), "bf16 " + spelled(losses["bf16"], "{:.4f}"), [], "reported", True,
                f"{statistics.mean(sent[codes]):.2f} MB and {statistics.mean(exposed[codes]):.0f} ms exposed a step, {len(losses[codes])} seeds") for codes in losses]


def compression_quality():
    """Held-out loss of planned and other codes against none, 5 seeds paired, GPT (AdamW) and ResNet (SGD): 95 % upper bound of the mean difference."""
    text_data()
    rows = []
    for name in ("gpt", "fashion"):
        with sweep_folder(f"compression/{name}.textproto") as folder:
            lines = results_of(folder)
        losses = {}
        for line in lines:
            losses.setdefault(line["codes"], {})[line["seed"]] = float(line["held_out_loss"])
        for codes in sorted(set(losses) - {"none"}):
            differences = [losses[codes][seed] / none - 1 for seed, none in losses["none"].items()]
            n = len(differences)
            student = {5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}[n]  # one-sided 95 %, n - 1 degrees
            bound = statistics.mean(differences) + student * statistics.stdev(differences) / math.sqrt(n)
            rows.append(row(f"quality_{name}_{codes}", spelled(losses[codes].values(), "{:.4f}"), "none " + spelled(losses["none"].values(), "{:.4f}"),
                            [1 + d for d in differences], "bound <= 0.5%" if codes == "planned" else "-", bound <= 0.005 if codes == "planned" else "-",
                            f"mean {statistics.mean(differences):+.2%}, 95 % upper bound {bound:+.2%}, {n} seeds"))
    return rows
