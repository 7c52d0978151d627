"""llm.c's side of the 4 x 64 figure: its CPU program as it is, on a randomly initialised GPT-2 124M.

Prints one JSON line: {"step_seconds": [...], "tokens": N}. What its program reads and a checkout does not hold (weights, tokens, tokenizer) is
made in --folder, where it also runs; the checkout is only read. `python llmc.py --help` lists the options.
"""
import argparse
import array
import json
import os
import pathlib
import random
import re
import subprocess
import sys

LAYERS, WIDTH, HEADS, VOCABULARY, PADDED, POSITIONS = 12, 768, 12, 50257, 50304, 1024
TOKENS = 4 * 64  # fixed in its main()
LAST_STEP = 40   # as well
STEP = re.compile(r"step \d+: train loss (\S+) \(took (\S+) ms\)")

parser = argparse.ArgumentParser()
parser.add_argument("checkout", type=pathlib.Path)
parser.add_argument("--folder", type=pathlib.Path, required=True, help="for what is made; used again if it is there")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--warmup", type=int, default=2, help="steps not measured")
args = parser.parse_args()
if args.warmup + args.steps > LAST_STEP + 1:
    sys.exit(f"it runs {LAST_STEP + 1} steps in all")


def program():
    """Its train_gpt2, built by its own Makefile outside the checkout unless it is built there."""
    built, ours = args.checkout.resolve() / "train_gpt2", args.folder / "train_gpt2"
    if built.exists():
        return built
    if not ours.exists():
        checkout = args.checkout.resolve()
        done = subprocess.run(["make", "-C", args.folder, "-f", checkout / "Makefile", f"VPATH={checkout}", "train_gpt2"], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"llm.c does not build:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return ours.resolve()


def header(*values):
    return array.array("i", values + (0,) * (256 - len(values)))


def write_weights(path):
    """Its version 3: fp32, the vocabulary padded. Matrices and tables are normal with 0.02, norms one, biases zero.

    The normal numbers repeat after a prime of them: other values would take as long.
    """
    rng = random.Random(1)
    normal = array.array("f", (rng.gauss(0, 0.02) for _ in range(1000003)))
    one, zero = array.array("f", [1.0]), array.array("f", [0.0])
    c, l = WIDTH, LAYERS
    tensors = [(normal, PADDED * c), (normal, POSITIONS * c), (one, l * c), (zero, l * c), (normal, l * 3 * c * c), (zero, l * 3 * c), (normal, l * c * c),
               (zero, l * c), (one, l * c), (zero, l * c), (normal, l * 4 * c * c), (zero, l * 4 * c), (normal, l * c * 4 * c), (zero, l * c), (one, c), (zero, c)]
    with open(path, "wb") as file:
        header(20240326, 3, POSITIONS, VOCABULARY, LAYERS, HEADS, WIDTH, PADDED).tofile(file)
        for values, size in tensors:
            for at in range(0, size, len(normal)):
                (values * (1 if values is normal else len(normal)))[:size - at].tofile(file)


def write_tokens(path, tokens):
    rng = random.Random(2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        header(20240520, 1, tokens).tofile(file)
        array.array("H", (rng.randrange(VOCABULARY) for _ in range(tokens))).tofile(file)


def write_tokenizer(path):
    """Every token is a question mark; the last is the end of a text."""
    with open(path, "wb") as file:
        header(20240328, 2, VOCABULARY, VOCABULARY - 1).tofile(file)
        file.write(b"\x01?" * VOCABULARY)


def make_missing():
    data = args.folder / "dev/data/tinyshakespeare"
    for path, write in ((args.folder / "gpt2_124M.bin", write_weights), (args.folder / "gpt2_tokenizer.bin", write_tokenizer),
                        (data / "tiny_shakespeare_train.bin", lambda p: write_tokens(p, 64 * TOKENS + 1)),
                        (data / "tiny_shakespeare_val.bin", lambda p: write_tokens(p, 8 * TOKENS + 1))):
        if not path.exists():
            write(path)


def main():
    command = ["stdbuf", "-oL", program()]  # lines as they come, also into a pipe
    make_missing()
    seconds, losses, output = [], [], []
    process = subprocess.Popen(command, cwd=args.folder, env=dict(os.environ, OMP_NUM_THREADS=str(args.threads)), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    for line in process.stdout:
        output.append(line)
        if match := STEP.match(line):
            losses.append(float(match[1]))
            seconds.append(float(match[2]) / 1e3)
        if len(seconds) == args.warmup + args.steps:
            process.kill()
            break
    process.wait()
    if len(seconds) < args.warmup + args.steps:
        sys.exit(f"llm.c ended after {len(seconds)} steps:\n{''.join(output)[-2000:]}")
    print(json.dumps({"step_seconds": seconds[args.warmup:], "tokens": TOKENS, "losses": losses}))


if __name__ == "__main__":
    main()
