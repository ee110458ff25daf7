# SPDX-License-Identifier: Apache-2.0
"""Lines of the table, as Markdown and as JSON with all raw samples."""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

from .measure import median


def seconds(v):
    return f"{v * 1e6:.0f} µs" if v < 1e-3 else f"{v * 1e3:.2f} ms" if v < 1 else f"{v:.2f} s"


def size(v):
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(v) >= scale:
            return f"{v / scale:.2f} {unit}"
    return f"{v:.0f} B"


FORMATS = {
    "s": seconds,
    "B": size,
    "B/s": lambda v: f"{v / 1e9:.2f} GB/s" if v >= 1e9 else f"{v / 1e6:.0f} MB/s",
    "IOPS": lambda v: f"{v / 1e3:.1f} k/s",
    "x": lambda v: f"{v:.3f}",
    "yes": lambda v: "yes" if v else "no",
}
# Where more is better; elsewhere (seconds, bytes) less is.
MORE_IS_BETTER = ("B/s", "IOPS", "x", "yes")


@dataclasses.dataclass
class Line:
    """One measured thing: cowfs, what stands beside it, and the goal.

    samples: name → raw values, in the order measured. The first name is the
    subject (cowfs); values in the table are medians. ratio: a number, or None
    where nothing is compared. goal: (">=" or "<=", number), or None.
    """

    row: int
    row_name: str
    what: str
    unit: str
    samples: dict
    ratio: float = None
    ratio_of: str = ""
    goal: tuple = None
    subject: str = "cowfs"
    skipped: str = ""
    # Why the goal is missed without a figure: what it takes is not there.
    lacking: str = ""
    # Names that the JSON has and the table does not: a peer's lesser modes.
    unshown: tuple = ()

    def verdict(self):
        if self.lacking:
            return f"**missed**: {self.lacking}"
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.goal is None:
            return ""
        if self.ratio is None:
            return "skipped: nothing to compare with"
        met = self.ratio >= self.goal[1] if self.goal[0] == ">=" else self.ratio <= self.goal[1]
        return "met" if met else "**missed**"

    def _cell(self, name):
        values = self.samples.get(name)
        return FORMATS[self.unit](median(values)) if values else "–"

    def cells(self):
        beside = [f"{n} {self._cell(n)}" for n in self.samples
                  if n != self.subject and self.samples[n] and n not in self.unshown]
        ratio = "–" if self.ratio is None else (
            f"{self.ratio:.0f}" if self.ratio >= 100 else f"{self.ratio:.2f}")
        if self.ratio is not None and self.ratio_of:
            ratio += f" ({self.ratio_of})"
        goal = f"{'≥' if self.goal[0] == '>=' else '≤'} {self.goal[1]:g}" if self.goal else "–"
        return [f"{self.row} {self.row_name}", self.what, self._cell(self.subject),
                ", ".join(beside) or "–", ratio, goal, self.verdict() or "–"]

    def as_dict(self):
        return {**dataclasses.asdict(self), "verdict": self.verdict().strip("*"),
                "medians": {n: median(v) for n, v in self.samples.items()}}


