"""Figures of agreement: predictions with measurements, training with PyTorch's and torchvision's."""
import array
import json
import pathlib
import statistics
import struct
import tempfile

from figures_lib import peers
from figures_lib.measure import BYTELM, GPT2, MPIRUN, SHOAL, cifar, median, repeats, row, run, run_json, shoal_job, shoal_step, spelled, step_command, within


def prediction():
    """Step time and peak memory of models that calibrate did not run, after a calibration of this machine."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "calibration.json"
        for ranks, launcher, threads in (("1x2", (), 2), ("2x1", MPIRUN, 1)):
            run([*launcher, SHOAL, "calibrate", f"--threads={threads}", "--compute=FP32", f"--out={file}"])
            for name, model, batch, tokens, steps in (("bytelm", BYTELM, 8, 256, 10), ("gpt2_4x64", GPT2, 4, 64, 4), ("gpt2_2x512", GPT2, 2, 512, 3)):
                def measure():
                    return shoal_step(model, batch, tokens, launcher=launcher, threads=threads, steps=steps, sets=[f'runtime.calibration="{file}"'])
                done = repeats(measure)
                rows.append(within(f"predicted_time_{name}_{ranks}", spelled((1e3 * r["predicted_seconds"] for r in done.results), unit="ms"),
                                   spelled((1e3 * median(r) for r in done.results), unit="ms measured"),
                                   [r["predicted_seconds"] / median(r) for r in done.results], 0.15, done.note))
                rows.append(within(f"predicted_memory_{name}_{ranks}", spelled((r["predicted_bytes"] / 2**20 for r in done.results), unit="MiB"),
                                   spelled((r["peak_rss_bytes"] / 2**20 for r in done.results), unit="MiB measured"),
                                   [r["predicted_bytes"] / r["peak_rss_bytes"] for r in done.results], 0.05))
    return rows


def read_safetensors(path):
    """{name: numbers} of an f32 file."""
    raw = pathlib.Path(path).read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    return {name: array.array("f", raw[8 + length + v["data_offsets"][0]:8 + length + v["data_offsets"][1]])
            for name, v in json.loads(raw[8:8 + length]).items() if name != "__metadata__"}


def distance(gradient, before, after, rate):
    """Of our gradient, which is what a step of plain SGD at `rate` moved, from PyTorch's, relative to the latter."""
    difference = sum(((b - a) / rate - g) ** 2 for a, b, g in zip(after, before, gradient)) ** 0.5
    return difference / sum(g * g for g in gradient) ** 0.5


def equal_to_torch():
    """The same weights (safetensors) and batches as PyTorch for 50 steps: losses, and the gradients of step 0."""
    if not peers.torch():
        return [row("equal_losses", "-", peers.NO_TORCH, [], "<= 5e-6", None)]
    rows = []
    for name, model, batch, tokens in (("bytelm", BYTELM, 8, 256), ("gpt2_style", dict(BYTELM, style="gpt2", vocabulary=1000), 4, 256)):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            start = f'model.initial_weights="{folder}/init.safetensors"'
            job = shoal_job(folder, model, batch, tokens)
            (folder / "batches.json").write_text(run([SHOAL, "bench", "batches", job, "--steps=50"]))
            peer = peers.torch_step(model, batch, tokens, extra=[f"--save-weights={folder}/init.safetensors", f"--batches={folder}/batches.json",
                                                                 f"--save-gradients={folder}/gradients.safetensors"])
            ours = run_json(step_command(job, steps=50, warmup=0, sets=[start, "optim.schedule.shape=CONSTANT"]))
            worst = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], peer["losses"]))
            rows.append(row(f"equal_losses_{name}", f"{worst:.1e}", "50 steps of PyTorch", [], "<= 5e-6", len(ours["losses"]) == 50 and worst <= 5e-6,
                            f"loss {peer['losses'][0]:.3f} to {peer['losses'][-1]:.3f}"))
            # One step of plain SGD with a huge rate leaves weights that are the gradients, up to rounding of theirs.
            rate = 2.0 ** 16
            run([SHOAL, "train", job, "--run_dir", folder / "run", "--set", start, "--set", "duration.steps=1",
                 "--set", "optim={ sgd { momentum: 0 } schedule { shape: CONSTANT } clip_norm: 0 }", "--set", f"optim.learning_rate={rate}"])
            run([SHOAL, "convert", folder / "run", folder / "after.safetensors"])
            before, after, theirs = (read_safetensors(folder / f"{n}.safetensors") for n in ("init", "after", "gradients"))
            # The gradient of the key biases is zero in exact arithmetic: softmax does not see a constant.
            worst = max(distance(gradient, before[tensor], after[tensor], rate) for tensor, gradient in theirs.items() if not tensor.endswith("attention.k.bias"))
            rows.append(row(f"equal_gradients_{name}", f"{worst:.1e}", f"{len(theirs)} tensors of PyTorch", [], "<= 5e-6", worst <= 5e-6))
    return rows


def parity():
    """ResNet-50 with torchvision's random weights: logits, 20 losses in float64, and the error of the first fp32 gradients beside torchvision's own."""
    if not peers.torch():
        return [row("parity_resnet50", "-", peers.NO_TORCH, [], "<= 1e-5", None)]
    # Training at this start is chaotic: at 1e-4, torchvision in float64 and channels-last is 7e-8 away from itself in rows after 20 steps.
    rate = 1e-5
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        theirs = peers.torch_parity(folder, rate)
        (folder / "cifar").mkdir()
        cifar(folder / "cifar", 10)
        job = folder / "job.textproto"
        job.write_text(f"""
model {{ initial_weights: "{folder}/init.safetensors" resnet {{ preset: RESNET50 }} }}
data {{ images {{ path: "{folder}/cifar" }} }}
global_batch {{ images: 8 }}
duration {{ steps: 1 }}
optim {{ sgd {{ }} learning_rate: {rate} }}
""")
        ours = run_json([SHOAL, "bench", "parity", job, f"--folder={folder}", "--threads=2"])
    largest = max(abs(t) for image in theirs["logits"] for t in image)
    logits = max(abs(o - t) for mine, image in zip(ours["logits"], theirs["logits"], strict=True) for o, t in zip(mine, image, strict=True)) / largest
    losses = max(abs(o - t) / abs(t) for o, t in zip(ours["losses"], theirs["losses"], strict=True))
    # Where rounding turns a ReLU on or off, an error is thousands of times what it is without, on either side: by chance, in some batches.
    assert theirs["gradient_errors"].keys() == ours["gradient_errors"].keys()
    mine, errors = ({name: statistics.median(batches) for name, batches in side["gradient_errors"].items()} for side in (ours, theirs))
    ratios = {name: mine[name] / error for name, error in errors.items()}
    worst = max(ratios, key=ratios.get)
    return [row("parity_logits", f"{logits:.1e}", "of the largest of torchvision", [], "<= 1e-5", logits <= 1e-5, "ResNet-50, 16 images of 64 x 64, evaluated"),
            row("parity_losses", f"{losses:.1e}", "20 steps of torchvision in float64", [], "<= 1e-8", losses <= 1e-8,
                f"loss {theirs['losses'][0]:.3f} to {theirs['losses'][-1]:.3f}"),
            row("parity_gradient_errors", f"{mine[worst]:.1e}", f"{errors[worst]:.1e} of torchvision's fp32 to float64",
                list(ratios.values()), "each <= 2x", ratios[worst] <= 2, f"{len(errors)} tensors, median of 5 batches each; the largest ratio, {ratios[worst]:.2f}, is {worst}'s")]
