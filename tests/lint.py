#!/usr/bin/env python3
"""Layering, file length, formatting: what a reviewer should not have to say. Prints every finding, exits 1 if there is one."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAY_SEE = {
    "runtime": {"runtime"},
    "comm": {"runtime", "comm"},
    "parallel": {"runtime", "comm", "parallel"},
    "optim": {"runtime", "comm", "parallel", "optim"},
    "models": {"runtime", "comm", "parallel", "models"},
    "launch": {"runtime", "comm", "parallel", "optim", "models", "launch"},
}
# .proto files follow their own direction: a job's parts import only sizes and durations.
LONGEST = 800
INCLUDE = re.compile(r'^\s*#\s*include\s+"([a-z_]+)/', re.M)
IMPORT = re.compile(r'^import\s+"([a-z_]+)/', re.M)


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in out.stdout.split() if (ROOT / line).is_file()]


def main():
    findings = []
    sources = tracked("*.cc", "*.h", "*.cu", "*.cuh", "*.proto", "*.py")
    for path in sources:
        relative = path.relative_to(ROOT)
        text = path.read_text()
        lines = text.count("\n")
        if lines > LONGEST:
            findings.append(f"{relative}: {lines} lines; more than {LONGEST} is two files")
        if re.search(r"\b(TODO|FIXME|XXX)\b", text) and relative.name != "lint.py":
            findings.append(f"{relative}: an unfinished note (TODO, FIXME, XXX)")
        folder = relative.parts[0]
        if folder in MAY_SEE:
            for seen in set((IMPORT if path.suffix == ".proto" else INCLUDE).findall(text)):
                if seen in MAY_SEE and seen not in MAY_SEE[folder]:
                    findings.append(f"{relative}: {folder} includes {seen}, which is above it")
    code = [str(p) for p in sources if p.suffix in (".cc", ".h")]
    formatted = subprocess.run(["clang-format", "--dry-run", "--Werror", *code], capture_output=True, text=True)
    bad = sorted(set(line.split(":")[0] for line in formatted.stderr.splitlines() if "clang-format-violations" in line))
    findings += [f"{pathlib.Path(p).relative_to(ROOT)}: not formatted; run clang-format -i" for p in bad]
    print("\n".join(findings) if findings else f"lint: {len(sources)} files, nothing to say")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
