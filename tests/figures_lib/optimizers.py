"""Figures of optimizers: updates against the memory's rate and PyTorch's, Muon's matrices by owner."""
import statistics

from figures_lib import peers
from figures_lib.measure import BYTELM, SHOAL, Options, at_least, at_most, repeats, run_json, shoal_bench, spelled

PARAMETERS = 100_000_000


def shoal_optimizer(kind, threads=2, steps=11):
    return run_json([SHOAL, "bench", "optimizer", f"--kind={kind}", f"--parameters={PARAMETERS}", f"--threads={threads}", f"--steps={steps}", "--warmup=1"])


def torch_optimizer(kind, threads=2, steps=11):
    return run_json([peers.Peers.python, peers.SCRIPTS / "torch_optimizer.py", f"--kind={kind}", f"--parameters={PARAMETERS}", f"--threads={threads}",
                     f"--steps={steps}"])


def rate_share(result):
    """Bytes per second of the updates over those of the kernel that only moves memory, in turn with it over the same memory."""
    pairs = zip(result["step_seconds"], result["stream_seconds"])
    return statistics.median(result["bytes_per_parameter"] / step / (result["stream_bytes_per_parameter"] / stream) for step, stream in pairs)


def optimizers():
    """AdamW, LARS and LAMB over 100M parameters: share of the bytes/s of an in-place kernel that reads 4 streams and writes 3."""
    rows = []
    for kind in ("adamw", "lars", "lamb"):
        done = repeats(lambda: shoal_optimizer(kind))
        steps = spelled((1e3 * statistics.median(r["step_seconds"]) for r in done.results), "{:.1f}", "ms")
        bytes_per_parameter = done.results[0]["bytes_per_parameter"]
        streams = (r["stream_bytes_per_parameter"] * r["parameters"] / 1e9 / statistics.median(r["stream_seconds"]) for r in done.results)
        rows.append(at_least(f"optimizer_{kind}", steps, spelled(streams, "{:.1f}", "GB/s moved"), [rate_share(r) for r in done.results], 0.90, unit="",
                             note="; ".join(filter(None, (f"{bytes_per_parameter:.0f} bytes a parameter", done.note)))))
    return rows


def optimizers_torch():
    """AdamW, and the global norm's clip before it, against torch.optim.AdamW(fused=True) and clip_grad_norm_."""
    rows = []
    for kind, goal in (("adamw", 0.97), ("clip_adamw", 1.4)):
        def measure():
            results = [shoal_optimizer(kind), torch_optimizer(kind) if peers.torch() else None]
            return tuple(r and statistics.median(r["step_seconds"]) for r in results)
        done = repeats(measure)
        pairs = [(ours, theirs) for ours, theirs in done.results if theirs]
        rows.append(at_least(f"optimizer_{kind}_torch", spelled((1e3 * ours for ours, _ in done.results), "{:.1f}", "ms"),
                             spelled((1e3 * theirs for _, theirs in pairs), "{:.1f}", "ms") if pairs else peers.NO_TORCH,
                             [theirs / ours for ours, theirs in pairs], goal, done.note))
    return rows


def muon_owners():
    """Muon's update and gather of the byte-LM on two ranks: matrices shared out among owners over every rank doing all."""
    done = repeats(lambda: shoal_bench("muon", BYTELM, 8, 256, "--threads=1", f"--steps={max(3, Options.repeats)}", "--warmup=1"))

    def cell(which, what="ms"):
        return spelled((1e3 * statistics.median(r[which]) for r in done.results), "{:.0f}", what)
    ratios = [statistics.median(r["owner_seconds"]) / statistics.median(r["every_rank_seconds"]) for r in done.results]
    return [at_most("muon_owners", cell("owner_seconds"), cell("every_rank_seconds", "ms, every rank all"), ratios, 0.6,
                    "; ".join(filter(None, ("one thread a rank; with steps of 2,048 tokens", done.note))))]