class Report:
    def __init__(self, root, arguments, row_names):
        self.lines, self.notes, self.warnings = [], [], []
        self.row_names = row_names
        self.commands = {}  # row -> how to repeat it
        # Directories of this machine, which have no place in a report.
        self.private = [str(root)]
        self.facts = {
            "bench": "cowfs", "arguments": arguments, "started": _now(),
            **_commit(root), "machine": _machine(), "load_at_start": os.getloadavg(),
            "row_seconds": {},
        }

    @classmethod
    def from_json(cls, *texts):
        """What json() has written. Of several, the facts are the first's; a row
        that a later one has too is the later one's, and a note says which."""
        runs = [json.loads(text) for text in texts]
        report = cls.__new__(cls)
        report.facts = {k: v for k, v in runs[0].items()
                        if k not in ("lines", "notes", "warnings", "commands")}
        report.lines, report.notes, report.commands = [], [], {}
        report.warnings, report.row_names, report.private = [], {}, []
        names = {f.name for f in dataclasses.fields(Line)}
        for run in runs:
            rows = {line["row"] for line in run["lines"]}
            report.lines = [line for line in report.lines if line.row not in rows] + [
                Line(**{k: tuple(v) if isinstance(v, list) else v
                        for k, v in line.items() if k in names}) for line in run["lines"]]
            report.notes = [n for n in report.notes if n[0] not in rows] + [
                (n["row"], n["text"]) for n in run["notes"]]
            report.commands.update({int(k): v for k, v in run["commands"].items()})
            report.warnings += run["warnings"]
            report.row_names.update({line.row: line.row_name for line in report.lines})
            if run is not runs[0]:
                numbers = ", ".join(map(str, sorted(rows)))
                report.notes.append((min(rows), f"of another run: rows {numbers}, commit "
                                     f"{run['commit']}, {run['started']}, by `scripts/bench"
                                     f"{''.join(' ' + a for a in run['arguments'])}`"))
        report.lines.sort(key=lambda line: line.row)
        return report

    def add(self, row, *args, **kwargs):
        line = Line(row, self.row_names.get(row, ""), *args, **kwargs)
        self.lines.append(line)
        say("  " + " | ".join(line.cells()[1:]))
        return line

    def _scrubbed(self, text):
        for path in self.private:
            text = text.replace(path + "/", "").replace(path, "")
        return text

    def skip_row(self, row, what, reason):
        self.add(row, what, "x", {}, skipped=self._scrubbed(reason))

    def note(self, row, text):
        text = self._scrubbed(text)
        self.notes.append((row, text))
        say(f"  note: {text}")

    def warn(self, text):
        text = self._scrubbed(text)
        if text not in self.warnings:
            self.warnings.append(text)
            say(f"  warning: {text}")

    def markdown(self):
        f, m = self.facts, self.facts["machine"]
        load = f.get("load_at_end") or os.getloadavg()
        out = ["| row | what | cowfs | beside it | ratio | goal | result |",
               "| --- | --- | --- | --- | --- | --- | --- |"]
        out += ["| " + " | ".join(line.cells()) + " |" for line in self.lines]
        goals = [line.verdict() for line in self.lines if line.goal]
        missed = sum("missed" in v for v in goals)
        out += ["", f"Of {len(goals)} goals {goals.count('met')} met, {missed} missed, "
                    f"{len(goals) - goals.count('met') - missed} not measured."]
        if self.notes or self.warnings:
            out.append("")
            out += [f"- {self._row(row)}: {text}"
                    for row, text in sorted(self.notes, key=lambda n: n[0])]
            out += [f"- Warning: {text}" for text in self.warnings]
        if self.commands:
            out += ["", "How each row is made:", ""]
            out += [f"- {self._row(row)}: {text}" for row, text in sorted(self.commands.items())]
        out += ["", f"Values are medians of one run with the peers in turn. Commit {f['commit']}"
                    f"{' with changes' if f['changed'] else ''}, {f['started']}, Linux "
                    f"{m['kernel']}, {m['cores']} × {m['cpu']}, "
                    f"{m['memory_bytes'] / (1 << 30):.0f} GiB, load average "
                    f"{f['load_at_start'][0]:.1f} at the start, {load[0]:.1f} at the "
                    f"end (the bench itself makes about 1 to 2). Made by `scripts/bench"
                    f"{''.join(' ' + a for a in f['arguments'])}`."]
        return "\n".join(out) + "\n"

    def _row(self, number):
        return f"Row {number} {self.row_names.get(number, '')}".rstrip()

    def json(self):
        return json.dumps({**self.facts, "ended": _now(), "load_at_end": os.getloadavg(),
                           "lines": [line.as_dict() for line in self.lines],
                           "commands": self.commands,
                           "notes": [{"row": r, "text": t} for r, t in self.notes],
                           "warnings": self.warnings}, indent=1, ensure_ascii=False) + "\n"


def say(text):
    """Progress goes to stderr: stdout is the table's alone."""
    print(text, file=sys.stderr, flush=True)


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _output(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _commit(root):
    git = ("git", "-C", str(root))
    return {"commit": _output(*git, "rev-parse", "--short=12", "HEAD") or "unknown",
            "changed": bool(_output(*git, "status", "--porcelain", "--untracked-files=no"))}


def _machine():
    cpu = [line.partition(":")[2].strip()
           for line in pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
           if line.startswith("model name")]
    return {
        "kernel": platform.release(), "cores": os.cpu_count(), "cpu": cpu[0] if cpu else "unknown",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "tools": {name: (_output(*argv).splitlines() or [""])[0] for name, argv in {
            "fio": ["fio", "--version"], "cp": ["cp", "--version"],
            "mkfs.xfs": ["mkfs.xfs", "-V"], "mkfs.btrfs": ["mkfs.btrfs", "--version"],
            "qemu-img": ["qemu-img", "--version"]}.items()},
    }
