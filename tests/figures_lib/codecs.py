"""Figures of codecs on one core: against copying the same elements, and of the error pass against one encoding."""
import statistics

from figures_lib.measure import SHOAL, at_least, at_most, repeats, run_json, spelled


def shoal_codec(name, steps=11):
    result = run_json([SHOAL, "bench", "codec", f"--codec={name}", f"--steps={steps}", "--warmup=2"])
    return dict(result["codecs"][0], gigabytes=4e-9 * result["parameters"])


def codecs():
    """Codecs over 16 Mi elements on one core: share of a copy's bytes/s; errors of all options of a family over one encoding."""
    done = repeats(lambda: {name: shoal_codec(name) for name in ("q4", "topk_0.01", "ecsq_3")}, threads=1)

    def rates(name, what):
        return spelled((r[name]["gigabytes"] / statistics.median(r[name][what]) for r in done.results), "{:.1f}", "GB/s")

    def times(name, what):
        return spelled((1e3 * statistics.median(r[name][what]) for r in done.results), "{:.1f}", "ms")

    def ratios(name, above, below):
        return [statistics.median(a / b for a, b in zip(r[name][above], r[name][below])) for r in done.results]
    rows = []
    for row, name, what, goal in (("q4_encode", "q4", "encode_seconds", 0.35), ("q4_decode_add", "q4", "decode_add_seconds", 0.7),
                                  ("topk_encode", "topk_0.01", "encode_seconds", 0.1)):
        rows.append(at_least(row, rates(name, what), rates(name, "copy_seconds"), ratios(name, "copy_seconds", what), goal, done.note, unit=""))
    for row, name in (("quantise_errors", "q4"), ("topk_errors", "topk_0.01"), ("entropy_coded_errors", "ecsq_3")):
        rows.append(at_most(row, times(name, "errors_seconds"), times(name, "encode_seconds"), ratios(name, "errors_seconds", "encode_seconds"), 2.5, done.note))
    return rows
