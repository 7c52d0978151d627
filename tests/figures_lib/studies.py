"""Figures of the published methods: sweeps of examples/, run as they stand there, and the accuracy of examples/resnet_fashion.

Each compares what `shoal experiment` wrote into results.csv: losses or accuracies with their range over seeds.
"""
import collections
import contextlib
import csv
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from figures_lib.measure import MPIRUN, ROOT, SHOAL, Options, row, run

EXAMPLES = ROOT / "examples"


def text_data():
    """The quickstart's dataset, built if it is not there."""
    if not (ROOT / "build/data/perl-doc.idx").exists():
        pods = [line for line in run(["dpkg", "-L", "perl-doc"]).splitlines() if line.endswith(".pod") and pathlib.Path(line).exists()]
        run([SHOAL, "data", "build", "--out", ROOT / "build/data/perl-doc", *pods])


def perl_entries():
    """The Perl manual cut at its headings and items: examples/longtail_sp's documents."""
    if not (ROOT / "build/data/perl-entries.idx").exists():
        pods = [line for line in run(["dpkg", "-L", "perl-doc"]).splitlines() if line.endswith(".pod") and pathlib.Path(line).exists()]
        run([SHOAL, "data", "build", "--out", ROOT / "build/data/perl-entries", "--split", "^=(head[1-4]|item)", *pods])


@contextlib.contextmanager
def sweep_folder(file):
    """The folder of a sweep of examples/ that has run: from the start, or with --sweeps from what is there."""
    with contextlib.ExitStack() as stack:
        base = Options.sweeps or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = base / file.removesuffix(".textproto")
        done = subprocess.run([SHOAL, "experiment", EXAMPLES / file, "--folder", folder], cwd=ROOT, stdout=sys.stderr)
        if done.returncode != 0:
            sys.exit(f"shoal experiment examples/{file} exited {done.returncode}")
        yield folder


def results_of(folder):
    """The lines of its results.csv."""
    with open(folder / "results.csv", newline="") as results:
        return list(csv.DictReader(results))


def sweep(file):
    """The results of a sweep of examples/."""
    with sweep_folder(file) as folder:
        return results_of(folder)


def cells(lines, axes, metric):
    """{(value of each axis): [metric of each seed]}; not a number where a seed diverged."""
    found = collections.defaultdict(list)
    for line in lines:
        found[tuple(line[axis] for axis in axes)].append(float(line[metric]) if line["state"] == "finished" else float("nan"))
    return dict(found)


def spelled(values, form="{:.3f}"):
    return form.format(statistics.mean(values)) + " (" + form.format(min(values)) + ".." + form.format(max(values)) + ")"


def by_rate(results, *first):
    """{rate: values} of one curve."""
    return {key[-1]: values for key, values in results.items() if key[:-1] == first}


def best(curve, better=min):
    """The rate whose mean over seeds is best, and its values; a rate at which a seed diverged is not."""
    sound = {rate: values for rate, values in curve.items() if all(v == v for v in values)}
    return better(sound.items(), key=lambda item: statistics.mean(item[1]))


def transfer(file, field, rules, what):
    """Rows: what taking the base width's best value to other widths costs against tuning there, under each rule."""
    results = cells(sweep(file), ("rule", "width", field), "held_out_loss")
    rows = []
    for width in ("128", "256"):
        costs = {}
        for rule in rules:
            at_base, _ = best(by_rate(results, rule, "64"))
            curve = by_rate(results, rule, width)
            own, tuned = best(curve)
            carried = curve[at_base]
            spread = max(tuned) - min(tuned)
            cost = statistics.mean(carried) - statistics.mean(tuned)
            costs[rule] = cost, spread
            goal = "reported" if rule == "none" else cost <= spread
            rows.append(row(f"{what}_transfer_{rule}_{width}", f"{spelled(carried)} at {at_base}", f"{spelled(tuned)} at {own}, its own best", [],
                            f"within the seeds' range, {spread:.3f}", goal, f"costs {cost:.4f}"))
        cost, spread = costs["none"]
        for rule in rules[1:]:
            resolved = cost > spread
            rows.append(row(f"{what}_transfer_{rule}_over_none_{width}", f"{costs[rule][0]:.4f}", f"{cost:.4f} without a rule", [], "3x less",
                            (cost >= 3 * costs[rule][0]) if resolved else "not resolved"))
    return rows


