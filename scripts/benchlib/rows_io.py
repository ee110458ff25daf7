# SPDX-License-Identifier: Apache-2.0
"""Rows 3 and 7: reading a clone of many, and the memory of the daemon."""

import contextlib
import time

from .measure import fill, helper, process_memory, read_speed, rotated, scatter
from .rows_clone import over
from .sandbox import GIB, MIB


def end_of_a_chain(bench):
    """bench_chain chain first PREFIX COUNT WRITES SEED: a clone of a clone of a clone, with WRITES
    4 KiB writes in each; bench_io read FILE random|sequential COUNT SEED buffered|direct of the
    last and of the first."""
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
    """For each file: bench_io fill, bench_io write of 20,000 blocks, bench_io read; then the
    daemon's /proc/PID/smaps_rollup. Rss counts pages shared with others (binary, mapped
    segments) in full, Pss by share, Anonymous is what only the daemon's own heap holds. "Own": Pss
    without the pages of the store's files on tmpfs, which are in memory whether it maps them or
    not."""
    s = bench.scale
    bench.sandbox.need("row 7", s.unique_gib * GIB * 2)
    room = s.unique_gib * GIB + 2 * GIB
    found = {}
    for make in (lambda k: [bench.cowfs(k, room)],
                 lambda k: bench.passthrough(k, 7, room, "splice")):
        with contextlib.ExitStack() as stack:
            for target in filter(None, make(stack)):
                found[target.name] = memory_steps(bench, target)
    steps = ["idle mount"] + [f"after writing, overwriting and reading {n} GiB"
                              for n in range(1, s.unique_gib + 1)] + ["3 s later"]
    for number, step in enumerate(steps):
        samples = {n: [own_memory(f[number])] for n, f in found.items()}
        for kind in ("Pss", "Rss", "Anonymous"):
            if "cowfs" in found:
                samples[f"cowfs {kind}"] = [found["cowfs"][number][kind]]
        bench.report.add(7, f"daemon's own memory, {step}", "B", {"cowfs": [], **samples},
                         skipped=bench.cowfs_missing)
    slopes = {n: [(own_memory(f[s.unique_gib]) - own_memory(f[1])) / (s.unique_gib - 1)]
              for n, f in found.items() if s.unique_gib > 1}
    if slopes:
        bench.report.add(7, f"more memory per GiB of unique data, from 1 to {s.unique_gib} GiB",
                         "B", {"cowfs": [], **slopes}, skipped=bench.cowfs_missing)


def own_memory(found):
    return found["Pss"] - found["Pss_Shmem"]


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
