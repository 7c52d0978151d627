"""PyTorch's side of the optimizer figures: AdamW(fused=True) over matrices of a million fp32 elements, alone or after clip_grad_norm_.

Prints one JSON line: {"kind": K, "parameters": N, "step_seconds": [...]}. Run by tests/figures.
"""
import argparse
import json
import time

parser = argparse.ArgumentParser()
parser.add_argument("--kind", choices=["adamw", "clip_adamw"], required=True)
parser.add_argument("--parameters", type=int, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=11)
parser.add_argument("--warmup", type=int, default=2)
args = parser.parse_args()

import torch  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
matrices = [torch.nn.Parameter(torch.randn(1000, 1000) * 0.02) for _ in range(max(1, args.parameters // 1_000_000))]
for matrix in matrices:
    matrix.grad = (torch.rand(1000, 1000) - 0.5) * 1e-3
optimizer = torch.optim.AdamW(matrices, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
seconds = []
for i in range(args.warmup + args.steps):
    begin = time.perf_counter()
    if args.kind == "clip_adamw":
        torch.nn.utils.clip_grad_norm_(matrices, 1.0)
    optimizer.step()
    if i >= args.warmup:
        seconds.append(time.perf_counter() - begin)
print(json.dumps({"kind": args.kind, "parameters": 1_000_000 * len(matrices), "step_seconds": seconds}))
