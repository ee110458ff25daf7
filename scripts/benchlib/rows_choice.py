# SPDX-License-Identifier: Apache-2.0
"""Row choice: the kinds of mount beside each other, for whoever has to choose."""

import contextlib

from .measure import fill, helper, random_io, rotated
from .rows_clone import copy_command
from .rows_memory import drop, touch
from .rows_vm import Disk
from .sandbox import GIB, MIB

ROW_CHOICE = 22


def choice(bench):
    """One store for each kind of mount, on tmpfs; without -o of ours is what `cowfs mount`
    chooses: the writeback cache.
    Disks: qemu-img bench as in row qemu on fresh clones, and bench_rand write buffered. Mapped
    snapshots: bench_map many on 4 clones (first touch of the first; PSS and page cache of all),
    and bench_map touch private of a warm clone, with view=DIR all in the view; bench_dirty
    stall for memory that is written."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_CHOICE, "the file", s.unit_bytes // 2,
                              bench.sandbox.fit(s.unit_bytes // 2, 10))
    bench.require_cowfs()
    room, figures = size_bytes * 2 + GIB, {}
    with contextlib.ExitStack() as stack:
        kinds = [("nowriteback",), ("passthrough",), ("view=DIR",)]
        found = [bench.cowfs(stack, room)]
        found += [bench.cowfs_variant(stack, ROW_CHOICE, room, *kind) for kind in kinds]
        found = [t for t in found if t]
        for target in found:
            fill(bench, target.path("base"), size_bytes, seed=1)
            target.sync()
        for number in range(max(3, s.rounds)):
            for target in rotated(found, number):
                for what, value in one_mount(bench, target, size_bytes, number):
                    figures.setdefault(what, {}).setdefault(target.name, []).append(value)
    for (what, unit), samples in figures.items():
        bench.report.add(ROW_CHOICE, what, unit, {t.name: samples[t.name] for t in found})


def one_mount(bench, target, size_bytes, number):
    """Pairs of (what, unit) and value."""
    s, blocks = bench.scale, size_bytes // 4096

    def clone(path):
        return [target.binary, "clone", target.path("base"), path]

    disk = Disk(bench, target.name, clone, "raw", target.directory)
    for kind, cache, aio, depth in (("write", "writeback", "threads", 16),
                                    ("write", "none", "native", 16),
                                    ("read", "none", "native", 16),
                                    ("write", "none", "native", 1),
                                    ("read", "none", "native", 1)):
        path, count = disk.fresh(), min(blocks // 2, s.qd1_ops)
        yield (f"QEMU disk, cache={cache}, 4 KiB {kind}s, {depth} at a time", "IOPS"), \
            disk.requests(path, kind, cache, aio, depth, count, int(blocks * 0.618) | 1)
        bench.sandbox.run("rm", path)
    path = disk.fresh()
    yield ("a program's buffered 4 KiB writes, random, with an fsync at the end", "IOPS"), \
        random_io(bench, "write", "buffered", 1000, number, path)["per_s"]
    got = helper(bench, "bench_dirty", "stall", path, min(blocks, s.stall_pages), "random", number)
    yield ("a mapped memory.snap (MAP_SHARED), random pages changed", "B/s"), \
        got["bytes"] / (got["dirty_us"] / 1e6)
    bench.sandbox.run("rm", path)

    names = [f"clone{n}" for n in range(4)]
    for name in names:
        bench.sandbox.run(*copy_command(target, "base", name))
    drop(bench, *(target.read_path(n) for n in ["base", *names]))
    got = helper(bench, "bench_map", "many", *(target.read_path(n) for n in names))
    size = f"{size_bytes // MIB} MiB"
    yield (f"a snapshot of {size} (MAP_PRIVATE), first touch of all pages", "s"), \
        got["touch_us_0"] / 1e6
    yield ("the same, of a second clone", "s"), got["touch_us_1"] / 1e6
    yield ("the same, once more", "s"), touch(bench, target.read_path("clone1"))
    yield (f"PSS and page cache of 4 clones of {size}", "B"), \
        got["pss_bytes"] + max(0, got["Cached_growth_bytes"] - got["pss_bytes"])
    target.remove(*names)
    target.sync()
