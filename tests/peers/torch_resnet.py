"""PyTorch's side of the ResNet figures: torchvision's model, channels-last, SGD with momentum, on one random batch that is already there.

Prints one JSON line: {"step_seconds": [...], "images": N, "parameters": N, "peak_rss_bytes": N}, defined as in `shoal bench step`.
"""
import argparse
import json
import time

import torch
import torchvision

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["resnet18", "resnet18_cifar", "resnet50"], required=True)
parser.add_argument("--images", type=int, required=True)
parser.add_argument("--size", type=int, required=True, help="pixels of a side")
parser.add_argument("--classes", type=int, default=10)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)


def peak_resident_bytes():
    """High-water of anonymous + shared resident memory: the kernel's mark less the file pages that are resident."""
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in open("/proc/self/status")) if value.strip().endswith("kB")}
    return 1024 * max(kib["RssAnon"] + kib["RssShmem"], kib["VmHWM"] - kib["RssFile"])


model = getattr(torchvision.models, args.model.removesuffix("_cifar"))(num_classes=args.classes)
if args.model.endswith("_cifar"):
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
step_model = torch.compile(model) if args.mode == "compile" else model
x = torch.randn(args.images, 3, args.size, args.size).to(memory_format=torch.channels_last)
labels = torch.randint(0, args.classes, (args.images,))
seconds = []
for step in range(args.warmup + args.steps):
    begin = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(step_model(x), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    if step >= args.warmup:
        seconds.append(time.perf_counter() - begin)
print(json.dumps({"step_seconds": seconds, "images": args.images, "parameters": sum(p.numel() for p in model.parameters()),
                  "peak_rss_bytes": peak_resident_bytes()}))
