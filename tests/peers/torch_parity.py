"""torchvision's side of the parity figure: a ResNet with random weights, given to Shoal in its names, and what it computes with them.

Writes FOLDER/init.safetensors and FOLDER/images.safetensors. Prints one JSON line with the keys of `shoal bench parity`: {"logits": [[...]],
"losses": [...], "gradient_errors": {name: of each of 5 batches}}.
"""
import argparse
import copy
import json
import pathlib

import torch
import torchvision
from safetensors.torch import save_file

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet50")
parser.add_argument("--classes", type=int, default=10)
parser.add_argument("--images", type=int, default=16, help="of a step")
parser.add_argument("--size", type=int, default=64, help="pixels of a side")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--rate", type=float, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--folder", type=pathlib.Path, required=True)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)


def shoals_name(name):
    """Shoal's name of a parameter or buffer."""
    first, _, rest = name.partition(".")
    if first.startswith("fc"):
        return f"head.{rest}"
    if first.startswith("layer"):
        block, part, rest = rest.split(".", 2)
        place = f"stages.{int(first[5:]) - 1}.{block}."
    else:
        place, part = "", first
    if part == "downsample":
        index, rest = rest.split(".", 1)
        return place + ("shortcut." if index == "0" else "shortcut.norm.") + rest
    norm = part.startswith("bn")
    conv = f"conv{part[-1]}" if place else "stem.0"
    return f"{place}{conv}." + ("norm." if norm else "") + rest


def in_shoals_layout(tensor):
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).detach().float().contiguous()


def loss_and_gradients(model, x, labels):
    model.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    return loss.item()


model = getattr(torchvision.models, args.model)(num_classes=args.classes)
for name, buffer in model.named_buffers():  # as after training
    if name.endswith("running_mean"):
        buffer.normal_(0, 0.1)
    elif name.endswith("running_var"):
        buffer.uniform_(0.5, 1.5)
state = {shoals_name(name): in_shoals_layout(tensor) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
save_file(state, args.folder / "init.safetensors")
images = torch.randn(args.steps, args.images, 3, args.size, args.size)
labels = torch.randint(0, args.classes, (args.steps, args.images))
save_file({"images": images.permute(0, 1, 3, 4, 2).contiguous(), "labels": labels.int()}, args.folder / "images.safetensors")

whole = copy.deepcopy(model).double()
model = model.to(memory_format=torch.channels_last)
first = images[0].to(memory_format=torch.channels_last)
model.eval()
with torch.no_grad():
    logits = model(first).tolist()
model.train()
losses, errors = [], {}
for batch in range(min(5, args.steps)):
    loss_and_gradients(model, images[batch].to(memory_format=torch.channels_last), labels[batch])
    loss_and_gradients(whole, images[batch].double(), labels[batch])
    for (name, single), exact in zip(model.named_parameters(), whole.parameters()):
        errors.setdefault(shoals_name(name), []).append(((single.grad.double() - exact.grad).norm() / exact.grad.norm()).item())
optimizer = torch.optim.SGD(whole.parameters(), lr=args.rate)
for step in range(args.steps):
    losses.append(loss_and_gradients(whole, images[step].double(), labels[step]))
    optimizer.step()
print(json.dumps({"logits": logits, "losses": losses, "gradient_errors": errors}))
