"""PyTorch's side of the step figures: the same transformer, optimizer and clipping as Shoal's, with PyTorch's best settings.

Rank 0 prints one JSON line: {"step_seconds": [...], "first_step_seconds": S, "tokens": N, "parameters": N, "peak_rss_bytes": N, "losses": [...]}, each
defined as in `shoal bench step`: the first step's end counts from the start of the process, memory is anonymous + shared, without file pages.
Run by tests/figures; `python torch_step.py --help` lists the options.
"""
import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--style", choices=["gpt2", "llama"], required=True)
parser.add_argument("--layers", type=int, required=True)
parser.add_argument("--width", type=int, required=True)
parser.add_argument("--heads", type=int, required=True)
parser.add_argument("--ffn", type=int, required=True)
parser.add_argument("--vocabulary", type=int, required=True)
parser.add_argument("--positions", type=int, default=1024)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--tokens", type=int, required=True, help="per sequence")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--ddp", action="store_true", help="one process of a gloo group; RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set")
parser.add_argument("--mpi-master", metavar="ADDRESS", help="one process of a gloo group under mpirun, over the interface of this network")
parser.add_argument("--bf16-hook", action="store_true", help="gradients travel as bf16 (DDP's bf16_compress_hook)")
parser.add_argument("--save-weights", help="write the initial weights as safetensors in Shoal's names")
parser.add_argument("--batches", help="train on these: the output of `shoal bench batches`, one list of sequences a step; no warm-up")
parser.add_argument("--save-gradients", help="write the gradients of step 0, in Shoal's names")
args = parser.parse_args()

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)


def process_age():
    """Seconds since this process began."""
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_resident_bytes():
    """High-water of anonymous + shared resident memory: the kernel's mark less the file pages that are resident."""
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in open("/proc/self/status")) if value.strip().endswith("kB")}
    return 1024 * max(kib["RssAnon"] + kib["RssShmem"], kib["VmHWM"] - kib["RssFile"])


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def rope_tables(tokens, size, theta=10000.0):
    angle = torch.outer(torch.arange(tokens).float(), 1.0 / theta ** (torch.arange(0, size, 2).float() / size))
    return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        d, bias = args.width, args.style == "gpt2"
        norm = (lambda: nn.LayerNorm(d)) if bias else (lambda: RmsNorm(d))
        self.norm1, self.norm2 = norm(), norm()
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=bias), nn.Linear(d, d, bias=bias)
        self.up = nn.Linear(d, args.ffn if bias else 2 * args.ffn, bias=bias)
        self.down = nn.Linear(args.ffn, d, bias=bias)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, args.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, -1))
        if args.style == "llama":
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        h = self.up(self.norm2(x))
        if args.style == "gpt2":
            h = F.gelu(h, approximate="tanh")
        else:
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        return x + self.down(h)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(args.vocabulary, args.width)
        self.positions = nn.Embedding(args.positions, args.width) if args.style == "gpt2" else None
        self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.width) if args.style == "gpt2" else RmsNorm(args.width)
        self.head = nn.Linear(args.width, args.vocabulary, bias=False)
        if args.style == "gpt2":
            self.head.weight = self.embedding.weight
        cos, sin = rope_tables(args.tokens, args.width // args.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens, labels):
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, args.vocabulary).float(), labels.view(-1))


def in_shoals_names(model, value):
    """{Shoal's name: value(parameter)}, fused projections cut."""
    named = {"tokens.weight": value(model.embedding.weight)}
    if args.style == "gpt2":
        named["positions.weight"] = value(model.positions.weight)
    else:
        named["head.weight"] = value(model.head.weight)

    def add(name, module, *parts):
        for kind, p in module.named_parameters():
            for part, piece in zip(parts or ("",), value(p).chunk(len(parts) or 1)):
                named[f"{name}{part}.{kind}"] = piece.clone()
    for i, block in enumerate(model.blocks):
        add(f"blocks.{i}.attention.norm", block.norm1)
        add(f"blocks.{i}.attention", block.qkv, ".q", ".k", ".v")
        add(f"blocks.{i}.attention.out", block.out)
        add(f"blocks.{i}.mlp.norm", block.norm2)
        add(f"blocks.{i}.mlp", block.up, *([".up"] if args.style == "gpt2" else [".gate", ".up"]))
        add(f"blocks.{i}.mlp.down", block.down)
    add("final_norm", model.norm)
    return named


def save(path, model, value):
    from safetensors.torch import save_file
    save_file({name: tensor.contiguous() for name, tensor in in_shoals_names(model, value).items()}, path)


model = Model()
for p in model.parameters():
    if p.dim() > 1:
        nn.init.normal_(p, std=0.02)
decayed = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() == 1]
optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                              lr=3e-4, betas=(0.9, 0.95), fused=True)
if args.save_weights:
    save(args.save_weights, model, lambda p: p.detach())
step_model = model
if args.mpi_master:
    args.ddp = True
    os.environ.update(RANK=os.environ["OMPI_COMM_WORLD_RANK"], WORLD_SIZE=os.environ["OMPI_COMM_WORLD_SIZE"], MASTER_ADDR=args.mpi_master,
                      MASTER_PORT="29511", GLOO_SOCKET_IFNAME="eth0")
if args.ddp:
    import torch.distributed as dist
    dist.init_process_group("gloo")
    step_model = nn.parallel.DistributedDataParallel(model)
    if args.bf16_hook:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
        step_model.register_comm_hook(None, default_hooks.bf16_compress_hook)
if args.mode == "compile":
    step_model = torch.compile(step_model)

generator = torch.Generator().manual_seed(1 + int(os.environ.get("RANK", "0")))
data = torch.randint(0, args.vocabulary, (args.batch, args.tokens + 1), generator=generator)
tokens, labels = data[:, :-1].contiguous(), data[:, 1:].contiguous()
seconds, losses = [], []
batches = json.load(open(args.batches)) if args.batches else []
if batches:
    args.warmup, args.steps = 0, len(batches)
for step in range(args.warmup + args.steps):
    if batches:
        data = torch.tensor(batches[step])
        tokens, labels = data[:, :-1].contiguous(), data[:, 1:].contiguous()
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
        loss = step_model(tokens, labels)
    loss.backward()
    if step == 0 and args.save_gradients:
        save(args.save_gradients, model, lambda p: p.grad)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())
    if step >= args.warmup:
        seconds.append(time.perf_counter() - begin)
    if step == 0:
        first = process_age()
if os.environ.get("RANK", "0") == "0":
    print(json.dumps({
        "step_seconds": seconds, "tokens": args.batch * args.tokens, "losses": losses, "first_step_seconds": first,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_rss_bytes": peak_resident_bytes()}))
if args.ddp:
    dist.destroy_process_group()
