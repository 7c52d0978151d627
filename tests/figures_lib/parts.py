"""Figures of parts: attention, checkpoints, activations, the cost of tracing, the build."""
import shutil
import statistics
import subprocess
import tempfile
import time

from figures_lib import peers
from figures_lib.measure import BYTELM, GPT2, ROOT, SHOAL, Options, at_least, at_most, at_most_paired, lasts_at_most, repeats, run_json, shoal_bench, spelled


def attention():
    """Attention forward and backward over one document of 16k tokens: share of the sgemm peak, and against PyTorch's."""
    rows, tokens, size = [], 16384, 64
    for heads, goal in ((4, 0.70), (1, 0.55)):
        def measure():
            ours = run_json([SHOAL, "bench", "attention", f"--tokens={tokens}", f"--heads={heads}", f"--head_size={size}", "--threads=2"])
            theirs = peers.torch_attention(tokens, heads) if peers.torch() else None
            return tuple(r and statistics.median(r["seconds"]) for r in (ours, theirs))
        done = repeats(measure)
        ours = spelled((o for o, _ in done.results), "{:.2f}", "s")
        shares = [7 * tokens * tokens * size * heads / o / 1e9 / peak for (o, _), peak in zip(done.results, done.peaks)]
        pairs = [(o, t) for o, t in done.results if t]
        rows += [at_least(f"attention_16k_{heads}_heads", ours, spelled(done.peaks, unit="GFLOP/s sgemm"), shares, goal, done.note, unit=""),
                 at_least(f"attention_16k_{heads}_heads_torch", ours, spelled((t for _, t in pairs), "{:.2f}", "s") if pairs else peers.NO_TORCH,
                          [t / o for o, t in pairs], 1.2, done.note)]
    return rows


def checkpoint():
    """124M parameters with AdamW's moments saved and loaded: against the disk and the memory with as many bytes."""
    folder = ROOT / "build" / "bench-checkpoint"
    # The first save also makes its buffer, once a run; it does not count.
    first, *saves = shoal_bench("checkpoint", GPT2, 4, 64, f"--steps={1 + Options.repeats}", f"--folder={folder}")["repeats"]

    def ratios(over, under):
        return [save[over] / save[under] for save in saves]

    def cell(seconds, what="s"):
        return spelled((save[seconds] for save in saves), "{:.2f}", what)
    return [at_least("checkpoint_write", cell("save_seconds"), cell("disk_write_seconds", "s of the disk"), ratios("disk_write_seconds", "save_seconds"), 0.7),
            at_least("checkpoint_read", cell("load_seconds"), cell("disk_read_seconds", "s of the disk"), ratios("disk_read_seconds", "load_seconds"), 0.7),
            at_most("checkpoint_pause", cell("pause_seconds"), cell("copy_seconds", "s of a copy"), ratios("pause_seconds", "copy_seconds"), 1.2,
                    f"the first: {first['pause_seconds']:.2f} s")]


def activations():
    """Activation bytes per token of one document of 1k to 16k tokens; the dry run is exact (tests compare it with the arena)."""
    rows = []
    for name, model in (("bytelm", BYTELM), ("gpt2", GPT2)):
        results = shoal_bench("activations", model, 1, 1024)
        saved, peak = ([r[kind] / r["tokens"] for r in results] for kind in ("saved_bytes", "peak_bytes"))
        rows.append(at_most(f"activations_{name}", f"{saved[0]:.0f} to {saved[-1]:.0f} B/token", "-", [max(saved) / min(saved)], 1.05,
                            f"with workspace (one chunk of logits) {peak[0]:.0f} to {peak[-1]:.0f}"))
    return rows


def tracing():
    """The byte-LM's step with a trace over without, 200 pairs in turn; what a step's metrics cost is added."""
    result = shoal_bench("tracing", BYTELM, 8, 256, "--steps=400", "--warmup=2", "--threads=2")
    metrics = result["metrics_seconds"] / statistics.median(result["off"])

    def cell(seconds, what="ms"):
        return f"{1e3 * statistics.median(seconds):.1f} {what}"
    return [at_most_paired("tracing", cell(result["on"]), cell(result["off"], "ms without"), result["on"], result["off"], 1.01, extra=metrics,
                           note=f"of it metrics {100 * metrics:.2f} %")]


def build():
    """The program alone, clean and without ccache, and after a touch of one file; once, whatever --repeats says."""
    folder = tempfile.mkdtemp()

    def seconds():
        begin = time.perf_counter()
        subprocess.run(["cmake", "--build", folder, "-j", "2"], check=True, capture_output=True)
        return time.perf_counter() - begin
    try:
        subprocess.run(["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DSHOAL_TESTS=OFF", "-DCMAKE_CXX_COMPILER_LAUNCHER="], check=True,
                       capture_output=True)
        clean = seconds()
        subprocess.run(["touch", "-c", ROOT / "optim" / "adamw.cc"], check=True)
        touched = seconds()
    finally:
        shutil.rmtree(folder)
    return [lasts_at_most("build_clean", [clean], 240), lasts_at_most("build_touch", [touched], 10)]
