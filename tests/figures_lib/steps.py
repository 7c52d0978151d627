"""Figures of whole training steps: models against the peers, bf16, ranks, and the time until the first step."""
import subprocess
import time

from figures_lib import peers
from figures_lib.measure import (BYTELM, GPT2, GPT_TINY, MPIRUN, SHOAL, at_least, at_most, lasts_at_most, median, notes, rate, repeats, shoal_step, spelled,
                                 within)


def share_of_peak(result, model, tokens, peak):
    """A step's products, 6 per parameter that is multiplied and token and the causal half of attention, over the sgemm peak."""
    flops = result["tokens"] * (6 * (result["parameters"] - result["embedding_parameters"]) + 6 * model["layers"] * model["width"] * tokens)
    return flops / median(result) / 1e9 / peak


def against_peers(name, model, batch, tokens, goal, steps, sets=(), share_goal=None, memory_goal=None, llmc_goal=None):
    """Whole steps against the better of PyTorch eager and compile, and with `llmc_goal` against llm.c (4 x 64 only)."""
    def measure():
        ours = shoal_step(model, batch, tokens, steps=steps, sets=sets)
        theirs = min((peers.torch_step(model, batch, tokens, mode, steps=steps) for mode in ("eager", "compile")), key=median) if peers.torch() else None
        return ours, theirs, peers.llmc_step(steps=steps) if llmc_goal and peers.llmc() else None
    done = repeats(measure)
    ours = [o for o, _, _ in done.results]
    pairs = [(o, t) for o, t, _ in done.results if t]
    shares = [share_of_peak(o, model, tokens, peak) for o, peak in zip(ours, done.peaks)]
    speed = spelled(map(rate, ours), unit="tok/s")
    rows = [at_least(name, speed, spelled((rate(t) for _, t in pairs), unit="tok/s") if pairs else peers.NO_TORCH, [rate(o) / rate(t) for o, t in pairs], goal,
                     notes(spelled((100 * s for s in shares), unit="% of sgemm peak"), done.note))]
    if llmc_goal:
        both = [(o, c) for o, _, c in done.results if c]
        rows.append(at_least(f"{name}_llmc", speed, spelled((rate(c) for _, c in both), unit="tok/s") if both else peers.NO_LLMC,
                             [rate(o) / rate(c) for o, c in both], llmc_goal, done.note))
    if share_goal:
        rows.append(at_least(f"{name}_share_of_peak", speed, spelled(done.peaks, unit="GFLOP/s sgemm"), shares, share_goal, done.note, unit=""))
    if memory_goal:
        def mib(results):
            return spelled((r["peak_rss_bytes"] / 2**20 for r in results), unit="MiB")
        rows.append(at_most(f"{name}_memory", mib(ours), mib(t for _, t in pairs) if pairs else peers.NO_TORCH,
                            [o["peak_rss_bytes"] / t["peak_rss_bytes"] for o, t in pairs], memory_goal, "anonymous + shared resident high-water"))
    return rows


def step_bytelm():
    """The byte-LM (LLaMA style, 10.8M parameters), 8 x 256 tokens, fp32."""
    return against_peers("step_bytelm", BYTELM, 8, 256, 1.35, steps=10, share_goal=0.85)


def step_gpt2_short():
    """GPT-2 124M with tied head, 4 x 64 tokens, fp32; also against llm.c's CPU program."""
    return against_peers("step_gpt2_4x64", GPT2, 4, 64, 1.4, steps=5, llmc_goal=3.5)


def step_gpt2_long():
    """GPT-2 124M, 1 x 1024 tokens, fp32, and its peak memory; once more with the MLPs of 4 of its 12 blocks recomputed."""
    recompute = ["parallel.recompute=MLP", "parallel.recompute_blocks=4"]
    return (against_peers("step_gpt2_1x1024", GPT2, 1, 1024, 1.25, steps=3, memory_goal=0.65) +
            against_peers("step_gpt2_1x1024_4_mlps_recomputed", GPT2, 1, 1024, 1.25, steps=3, sets=recompute, memory_goal=0.65))


def bf16():
    """The byte-LM in bf16 over our fp32, and against PyTorch's autocast where the processor has bf16 instructions."""
    def measure():
        narrow = shoal_step(BYTELM, 8, 256, sets=["runtime.compute=BF16"])
        return (shoal_step(BYTELM, 8, 256), narrow,
                peers.torch_step(BYTELM, 8, 256, extra=["--dtype=bf16"]) if peers.torch() and narrow["bf16_native"] else None)
    done = repeats(measure)
    native = done.results[0][1]["bf16_native"]
    speed = spelled((rate(n) for _, n, _ in done.results), unit="tok/s")
    rows = [at_least("bf16_over_fp32", speed, spelled((rate(w) for w, _, _ in done.results), unit="tok/s in fp32"),
                     [rate(n) / rate(w) for w, n, _ in done.results], 1.5 if native else 0.85,
                     notes("bf16 instructions" if native else "no bf16 instructions: panels widened", done.note))]
    if native:
        pairs = [(n, t) for _, n, t in done.results if t]
        rows.append(at_least("bf16_torch", speed, spelled((rate(t) for _, t in pairs), unit="tok/s") if pairs else peers.NO_TORCH,
                             [rate(n) / rate(t) for n, t in pairs], 1.3, done.note))
    return rows


