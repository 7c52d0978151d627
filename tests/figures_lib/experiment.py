"""Figures of sweeps: what running jobs through `shoal experiment` costs, and that no finished run is repeated."""
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from figures_lib.measure import ENV, SHOAL, at_most, repeats, row, run, shoal_job, spelled

SMALL = dict(style="gpt2", layers=2, width=128, heads=4, ffn=512, vocabulary=256)
RATES, SEEDS = ("1e-3", "2e-3", "3e-3", "4e-3"), (1, 2)


def write_sweep(folder, steps):
    """The path of a sweep of 8 runs, one at a time on 2 threads; it, its job and its data lie in `folder`."""
    shoal_job(folder, SMALL, 8, 256)
    sweep = folder / "sweep.textproto"
    sweep.write_text(f"""
job: "job.textproto"
set: ["duration.steps={steps}", "runtime.threads_per_rank=2", "log.every_steps=1000"]
axis {{ field: "optim.learning_rate" value: [{", ".join(f'"{rate}"' for rate in RATES)}] }}
seeds: [{", ".join(map(str, SEEDS))}]
jobs_at_once: 1
metric: LOSS
""")
    return sweep


def timed(command):
    """Seconds that a command takes, and its stdout."""
    start = time.monotonic()
    out = run(command)
    return time.monotonic() - start, out


def overhead():
    """A sweep of 8 runs of some seconds: its time over the sum of its runs' times, and over the same runs started by hand."""
    steps = 120

    def measure():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            sweep = write_sweep(folder, steps)
            by_hand = 0
            for rate in RATES:
                for seed in SEEDS:
                    by_hand += timed([SHOAL, "train", folder / "job.textproto", "--run_dir", folder / f"hand-{rate}-{seed}", "--local_ranks=1",
                                      "--set", f"duration.steps={steps}", "--set", "runtime.threads_per_rank=2", "--set", "log.every_steps=1000",
                                      "--set", f"optim.learning_rate={rate}", "--set", f"seed={seed}"])[0]
            seconds, out = timed([SHOAL, "experiment", sweep, "--folder", folder / "sweep"])
            return seconds, sum(map(float, re.findall(r"\| ([\d.]+) s \| ETA", out))), by_hand
    done = repeats(measure)
    sweep, own, by_hand = zip(*done.results)
    cell = spelled(sweep, "{:.1f}", "s")
    return [at_most("sweep_8_runs", cell, spelled(own, "{:.1f}", "s of its runs"), [s / o for s, o in zip(sweep, own)], 1.05, done.note),
            at_most("sweep_8_runs_by_hand", cell, spelled(by_hand, "{:.1f}", "s by hand"), [s / h for s, h in zip(sweep, by_hand)], 1.05, done.note)]


def killed():
    """The same sweep killed after its third run and started again: finished runs that are repeated."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        command = [SHOAL, "experiment", write_sweep(folder, 60), "--folder", folder / "sweep"]
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True, env=ENV)
        for line in process.stdout:
            if line.startswith("[3/8]"):
                process.send_signal(signal.SIGKILL)
        process.wait()
        finished = {state.parent: (state.parent / "metrics.jsonl").stat().st_ino for state in folder.glob("sweep/runs/*/state")
                    if state.read_text() == "finished\n"}
        again = run(command)
        repeated = sum((run_dir / "metrics.jsonl").stat().st_ino != inode for run_dir, inode in finished.items())
        left = len(re.findall(r"\| ETA", again))
    return [row("sweep_killed", f"{repeated} of {len(finished)} repeated", "-", [], "0", repeated == 0 and len(finished) >= 3,
                f"{left} of 8 runs were left for the second start")]


def sweep_8_runs():
    """A sweep of 8 short runs: its overhead; killed and started again, no finished run is repeated."""
    return overhead() + killed()