def exponent(widths, values):
    """Of values ~ width^exponent, by least squares of logarithms."""
    return statistics.linear_regression([math.log(w) for w in widths], [math.log(v) for v in values]).slope


def coordinates():
    """Rows: how top singular values of hidden matrices after 10 steps grow with width; muP's rule keeps them."""
    widths, rows = (64, 128, 256, 512), []
    with sweep_folder("width_transfer/coordinates.textproto") as folder:
        for rule in ("none", "mup"):
            sigmas = []  # of each width and seed, by matrix
            for width in widths:
                runs = sorted((folder / "runs").glob(f"rule={rule},width={width},*/metrics.jsonl"))
                sigmas.append([json.loads(metrics.read_text().splitlines()[-1])["spectral"] for metrics in runs])
            exponents = [exponent(widths, [statistics.mean(seed[matrix]["sigma"] for seed in seeds) for seeds in sigmas]) for matrix in sigmas[0][0]]
            middle = statistics.median(exponents)
            rows.append(row(f"coordinates_{rule}", f"width^{middle:.2f}", "-", exponents, "within 0.1 of 0" if rule == "mup" else "reported",
                            abs(middle) <= 0.1 if rule == "mup" else "reported", "top singular value of hidden matrices after 10 steps, widths 64 to 512"))
    return rows


def wide():
    """Rows: width 512 at the base's best rate, half of it and twice it."""
    results = cells(sweep("width_transfer/wide.textproto"), ("rule", "learning_rate"), "held_out_loss")
    rows = []
    for rule in ("none", "mup"):
        curve = by_rate(results, rule)
        rates = sorted(curve, key=float)
        own, tuned = best(curve)
        carried = curve[rates[1]]
        rows.append(row(f"rate_transfer_{rule}_512", f"{spelled(carried)} at {rates[1]}", f"{spelled(tuned)} at {own}, the best of three", [], "reported", "reported",
                        f"costs {statistics.mean(carried) - statistics.mean(tuned):.4f}"))
    return rows


def width_transfer():
    """A learning rate and a decay tuned at width 64 and used at 128 and 256, against those widths' own best; with and without width rules."""
    text_data()
    return (transfer("width_transfer/rates.textproto", "learning_rate", ("none", "mup"), "rate") + wide() + coordinates() +
            transfer("width_transfer/decays.textproto", "weight_decay", ("none", "mup", "robust_decay"), "decay"))


def large_batch():
    """Sixteen times the batch with as many samples: LAMB and LARS beside AdamW and SGD, all tuned over one grid."""
    text_data()
    rows = []
    for file, metric, better, (usual, large), (small, big) in (
            ("large_batch/text_sweep.textproto", "held_out_loss", min, ("adamw", "lamb"), ("512", "8192")),
            ("large_batch/images_sweep.textproto", "accuracy", max, ("sgd", "lars"), ("64", "1024"))):
        results = cells(sweep(file), ("optimizer", "batch", "learning_rate"), metric)
        for batch in (small, big):
            (rate, ours), (other_rate, theirs) = (best(by_rate(results, name, batch), better) for name in (large, usual))
            rows.append(row(f"large_batch_{large}_{batch}", f"{spelled(ours)} at {rate}", f"{usual} {spelled(theirs)} at {other_rate}", [], "either", "reported",
                            f"{metric}, mean and range over {len(ours)} seeds"))
    return rows