def ranks():
    """The byte-LM on 2 ranks of 1 thread under mpirun: over 1 rank of 2 threads, what communication it exposes, against PyTorch DDP."""
    def measure():
        return (shoal_step(BYTELM, 8, 256), shoal_step(BYTELM, 8, 256, launcher=MPIRUN, threads=1),
                shoal_step(BYTELM, 8, 256, launcher=MPIRUN, threads=1, sets=["comm.fake=true"]), peers.torch_ddp(BYTELM, 4, 256) if peers.torch() else None)
    done = repeats(measure)
    speed = spelled((rate(two) for _, two, _, _ in done.results), unit="tok/s")
    # A DDP process reports its own half of the tokens.
    pairs = [(rate(two), 2 * rate(ddp)) for _, two, _, ddp in done.results if ddp]
    return [at_least("ranks_2x1_over_1x2", speed, spelled((rate(one) for one, _, _, _ in done.results), unit="tok/s of 1 rank x 2 threads"),
                     [rate(two) / rate(one) for one, two, _, _ in done.results], 0.95, done.note),
            at_most("ranks_exposed", speed, spelled((rate(fake) for _, _, fake, _ in done.results), unit="tok/s, fake communicator"),
                    [1 - median(fake) / median(two) for _, two, fake, _ in done.results], 0.05, notes("share of a step", done.note), unit=""),
            at_least("ranks_ddp", speed, spelled((theirs for _, theirs in pairs), unit="tok/s") if pairs else peers.NO_TORCH,
                     [ours / theirs for ours, theirs in pairs], 1.15, done.note)]


def zero():
    """ZeRO 1, 2 and 3 in turn on 2 ranks of 1 thread under mpirun: step times over stage 1, and each stage's memory over its prediction."""
    rows = []
    for name, model, batch, steps in (("gpt_tiny", GPT_TINY, 32, 10), ("bytelm", BYTELM, 8, 10)):
        def measure():
            return {stage: shoal_step(model, batch, 256, launcher=MPIRUN, threads=1, steps=steps, sets=[f"parallel.zero={stage}"]) for stage in (1, 2, 3)}
        done = repeats(measure)

        def times(stage):
            return [1e3 * median(r[stage]) for r in done.results]
        for stage in (2, 3):
            rows.append(at_most(f"zero_{stage}_{name}", spelled(times(stage), unit="ms"), spelled(times(1), unit="ms of ZeRO 1"),
                                [ours / first for ours, first in zip(times(stage), times(1))], 1.15, done.note))
        for stage in (1, 2, 3):
            def mib(what):
                return [r[stage][what] / 2**20 for r in done.results]
            predicted, measured = mib("predicted_bytes"), mib("peak_rss_bytes")
            rows.append(within(f"zero_{stage}_{name}_memory", spelled(predicted, "{:.1f}", "MiB predicted"), spelled(measured, "{:.1f}", "MiB measured"),
                               [p / m for p, m in zip(predicted, measured)], 0.05))
    return rows


def startup():
    """`shoal --help`, and from the command to the start and to the end of the byte-LM's first step; the end against PyTorch eager."""
    def measure():
        begin = time.perf_counter()
        subprocess.run([SHOAL, "--help"], capture_output=True, check=True)
        help_seconds = time.perf_counter() - begin
        return (help_seconds, shoal_step(BYTELM, 8, 256, steps=1, warmup=0),
                peers.torch_step(BYTELM, 8, 256, steps=1, extra=["--warmup=0"]) if peers.torch() else None)
    done = repeats(measure)
    helps, starts = [h for h, _, _ in done.results], [o["start_seconds"] for _, o, _ in done.results]
    pairs = [(o["first_step_seconds"], t["first_step_seconds"]) for _, o, t in done.results if t]
    return [lasts_at_most("help", helps, 0.05, done.note), lasts_at_most("first_step_start", starts, 0.3, done.note),
            at_most("first_step_end", spelled((o["first_step_seconds"] for _, o, _ in done.results), "{:.2f}", "s"),
                    spelled((t for _, t in pairs), "{:.2f}", "s") if pairs else peers.NO_TORCH, [o / t for o, t in pairs], 1 / 3, done.note)]
