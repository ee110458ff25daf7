# SPDX-License-Identifier: Apache-2.0
"""Rows 3, 7 and 8: reading, writing, and the memory that it takes."""

import contextlib
import time

from .measure import (fill, fio, helper, median, process_memory, read_speed, rotated, scatter)
from .rows_clone import over
from .sandbox import GIB, MIB
from .targets import bdi_settings, set_bdi


def end_of_a_chain(bench):
    """Row 3."""
    s = bench.scale
    bench.require_cowfs()
    own = s.chain * s.chain_writes * 4096
    bench.sandbox.need("row 3", s.unit_bytes * 3 + own)
    speeds = {}
    with contextlib.ExitStack() as stack:
        target = bench.cowfs(stack, s.unit_bytes * 2 + 3 * own + GIB)
        first, prefix = target.path("first"), target.path("chain")
        fill(bench, first, s.unit_bytes, seed=1)
        helper(bench, "bench_chain", "chain", first, prefix, s.chain, s.chain_writes, 7)
        target.sync()
        files = {"cowfs": target.path(f"chain{s.chain}"), "the first file": first}
        kinds = [(pattern, mode) for pattern in ("random", "sequential")
                 for mode in ("buffered", "direct")]
        for round_number in range(2 * s.rounds):
            for pattern, mode in kinds:
                count = s.random_reads if pattern == "random" else 0
                for name, path in rotated(files.items(), round_number):
                    speed = read_speed(bench, path, pattern, count, 100 + round_number, mode)
                    speeds.setdefault((pattern, mode), {}).setdefault(name, []).append(speed)
    for (pattern, mode), samples in speeds.items():
        unit = "4 KiB random" if pattern == "random" else "1 MiB sequential"
        bench.report.add(3, f"{unit} read of the {s.chain:,}th clone in a chain, {mode}", "B/s",
                         {n: samples[n] for n in files}, over(samples, "cowfs", "the first file"),
                         "", (">=", 0.95))
    bench.report.note(3, f"files of {s.unit_bytes // MIB} MiB, {s.chain_writes} random 4 KiB "
                         "writes in each clone before it is cloned on; a file's pages are dropped "
                         "before every read, and mincore looked (a warning below if any stayed)")


def daemon_memory(bench):
    """Row 7. Rss counts pages shared with others (binary, mapped segments) in
    full, Pss by share, Anonymous is what only the daemon's own heap holds."""
    s = bench.scale
    bench.sandbox.need("row 7", s.unique_gib * GIB * 2)
    room = s.unique_gib * GIB + 2 * GIB
    found = {}
    for name, make in (("cowfs", lambda k: bench.cowfs(k, room)),
                       ("passthrough_hp", lambda k: bench.passthrough(k, 7, room, True))):
        with contextlib.ExitStack() as stack:
            target = make(stack)
            if target:
                found[name] = memory_steps(bench, target)
    steps = ["idle mount"] + [f"after writing, overwriting and reading {n} GiB"
                              for n in range(1, s.unique_gib + 1)] + ["3 s later"]
    for number, step in enumerate(steps):
        samples = {n: [f[number]["Pss"]] for n, f in found.items()}
        for kind in ("Rss", "Anonymous"):
            if "cowfs" in found:
                samples[f"cowfs {kind}"] = [found["cowfs"][number][kind]]
        bench.report.add(7, f"daemon's memory (Pss), {step}", "B", {"cowfs": [], **samples},
                         skipped=bench.cowfs_missing)
    slopes = {n: [(f[s.unique_gib]["Pss"] - f[1]["Pss"]) / (s.unique_gib - 1)]
              for n, f in found.items() if s.unique_gib > 1}
    if slopes:
        bench.report.add(7, f"more memory per GiB of unique data, from 1 to {s.unique_gib} GiB",
                         "B", {"cowfs": [], **slopes}, skipped=bench.cowfs_missing)


def memory_steps(bench, target):
    time.sleep(1)
    steps = [process_memory(target.pids())]
    for n in range(1, bench.scale.unique_gib + 1):
        path = target.path(f"unique{n}")
        fill(bench, path, GIB, seed=n)
        scatter(bench, path, 20_000, seed=100 + n)
        read_speed(bench, path, "sequential", 0, 0, "buffered")
        steps.append(process_memory(target.pids()))
    time.sleep(3)
    steps.append(process_memory(target.pids()))
    return steps


# (what, pattern, block, engine, depth, direct, amount: ops of Scale or None for
# the whole file). Reads first: what they read is then as it was written.
JOBS = [
    (f"{size} {order} {verb}, {cache}{depth_text}", f"{prefix}{verb}", block, engine, depth,
     direct, ops)
    for verb in ("read", "write")
    for cache, direct, engine, depth, depth_text in (
        ("buffered", False, "psync", 1, ""),
        ("O_DIRECT", True, "psync", 1, ", 1 at a time"),
        ("O_DIRECT", True, "libaio", 16, ", 16 at a time"))
    for size, order, prefix, block, ops in (
        ("4 KiB", "random", "rand", "4k", "qd16_ops" if depth == 16 else "qd1_ops"),
        ("1 MiB", "sequential", "", "1m", None))
]


def beside_passthrough(bench):
    """Row 8. The goal is set against the better of passthrough_hp's two forms,
    with and without splice, figure by figure."""
    s = bench.scale
    size_bytes = bench.scaled(8, "the file", s.unit_bytes, bench.sandbox.fit(s.unit_bytes, 5))
    room = size_bytes * 2 + GIB
    figures = {}
    with contextlib.ExitStack() as stack:
        found = [bench.cowfs(stack, room), bench.passthrough(stack, 8, room, True),
                 bench.passthrough(stack, 8, room, False)]
        targets = [t for t in found if t]
        for target in targets:
            fill(bench, target.path("file"), size_bytes, seed=1)
            target.sync()
        # A daemon may lift its mount's limits. All get the same, or the figure
        # would be of the kernel's settings and not of the daemons.
        settings = bdi_settings(targets[0]) if targets else {}
        for target in targets[1:]:
            set_bdi(target, settings)
        for round_number in range(max(2, s.rounds * 4 // 5)):
            for job in JOBS:
                for target in rotated(targets, round_number):
                    value = one_job(bench, target, job, size_bytes, round_number)
                    figures.setdefault(job[0], {}).setdefault(target.name, []).append(value)
    for job in JOBS:
        samples = {"cowfs": [], **figures.get(job[0], {})}
        floors = {n: median(v) for n, v in samples.items() if n != "cowfs" and v}
        best = max(floors, key=floors.get) if floors else ""
        bench.report.add(8, job[0], "IOPS" if job[2] == "4k" else "B/s", samples,
                         over(samples, "cowfs", best), "of the better", (">=", 0.8),
                         skipped=bench.cowfs_missing)
    bench.report.note(8, "fio over one file that is there already; page cache dropped before "
                         "each job; writes include a closing fsync. passthrough_hp runs with "
                         "--nopassthrough, thus with the writeback cache, over tmpfs. "
                         "The kernel's "
                         "settings of all mounts, as "
                         f"{targets[0].name if targets else 'nobody'} has set them: "
                         + ", ".join(f"{k} {v}" for k, v in settings.items()))


def one_job(bench, target, job, size_bytes, round_number):
    _, pattern, block, engine, depth, direct, ops = job
    amount = getattr(bench.scale, ops) * 4096 if ops else size_bytes
    got = fio(bench, target.path("file"), pattern, block, engine, depth, direct,
              min(amount, size_bytes), size_bytes, seed=1000 + round_number)
    return got["iops"] if block == "4k" else got["bytes_per_s"]
