# SPDX-License-Identifier: Apache-2.0
"""Rows fuse, buffered, fault, scaling: the road of a request, beside
passthrough_hp in all its modes and beside XFS."""

import contextlib
import itertools

from .measure import best_of, fill, fio, helper, median, race, random_io
from .rows_clone import over
from .sandbox import GIB, MIB
from .targets import PASSTHROUGH_MODES, PEER, bdi_settings, set_bdi


def ready(bench, targets, size_bytes):
    """A file of that size in each; those over one directory share it."""
    done = set()
    for target in targets:
        if target.volume not in done:
            fill(bench, target.path("file"), size_bytes, seed=1)
            target.sync()
            done.add(target.volume)


def alike(own, peers):
    """A daemon may lift its mount's limits. All get the same, or the figure
    would be of the kernel's settings and not of the daemons."""
    settings = bdi_settings((own + peers)[0]) if own + peers else {}
    for target in peers:
        set_bdi(target, settings)
    return settings


def caches(name):
    """--direct-io gives the page cache up."""
    return "--direct-io" not in name


def add_raced(bench, row, what, unit, samples, goal, higher=True, ratio_of="of the best mode"):
    """A line of cowfs as it is by default against the best of passthrough_hp's modes; the others
    are in the JSON. Where another mode of cowfs is better, a second one: best to best."""
    peers = [n for n in samples if n.startswith(PEER)]
    own = [n for n in samples if n.startswith("cowfs") and samples[n]]
    best = best_of(samples, peers, higher)
    ratio = over(samples, "cowfs", best) if higher else over(samples, best, "cowfs")
    line = bench.report.add(row, what, unit, {"cowfs": [], **samples}, ratio, ratio_of, goal,
                            unshown=tuple(n for n in peers if n != best),
                            skipped=bench.cowfs_missing)
    mode = best_of(samples, own, higher)
    if mode not in ("", "cowfs"):
        both = {"cowfs": samples[mode], **({best: samples[best]} if best else {})}
        ratio = over(both, "cowfs", best) if higher else over(both, best, "cowfs")
        bench.report.add(row, f"{what}: cowfs's best mode ({mode.removeprefix('cowfs -o ')})",
                         unit, both, ratio, ratio_of, goal)
    return line


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
FLOOR_BYTES_PER_S = 2e9


def is_short(job):
    """4 KiB, O_DIRECT, one at a time: half a second, and the least steady."""
    return job[2] == "4k" and job[3] == "psync" and job[5]


def direct_modes(bench, stack, row, room):
    """What a hypervisor that uses O_DIRECT may choose."""
    return [bench.cowfs_variant(stack, row, room, *options)
            for options in (("io_uring",), ("io_uring", "nowriteback"))]