def muon():
    """AdamW, Muon and noise-adaptive Muon in as many steps, each tuned over one grid; steps and time until AdamW's last loss."""
    text_data()
    rows = []
    with sweep_folder("muon/sweep.textproto") as folder:
        lines = results_of(folder)
        losses, seconds = (cells(lines, ("optimizer", "learning_rate"), metric) for metric in ("held_out_loss", "seconds_per_step"))
        rate, theirs = best(by_rate(losses, "adamw"))
        # Of the run that other programs disturbed least: rates do not change how long a step takes.
        step = {name: min(min(values) for key, values in seconds.items() if key[0] == name) for name in ("adamw", "muon", "noise_adaptive")}
        for name in ("muon", "noise_adaptive"):
            own, ours = best(by_rate(losses, name))
            evaluations = collections.defaultdict(list)
            for metrics in (folder / "runs").glob(f"optimizer={name},learning_rate={own},*/metrics.jsonl"):
                for record in map(json.loads, metrics.read_text().splitlines()):
                    if "eval_loss" in record:
                        evaluations[record["step"]].append(record["eval_loss"])
            last = max(evaluations)
            reached = min((s for s, values in evaluations.items() if statistics.mean(values) <= statistics.mean(theirs)), default=None)
            slower = step[name] / step["adamw"]
            there = f"{reached} steps and {reached / last * slower:.2f} of AdamW's time" if reached else "never"
            rows.append(row(f"muon_{name}", f"{spelled(ours)} at {own}", f"adamw {spelled(theirs)} at {rate}", [], "either", "reported",
                            f"held-out loss after {last} steps of 1,024 tokens, {len(ours)} seeds; a step takes {slower:.2f}x AdamW's; AdamW's last loss: {there}"))
    return rows


def adaptive_batch():
    """A batch that grows by the norm test beside the small and the large one, each tuned over one grid."""
    results = cells(sweep("adaptive_batch/sweep.textproto"), ("batch", "learning_rate"), "accuracy")
    rate, ours = best(by_rate(results, "grows"), max)
    return [row(f"adaptive_batch_{name}", f"{spelled(ours)} at {rate}", f"always {name}: {spelled(theirs)} at {other}", [], "either", "reported",
                f"accuracy, mean and range over {len(ours)} seeds")
            for name in ("64", "1024") for other, theirs in [best(by_rate(results, name), max)]]


def shape_of(shape):
    """MACs and activations of an image, as the start of a run prints them."""
    sets = re.search(rf'label: "{shape}"(?: set: "(.*)")? }}', (EXAMPLES / "resnet_scaling/sweep.textproto").read_text())[1]
    text = run([SHOAL, "plan", EXAMPLES / "resnet_scaling/job.textproto", "--ranks=1", *(["--set", sets] if sets else [])])
    return re.search(r"([\d.]+) GMACs, (\S+) activations", text).groups()


def resnet_scaling():
    """Four times a ResNet's FLOPs by dWr, by depth and by width: accuracy, time of a step and activations."""
    lines, rows = sweep("resnet_scaling/sweep.textproto"), []
    accuracy, seconds = (cells(lines, ("shape",), metric) for metric in ("accuracy", "seconds_per_step"))
    for shape in ("depth", "width", "base"):
        sides = []
        for name in ("dWr", shape):
            macs, activations = shape_of(name)
            sides.append(f"{spelled(accuracy[name, ])}, {1e3 * statistics.median(seconds[name, ]):.0f} ms, {activations}, {macs} GMACs")
        rows.append(row(f"resnet_scaling_dWr_{shape}", sides[0], f"{shape}: {sides[1]}", [statistics.median(seconds["dWr", ]) / statistics.median(seconds[shape, ])],
                        "either", "reported", "accuracy with its range over seeds, step, activations of an image; the ratio is of times"))
    return rows


def resnet_fashion():
    """examples/resnet_fashion as its README runs it: accuracy on the test images, and the time it takes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run([*MPIRUN, SHOAL, "train", EXAMPLES / "resnet_fashion/job.textproto", "--run_dir", folder])
        seconds = time.monotonic() - start
        accuracy = float(re.search(r"accuracy\D*([\d.]+)", run([SHOAL, "eval", folder]))[1])
    return [row("resnet_fashion_accuracy", f"{accuracy:.4f}", "-", [], ">= 0.93", accuracy >= 0.93),
            row("resnet_fashion_time", f"{seconds:.0f} s", "-", [seconds / 900], "<= 900 s", seconds <= 900, "2 ranks x 1 thread, from the command to its end")]
