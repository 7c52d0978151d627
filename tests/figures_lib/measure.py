"""How a figure is measured: Shoal's commands, the sgemm probe around every repeat, and the row that comes of it."""
import collections
import json
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHOAL = ROOT / "build" / "shoal"
BYTELM = dict(style="llama", layers=6, width=384, heads=6, ffn=1024, vocabulary=256)
GPT2 = dict(style="gpt2", layers=12, width=768, heads=12, ffn=3072, vocabulary=50257)
GPT_TINY = dict(style="gpt2", layers=4, width=192, heads=6, ffn=768, vocabulary=256)  # examples/gpt_tiny
MPIRUN = ("mpirun", "-n", "2", "--bind-to", "none")
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
PROBES_DIFFER = 0.05  # more than this between the probes of a repeat, and it is run again
TRIES = 3


class Options:
    """What the command line asked for; main() sets it once."""
    repeats = 3
    sweeps = None  # the folder that keeps sweeps


# Commands.


def run(command, env=None):
    """A command's stdout. A failing one ends the figures with its output."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=dict(ENV, **(env or {})))
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def run_json(command, env=None):
    """The last line of a command's output, as JSON."""
    return json.loads(run(command, env).strip().splitlines()[-1])


def dataset(folder, vocabulary, tokens, documents=64):
    """A .bin/.idx pair of documents that are exactly one sequence of `tokens` predictions each."""
    rng = random.Random(7)
    code, width = (1, 1) if vocabulary <= 256 else (8, 2)
    with open(folder / "data.bin", "wb") as file:
        for _ in range(documents * (tokens + 1)):
            file.write(rng.randrange(vocabulary).to_bytes(width, "little"))
    with open(folder / "data.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, documents, documents + 1))
        file.write(struct.pack(f"<{documents}i", *[tokens + 1] * documents))
        file.write(struct.pack(f"<{documents}q", *[d * (tokens + 1) * width for d in range(documents)]))
        file.write(struct.pack(f"<{documents + 1}q", *range(documents + 1)))


def cifar(folder, images):
    """A folder of images in CIFAR-10's format."""
    rng = random.Random(7)
    record = 1 + 3 * 32 * 32
    for name, count in (("data_batch_1.bin", images), ("test_batch.bin", 1)):
        (folder / name).write_bytes(b"".join(bytes([i % 10]) + rng.randbytes(record - 1) for i in range(count)))


def shoal_job(folder, model, batch, tokens):
    """The path of a job that trains this model in fp32 on such batches; it and its data lie in `folder`."""
    dataset(folder, model["vocabulary"], tokens)
    job = folder / "job.textproto"
    job.write_text(f"""
model {{ transformer {{ preset: {model["style"].upper()} layers: {model["layers"]} width: {model["width"]} heads: {model["heads"]} ffn: {model["ffn"]}
  vocabulary: {model["vocabulary"]} max_positions: 1024 }} }}
data {{ dataset {{ path: "{folder}/data" }} max_tokens: {tokens} held_out: 0 }}
global_batch {{ sequences: {batch} }}
duration {{ steps: 1 }}
runtime {{ compute: FP32 }}
optim {{ adamw {{ weight_decay: 0.1 }} learning_rate: 3e-4 clip_norm: 1 }}
""")
    return job


def step_command(job, threads=2, steps=10, warmup=2, sets=()):
    command = [SHOAL, "bench", "step", job, f"--threads={threads}", f"--steps={steps}", f"--warmup={warmup}"]
    for assignment in sets:
        command += ["--set", assignment]
    return command


def shoal_step(model, batch, tokens, launcher=(), **kwargs):
    """`shoal bench step` on this model and batch."""
    with tempfile.TemporaryDirectory() as folder:
        return run_json([*launcher, *step_command(shoal_job(pathlib.Path(folder), model, batch, tokens), **kwargs)])


def shoal_bench(what, model, batch, tokens, *flags):
    """Another `shoal bench` that takes a job, with the flags it takes."""
    with tempfile.TemporaryDirectory() as folder:
        return run_json([SHOAL, "bench", what, shoal_job(pathlib.Path(folder), model, batch, tokens), *flags])


def median(result):
    """Of a step measurement's step times."""
    return statistics.median(result["step_seconds"])


def rate(result):
    """Tokens per second of a step measurement."""
    return result["tokens"] / median(result)


# Repeats between probes.

Repeats = collections.namedtuple("Repeats", "results peaks note")


def probe(threads):
    return run_json([SHOAL, "bench", "probe", f"--threads={threads}"])["gflops"]


def repeats(measure, threads=2):
    """measure() as often as asked: its results, the higher of the two sgemm probes around each in GFLOP/s, and a note for the row.

    A repeat whose probes differ is run again, twice at most; then it counts, and the note says so. What `measure` compares it runs in turn.
    """
    results, peaks, noisy = [], [], 0
    for _ in range(Options.repeats):
        for _ in range(TRIES):
            before = probe(threads)
            result = measure()
            after = probe(threads)
            steady = abs(before - after) <= PROBES_DIFFER * max(before, after)
            if steady:
                break
        results.append(result)
        peaks.append(max(before, after))
        noisy += not steady
    return Repeats(results, peaks, f"noisy: the probes of {noisy} of {len(results)} repeats differ by more than {PROBES_DIFFER:.0%}" if noisy else "")


# Rows.


def row(name, shoal, peer, ratios, goal, met, note=""):
    """A line of the table. `ratios` are those of the repeats; `met` is a bool, None where there is no peer, or a word."""
    return dict(name=name, shoal=shoal, peer=peer, ratio=statistics.median(ratios) if ratios else None,
                spread=[min(ratios), max(ratios)] if ratios else None, goal=goal,
                met=met if isinstance(met, str) else {None: "no peer", True: "yes", False: "no"}[met], ratios=list(ratios), note=note)


def at_least(name, shoal, peer, ratios, goal, note="", unit="x"):
    return row(name, shoal, peer, ratios, f">= {goal:.3g}{unit}", statistics.median(ratios) >= goal if ratios else None, note)


def at_most(name, shoal, peer, ratios, goal, note="", unit="x"):
    return row(name, shoal, peer, ratios, f"<= {goal:.3g}{unit}", statistics.median(ratios) <= goal if ratios else None, note)


def within(name, shoal, peer, ratios, goal, note=""):
    return row(name, shoal, peer, ratios, f"within {goal:.0%}", abs(statistics.median(ratios) - 1) <= goal if ratios else None, note)


def lasts_at_most(name, seconds, goal, note=""):
    """A goal in seconds, without a peer; the ratio is that to the goal."""
    def spell(t):
        return f"{1e3 * t:.0f} ms" if t < 0.2 else f"{t:.2f} s" if t < 20 else f"{t:.0f} s"
    return row(name, spell(statistics.median(seconds)), "-", [t / goal for t in seconds], f"<= {spell(goal)}", statistics.median(seconds) <= goal, note)


def at_most_paired(name, shoal, peer, with_it, without, goal, extra=0.0, note=""):
    """For goals tighter than 5 % on times: steps with and without something, interleaved ABBA in one process.

    Met if the whole 95 % interval of the median of the paired ratios is inside the goal, missed if it is outside, else unresolved, as with
    fewer than 200 pairs. `extra` is a share of a step that is known apart and is added to the interval.
    """
    ratios = sorted(a / b for a, b in zip(with_it, without))
    n = len(ratios)
    half = 0.98 * n ** 0.5  # of the ranks between which the median lies: its order statistics
    low, high = ratios[max(0, int(n / 2 - half))] + extra, ratios[min(n - 1, int(n / 2 + half) + 1)] + extra
    met = "unresolved" if n < 200 or low <= goal < high else high <= goal
    return row(name, shoal, peer, ratios, f"<= {goal:.3g}x", met, notes(f"{n} pairs, 95 % interval {low:.4f}..{high:.4f}", note))


def notes(*parts):
    return "; ".join(filter(None, parts))


def spelled(values, form="{:.0f}", unit=""):
    """The median of `values` as a cell."""
    return form.format(statistics.median(values)) + (f" {unit}" if unit else "")