def beside_passthrough(bench):
    """Over one file that is there already: fio --filename=FILE --rw=randread|randwrite|read|write
    --bs=4k|1m --direct=0|1 --ioengine=psync|libaio --iodepth=1|16 --end_fsync=1, with the page
    cache dropped before. Peer: passthrough_hp --nopassthrough over tmpfs, in each of its modes
    (with io_uring: echo Y >/sys/module/fuse/parameters/enable_uring); the first round is of all,
    the others of the best two of each job; 4 KiB one at a time in more rounds, since where the
    scheduler puts who asks and who answers makes a factor of three. All mounts have cowfs's
    read_ahead_kb, max_ratio and strict_limit."""
    s = bench.scale
    size_bytes = bench.scaled(8, "the file", s.unit_bytes, bench.sandbox.fit(s.unit_bytes, 8))
    room = size_bytes * 2 + GIB
    with contextlib.ExitStack() as stack:
        own = [bench.cowfs(stack, room), *direct_modes(bench, stack, 8, room)]
        own = [t for t in own if t]
        peers = bench.passthrough(stack, 8, size_bytes + GIB, *PASSTHROUGH_MODES)
        ready(bench, own + peers, size_bytes)
        settings = alike(own, peers)
        figures = {}
        for short, rounds in ((False, max(2, s.rounds * 4 // 5)), (True, 2 * s.rounds - 1)):
            figures |= race(own + peers, [j for j in JOBS if is_short(j) == short], rounds,
                            lambda target, job, number: one_job(bench, target, job, size_bytes,
                                                                number),
                            peers, caches)
    for job in JOBS:
        unit, direct = ("IOPS" if job[2] == "4k" else "B/s"), job[5]
        samples = figures[job]
        if not direct:
            samples = {n: v for n, v in samples.items() if caches(n)}
        line = add_raced(bench, 8, job[0], unit, samples, (">=", 1.0 if direct else 0.8))
        if direct and unit == "B/s":
            tell_floor(bench, line)
    bench.report.note(8, "the kernel's settings of all mounts: "
                         + ", ".join(f"{k} {v}" for k, v in settings.items()))


def tell_floor(bench, line):
    """2 GB/s are asked for where passthrough_hp does them."""
    best = max((median(v) for n, v in line.samples.items() if n.startswith(PEER) and v), default=0)
    value = median(line.samples["cowfs"])
    if value is not None:
        bench.report.add(8, line.what, line.unit, {"cowfs": line.samples["cowfs"]},
                         value / FLOOR_BYTES_PER_S, "of 2 GB/s",
                         (">=", 1.0) if best >= FLOOR_BYTES_PER_S else None)


def one_job(bench, target, job, size_bytes, round_number):
    _, pattern, block, engine, depth, direct, ops = job
    amount = getattr(bench.scale, ops) * 4096 if ops else size_bytes
    got = fio(bench, target.path("file"), pattern, block, engine, depth, direct,
              min(amount, size_bytes), size_bytes, seed=1000 + round_number)
    return got["iops"] if block == "4k" else got["bytes_per_s"]


def buffered(bench):
    """Through the page cache. Read: the file is read once (cat), then fio --rw=randread --bs=4k
    --ioengine=psync --invalidate=0 --time_based. Writes: fio --rw=randwrite --bs=4k|64k
    --ioengine=psync --end_fsync=1. Peers: XFS on a loop device on tmpfs, mkfs's and mount's
    defaults; passthrough_hp as in row fuse, with
    cowfs's read_ahead_kb and limits."""
    s = bench.scale
    size_bytes = bench.scaled(10, "the file", s.unit_bytes, bench.sandbox.fit(s.unit_bytes, 7))
    room = size_bytes * 2 + GIB
    jobs = {"4 KiB random read, warm": ("randread", "4k"),
            "4 KiB random write": ("randwrite", "4k"), "64 KiB random write": ("randwrite", "64k")}
    with contextlib.ExitStack() as stack:
        own = [t for t in (bench.cowfs(stack, room), bench.loop(stack, 10, "xfs", room)) if t]
        peers = bench.passthrough(stack, 10, size_bytes + GIB, *PASSTHROUGH_MODES)
        ready(bench, own + peers, size_bytes)
        alike(own[:1], peers)

        def measure(target, job, number):
            pattern, block = jobs[job]
            if pattern == "randread":
                bench.sandbox.run("dd", f"if={target.path('file')}", "of=/dev/null", "bs=1M")
            block_bytes = int(block[:-1]) << 10
            amount = min(size_bytes, s.buffered_ops * 4096 * (1 if block == "4k" else 4))
            got = fio(bench, target.path("file"), pattern, block, "psync", 1, False,
                      amount // block_bytes * block_bytes, size_bytes, 2000 + number,
                      warm_seconds=1 if pattern == "randread" else 0)
            return got["iops"] if block == "4k" else got["bytes_per_s"]

        figures = race(own + peers, jobs, max(3, s.rounds), measure, peers, caches)
    for job, (pattern, block) in jobs.items():
        unit = "IOPS" if block == "4k" else "B/s"
        samples = {n: v for n, v in figures[job].items() if not n.startswith(PEER)}
        bench.report.add(10, f"{job}, against XFS", unit, {"cowfs": [], **samples},
                         over(samples, "cowfs", "XFS"), "of XFS",
                         (">=", 0.95 if pattern == "randread" else 0.5),
                         skipped=bench.cowfs_missing)
        samples = {n: v for n, v in figures[job].items() if n != "XFS"}
        add_raced(bench, 10, f"{job}, against passthrough_hp", unit,
                  {n: v for n, v in samples.items() if caches(n)},
                  (">=", 1.0) if pattern == "randwrite" else None)
        if pattern == "randwrite":
            rest = {n: v for n, v in samples.items() if not caches(n)}
            add_raced(bench, 10, f"{job}, against passthrough_hp with --direct-io (no page cache)",
                      unit, {"cowfs": samples.get("cowfs", []), **rest}, None)


LIFTED = ", raised"


def fault_in(bench):
    """bench_map touch shared sequential|random cold SEED FILE: O_RDWR, MAP_SHARED, the file's pages
    dropped (mincore looked: a warning if any stayed), then every page is read once. Peer:
    passthrough_hp --nopassthrough in its modes with the kernel's own read_ahead_kb, and with
    cowfs's."""
    s = bench.scale
    size_bytes = bench.scaled(11, "the file", s.unit_bytes, bench.sandbox.fit(s.unit_bytes, 5))
    jobs = ("sequential", "random")
    with contextlib.ExitStack() as stack:
        own = [t for t in (bench.cowfs(stack, size_bytes * 2 + GIB),
                           bench.cowfs_variant(stack, 11, size_bytes * 2 + GIB, "io_uring")) if t]
        peers = bench.passthrough(stack, 11, size_bytes + GIB, "splice", "nosplice", "io_uring")
        lifted = bench.passthrough(stack, 11, size_bytes + GIB, "splice", "nosplice")
        if own:
            for target in lifted:
                set_bdi(target, bdi_settings(own[0]))
                target.name += LIFTED
        peers += lifted
        ready(bench, own + peers, size_bytes)

        def measure(target, job, number):
            got = helper(bench, "bench_map", "touch", "shared", job, "cold", number,
                         target.path("file"))
            if got["resident_pages"] > 0:
                bench.report.warn(f"{got['resident_pages']:.0f} pages could not be dropped from "
                                  f"{target.name} before it was mapped")
            return got["touch_us"] / 1e6

        figures = race(own + peers, jobs, max(3, s.rounds), measure, peers,
                       lambda name: name.endswith(LIFTED), higher=False)
    for job in jobs:
        what = f"cold MAP_SHARED fault-in of {size_bytes // MIB} MiB, {job}"
        alike = {n: v for n, v in figures[job].items() if not n.endswith(LIFTED)}
        add_raced(bench, 11, what, "s", alike, (">=", 1.5), higher=False,
                  ratio_of="times as fast as the best mode")
        alike = {n: v for n, v in figures[job].items()
                 if not n.startswith(PEER) or n.endswith(LIFTED)}
        add_raced(bench, 11, f"{what}, the peer's read-ahead raised like cowfs's", "s", alike, None,
                  higher=False, ratio_of="times as fast as the best mode")


def scaling(bench):
    """bench_rand read|write direct 500 SEED FILE…: a thread a file, 4 KiB requests with O_DIRECT at
    random places; "one file": all threads on the same. Peer: passthrough_hp --nopassthrough
    --nosplice, also with --direct-io, and that over io_uring."""
    s = bench.scale
    size_bytes = s.scaling_bytes
    room = 4 * size_bytes * 2 + GIB
    jobs = [*itertools.product(("read", "write"), (1, 2, 4), ("",)),
            *itertools.product(("read", "write"), (4,), (", one file",))]
    with contextlib.ExitStack() as stack:
        own = [t for t in (bench.cowfs(stack, room), *direct_modes(bench, stack, 20, room)) if t]
        peers = bench.passthrough(stack, 20, room, "nosplice", "direct-io",
                                  "io_uring, direct-io")
        for target in own + peers[:1]:  # the peers are over one directory
            for n in range(4):
                fill(bench, target.path(f"file{n}"), size_bytes, seed=n)
            target.sync()

        def measure(target, job, number):
            kind, threads, one = job
            files = [target.path("file0" if one else f"file{n}") for n in range(threads)]
            return random_io(bench, kind, "direct", 500, number, *files)["per_s"]

        figures = race(own + peers, jobs, max(3, s.rounds), measure)
    for kind, threads, one in jobs:
        samples = figures[kind, threads, one]
        add_raced(bench, 20, f"4 KiB random {kind}, O_DIRECT, {threads} "
                             f"thread{'s' * (threads > 1)}{one}", "IOPS", samples, None)
    for kind in ("read", "write"):
        one = {n: median(v) for n, v in figures[kind, 1, ""].items() if v}
        scale = {n: [median(figures[kind, 4, ""][n]) / v] for n, v in one.items() if v}
        bench.report.add(20, f"4 threads over 1, random {kind}", "x", {"cowfs": [], **scale},
                         scale.get("cowfs", [None])[0], "times", skipped=bench.cowfs_missing)
