"""Figures of ResNets: training steps and their memory against torchvision's, and the wait for augmented images."""
import pathlib
import statistics
import tempfile

from figures_lib import peers
from figures_lib.measure import at_least, at_most, cifar, median, repeats, run_json, spelled, step_command

MODELS = dict(resnet18="preset: RESNET18", resnet18_cifar="preset: RESNET18 stem: CIFAR", resnet50="preset: RESNET50")


def shoal_resnet(model, images, size, augment="crop: NONE flip: false", steps=5, threads=2):
    """`shoal bench step` in fp32 on CIFAR-like images, resized where the model sees another size."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        cifar(folder, 4 * images)
        job = folder / "job.textproto"
        job.write_text(f"""
model {{ resnet {{ {MODELS[model]} }} }}
data {{ images {{ path: "{folder}" size: {size} {augment} }} }}
global_batch {{ images: {images} }}
duration {{ steps: 1 }}
runtime {{ compute: FP32 }}
optim {{ sgd {{ momentum: 0.9 weight_decay: 5e-4 }} learning_rate: 0.01 clip_norm: 0 }}
""")
        return run_json(step_command(job, threads=threads, steps=steps))


def rate(result):
    return result["images"] / median(result)


def against_torchvision(model, images, size, goal, memory_goal=None):
    def measure():
        ours = shoal_resnet(model, images, size)
        theirs = min((peers.torch_resnet(model, images, size, mode) for mode in ("eager", "compile")), key=median) if peers.torch() else None
        return ours, theirs
    done = repeats(measure)
    name, pairs = f"{model}_{images}x{size}", [(o, t) for o, t in done.results if t]
    rows = [at_least(name, spelled((rate(o) for o, _ in done.results), "{:.1f}", "images/s"),
                     spelled((rate(t) for _, t in pairs), "{:.1f}", "images/s") if pairs else peers.NO_TORCH,
                     [rate(o) / rate(t) for o, t in pairs], goal, done.note)]
    if memory_goal:
        def mib(results):
            return spelled((r["peak_rss_bytes"] / 2**20 for r in results), unit="MiB")
        rows.append(at_most(f"{name}_memory", mib(o for o, _ in done.results), mib(t for _, t in pairs) if pairs else peers.NO_TORCH,
                            [o["peak_rss_bytes"] / t["peak_rss_bytes"] for o, t in pairs], memory_goal, "anonymous + shared resident high-water"))
    return rows


def resnet():
    """Training steps of ResNet-18 and ResNet-50 against torchvision's (the better of eager and compile, channels-last), fp32, and their memory."""
    return (against_torchvision("resnet18", 128, 32, 1.7, 0.35) + against_torchvision("resnet18", 16, 128, 1.1, 0.4) +
            against_torchvision("resnet50", 16, 128, 1.2, 0.55) + against_torchvision("resnet18_cifar", 64, 32, 1.15))


def resnet_data():
    """Wait for images that are cropped, flipped and RandAugmented, as a share of ResNet-18's steps of 128 x 32."""
    done = repeats(lambda: shoal_resnet("resnet18", 128, 32, augment="crop: PAD flip: true randaugment { }", steps=20))
    waits = [sum(r["data_seconds"]) / sum(r["step_seconds"]) for r in done.results]
    return [at_most("resnet18_128x32_data", spelled((1e3 * statistics.mean(r["data_seconds"]) for r in done.results), "{:.2f}", "ms"),
                    spelled((1e3 * median(r) for r in done.results), unit="ms, the whole step"), waits, 0.02, done.note, unit="")]
