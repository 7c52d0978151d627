"""The peers, each optional: a figure asks `torch()` or `llmc()` and leaves the peer's column to `absent` where it is not there.

Their own programs are tests/peers/*.py; each prints one line of JSON with the keys of `shoal bench`.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

from figures_lib.measure import ENV, ROOT, run_json

SCRIPTS = ROOT / "tests" / "peers"
FOLDER = ROOT / "build" / "peers"
NO_TORCH, NO_LLMC = "not installed", "not given"


class Peers:
    """What is there; main() sets it once."""
    python = None  # of an environment with PyTorch
    llmc = None    # a checkout of llm.c
    _llmc_work = None


def install(folder):
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([pathlib.Path(folder) / "bin" / "pip", "install", "torch", "torchvision", "numpy", "transformers", "tensorboard"], check=True)


def find(folder, llmc):
    python = pathlib.Path(folder) / "bin" / "python"
    Peers.python = python if python.exists() else None
    if llmc is not None and not (pathlib.Path(llmc) / "train_gpt2.c").exists():
        sys.exit(f"--llmc {llmc}: no train_gpt2.c there; it takes a checkout of llm.c")
    Peers.llmc = llmc


def torch():
    return Peers.python is not None


def llmc():
    return Peers.llmc is not None


def model_flags(model, batch, tokens, threads):
    return [f"--{k}={v}" for k, v in model.items()] + [f"--batch={batch}", f"--tokens={tokens}", f"--threads={threads}"]


def torch_step(model, batch, tokens, mode="eager", threads=2, steps=10, extra=()):
    return run_json([Peers.python, SCRIPTS / "torch_step.py", *model_flags(model, batch, tokens, threads), f"--steps={steps}", f"--mode={mode}", *extra])


def torch_resnet(model, images, size, mode="eager", threads=2, steps=5):
    return run_json([Peers.python, SCRIPTS / "torch_resnet.py", f"--model={model}", f"--images={images}", f"--size={size}", f"--threads={threads}",
                     f"--steps={steps}", f"--mode={mode}"])


def torch_parity(folder, rate):
    """ResNet-50's; its weights and images are in `folder` then."""
    return run_json([Peers.python, SCRIPTS / "torch_parity.py", f"--folder={folder}", f"--rate={rate}"])


def torch_attention(tokens, heads, threads=2):
    return run_json([Peers.python, SCRIPTS / "torch_attention.py", f"--tokens={tokens}", f"--heads={heads}", f"--threads={threads}"])


def torch_ddp(model, batch, tokens, steps=10):
    """Two processes of one thread, `batch` sequences each, under DistributedDataParallel (gloo)."""
    command = [str(c) for c in (Peers.python, SCRIPTS / "torch_step.py", *model_flags(model, batch, tokens, 1), f"--steps={steps}", "--ddp")]
    env = dict(ENV, MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", WORLD_SIZE="2")
    both = [subprocess.Popen(command, env=dict(env, RANK=str(r)), stdout=subprocess.PIPE, text=True) for r in (0, 1)]
    out = [process.communicate()[0] for process in both]
    if any(process.returncode for process in both):
        sys.exit(f"{' '.join(command)}\nexited {[process.returncode for process in both]}")
    return json.loads(out[0].strip().splitlines()[-1])


def llmc_step(threads=2, steps=5):
    """llm.c's own GPT-2 124M step of 4 x 64 tokens: the only one that its CPU program has."""
    if Peers._llmc_work is None:
        Peers._llmc_work = tempfile.TemporaryDirectory()  # its program, weights and data are made once and go at exit
    return run_json([sys.executable, SCRIPTS / "llmc.py", Peers.llmc, f"--folder={Peers._llmc_work.name}", f"--threads={threads}", f"--steps={steps}"])
