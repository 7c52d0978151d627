"""PyTorch's side of the attention figure: causal scaled_dot_product_attention, forward and backward, of one document."""
import argparse
import json
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--tokens", type=int, required=True)
parser.add_argument("--heads", type=int, required=True)
parser.add_argument("--head_size", type=int, default=64)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=3)
args = parser.parse_args()

torch.set_num_threads(args.threads)
q, k, v = (torch.randn(1, args.heads, args.tokens, args.head_size, requires_grad=True) for _ in range(3))
dy = torch.randn(1, args.heads, args.tokens, args.head_size)
seconds = []
for repeat in range(args.repeats + 1):
    begin = time.perf_counter()
    F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(dy)
    q.grad = k.grad = v.grad = None
    if repeat > 0:
        seconds.append(time.perf_counter() - begin)
print(json.dumps({"seconds": seconds}))
