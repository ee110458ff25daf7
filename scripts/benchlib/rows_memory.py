# SPDX-License-Identifier: Apache-2.0
"""Rows density, dirty and stalls: the memory of guests as mapped files."""

import contextlib
import dataclasses
import errno

from .measure import fill, helper, race, rotated, scatter
from .rows_clone import copy_command, over
from .sandbox import GIB, MIB, RESERVE_BYTES, CommandFailed, Skip, available_bytes
from .targets import CowfsTarget, bdi_settings, set_bdi

ROW_DENSITY, ROW_DIRTY, ROW_STALLS = 9, 12, 21


def density(bench):
    """golden is brought in by cp from a tmpfs, cloned by `cp`, and
    `bench_map many CLONE…` maps each clone in a process of its own (O_RDONLY, MAP_PRIVATE, as
    Firecracker), touches every page, and tells Pss and what /proc/meminfo's Cached grew by. A page
    that is cached and mapped counts once: PSS + (growth of Cached beyond it). cowfs is mounted with
    -o passthrough where it has that. Peer: XFS reflinks on a loop device."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_DENSITY, "the memory.snap", s.density_bytes,
                              bench.sandbox.fit(s.density_bytes, 4.5))
    room = size_bytes * 2 + GIB
    found = {}
    with contextlib.ExitStack() as stack:
        tmpfs = bench.tmpfs(stack, ROW_DENSITY, size_bytes + GIB)
        if not tmpfs:
            raise Skip("it needs a tmpfs to stand beside")
        fill(bench, tmpfs.path("golden"), size_bytes, seed=1)
        with contextlib.ExitStack() as inner:
            own = sharing_cowfs(bench, inner, room)
            if own:
                found["cowfs"] = map_clones(bench, own, tmpfs, s.density_clones)
                tell_touch(bench, own, tmpfs, size_bytes)
                tell_busy(bench, found["cowfs"])
                tell_divergence(bench, own, tmpfs)
        with contextlib.ExitStack() as inner:
            xfs = bench.loop(inner, ROW_DENSITY, "xfs", room)
            if xfs:
                # Clean pages of XFS can be taken back, but not without pain.
                room_for = int((available_bytes() - RESERVE_BYTES - size_bytes * 1.5) / size_bytes)
                count = max(2, min(s.density_clones, room_for))
                found["XFS"] = map_clones(bench, xfs, tmpfs, count)
                if count < s.density_clones:
                    bench.report.note(ROW_DENSITY, f"XFS with {count} clones, as many as there is "
                                      "memory for; the figure is theirs, not extrapolated")
    tell_memory(bench, found, size_bytes)


def sharing_cowfs(bench, stack, room):
    if bench.cowfs_missing:
        return None
    return (bench.cowfs_variant(stack, ROW_DENSITY, room, "passthrough")
            or bench.cowfs(stack, room))


def map_clones(bench, target, tmpfs, count):
    """Figures of bench_map many, and what the clones are of: `held`."""
    bench.sandbox.run("cp", tmpfs.path("golden"), target.path("golden"))
    target.sync()
    names = [f"clone{n}" for n in range(count)]
    for name in names:
        bench.sandbox.run(*copy_command(target, "golden", name))
    target.sync()
    drop(bench, *(target.path(n) for n in ["golden", *names]))
    got = helper(bench, "bench_map", "many", *(target.path(n) for n in names))
    got["clones"] = count
    got["held"] = got["pss_bytes"] + max(0, got["Cached_growth_bytes"] - got["pss_bytes"])
    return got


def drop(bench, *files):
    """So that pages left from writing are not counted as if mapping had made
    them. Not by /proc/sys/vm/drop_caches: after that each page of a tmpfs is
    mapped by a fault of its own (16 before), which is six times as slow."""
    helper(bench, "bench_io", "drop", *files)


def tell_memory(bench, found, size_bytes):
    what = f"{bench.scale.density_clones} clones of {size_bytes / GIB:g} GiB mapped, all touched"
    held = {n: [f["held"]] for n, f in found.items()}
    ratio = held["cowfs"][0] / size_bytes if "cowfs" in held else None
    bench.report.add(ROW_DENSITY, f"{what}: PSS and page cache together", "B",
                     {"cowfs": [], **held}, ratio, "times the file", ("<=", 1.05),
                     skipped=bench.cowfs_missing)
    for key, text in (("pss_bytes", "PSS"), ("Cached_growth_bytes", "growth of the page cache"),
                      ("PageTables_growth_bytes", "page tables")):
        bench.report.add(ROW_DENSITY, f"{what}: {text}", "B",
                         {"cowfs": [], **{n: [f[key]] for n, f in found.items()}},
                         skipped=bench.cowfs_missing)
    if "XFS" in found:
        clones = found["XFS"]["clones"]
        bench.report.note(ROW_DENSITY, f"XFS: {clones:.0f} clones. On tmpfs a page of the store is "
                          "itself page cache: a mapping served by passthrough maps that very page "
                          f"({size_bytes / GIB:g} GiB, in memory before anything is mapped); XFS's "
                          "stored file lies in its image besides")


def tell_touch(bench, own, tmpfs, size_bytes):
    """clone0 has been touched by others: warm, like the file on tmpfs."""
    sides = {"cowfs": own.path("clone0"), "tmpfs": tmpfs.path("golden")}
    samples = {n: [] for n in sides}
    for path in sides.values():
        touch(bench, path)
    for number in range(max(5, 2 * bench.scale.rounds)):
        for name, path in rotated(sides.items(), number):
            samples[name].append(touch(bench, path))
    bench.report.add(ROW_DENSITY, f"touching every page of a warm clone of {size_bytes / GIB:g} "
                     "GiB, O_RDONLY, MAP_PRIVATE", "s", samples, over(samples, "tmpfs", "cowfs"),
                     "times as fast as on tmpfs", (">=", 0.95))


def touch(bench, path):
    return helper(bench, "bench_map", "touch", "private", "sequential", "warm", 1,
                  path)["touch_us"] / 1e6


def tell_busy(bench, got):
    number = int(got["write_open_errno"])
    name = errno.errorcode.get(number, str(number)) if number else "success"
    bench.report.add(ROW_DENSITY, "opening one of them for writing meanwhile gives ETXTBSY "
                     f"(got: {name})", "yes", {"cowfs": [float(number == errno.ETXTBSY)]},
                     float(number == errno.ETXTBSY), "1: yes", (">=", 1))


def tell_divergence(bench, own, tmpfs):
    """The same blocks written to a clone and to a copy on tmpfs: equal then, and
    golden and another clone as they were."""
    box = bench.sandbox
    box.run("cp", tmpfs.path("golden"), tmpfs.path("diverged"))
    right = 1.0
    try:
        for path in (own.path("clone1"), tmpfs.path("diverged")):
            scatter(bench, path, 1000, seed=9)
        for a, b in ((own.path("clone1"), tmpfs.path("diverged")),
                     (own.path("golden"), tmpfs.path("golden")),
                     (own.path("clone0"), tmpfs.path("golden"))):
            box.run("cmp", a, b)
    except CommandFailed as e:
        right = 0.0
        bench.report.note(ROW_DENSITY, f"a written clone: {e}")
    tmpfs.remove("diverged")
    bench.report.add(ROW_DENSITY, "a clone that is written diverges, and it, golden and another "
                     "clone are right (cmp)", "yes", {"cowfs": [right]}, right, "1: yes",
                     (">=", 1))


def dirty_and_clone(bench):
    """bench_dirty clone FILE PAGES SEED 100 -- cowfs clone FILE CLONE: PAGES random pages of a
    MAP_SHARED file are changed; then sync_file_range while a thread changes one more every
    100 µs; then, that thread stopped, the rest is flushed and the command run. Peers: `cp` of such
    a file from tmpfs to tmpfs, all of it a pause; XFS the same way with `cp --reflink=always`."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_DIRTY, "the file", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 6))
    room = size_bytes * 3 + GIB
    samples = {"all": {}, "pause": {}}
    with contextlib.ExitStack() as stack:
        found = [t for t in (bench.cowfs(stack, room), bench.loop(stack, ROW_DIRTY, "xfs", room),
                             bench.tmpfs(stack, ROW_DIRTY, size_bytes * 2 + GIB)) if t]
        for target in found:
            fill(bench, target.path("memory.snap"), size_bytes, seed=1)
            target.sync()
        for number in range(max(3, s.rounds)):
            for target in rotated(found, number):
                got = one_snapshot(bench, target, number)
                for key, of in samples.items():
                    of.setdefault(target.name, []).append(got[f"{key}_us"] / 1e6)
    what = f"{s.dirty_pages:,} scattered dirty pages of {size_bytes // MIB} MiB"
    samples = {k: {"cowfs": [], **v} for k, v in samples.items()}
    for key, text, goal in (("all", "flushed and cloned", (">=", 10)),
                            ("pause", "of that, while the guest is stopped", None)):
        bench.report.add(ROW_DIRTY, f"{what}, {text}", "s", samples[key],
                         over(samples[key], "tmpfs", "cowfs"), "times as fast as cp on tmpfs",
                         goal, skipped=bench.cowfs_missing)


def one_snapshot(bench, target, number):
    file, clone = target.path("memory.snap"), target.path("clone")
    if target.name == "tmpfs":
        # Its pages are dirty for good: what remains is the copy.
        got = helper(bench, "bench_dirty", "clone", file, bench.scale.dirty_pages, number, 0,
                     "--", "cp", file, clone)
        got["all_us"] = got["pause_us"] = got["command_us"]
    else:
        command = ([target.binary, "clone", file, clone] if isinstance(target, CowfsTarget)
                   else copy_command(target, "memory.snap", "clone"))
        got = helper(bench, "bench_dirty", "clone", file, bench.scale.dirty_pages, number, 100,
                     "--", *command)
    target.remove("clone")
    target.sync()
    return got


def stalls(bench):
    """bench_dirty stall FILE PAGES sequential|random SEED: one 8-byte change a page of a warm
    MAP_SHARED file, as fast as it goes, each timed. cowfs with the limits it gives its mount, and
    with those that the kernel gives a FUSE mount (written to /sys/class/bdi/MAJ:MIN); and
    passthrough_hp --nosplice as it comes."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_STALLS, "the file", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 4))
    pages = size_bytes // 4096
    jobs = {"sequential": pages, "random": min(pages, s.stall_pages)}
    worst = {}
    with contextlib.ExitStack() as stack:
        own = bench.cowfs(stack, size_bytes * 2 + GIB)
        bench.require_cowfs()
        peer = bench.passthrough(stack, ROW_STALLS, size_bytes + GIB, "nosplice")
        lifted, default = bdi_settings(own), bdi_settings(peer[0]) if peer else None
        default = default or {**lifted, "max_ratio": 1, "strict_limit": 1}
        limits = {"cowfs": lifted}
        throttled = dataclasses.replace(own, name="cowfs, the kernel's own limits")
        for target in [own, *peer]:
            fill(bench, target.path("file"), size_bytes, seed=1)
            target.sync()

        def measure(target, job, number):
            set_bdi(target, limits.get(target.name, default))
            bench.sandbox.run("dd", f"if={target.path('file')}", "of=/dev/null", "bs=1M")
            got = helper(bench, "bench_dirty", "stall", target.path("file"), jobs[job], job, number)
            for key in ("p999_us", "worst_us"):
                worst.setdefault((job, key), {}).setdefault(target.name, []).append(got[key] / 1e6)
            return got["bytes"] / (got["dirty_us"] / 1e6)

        figures = race([own, throttled, *peer], jobs, max(3, s.rounds), measure)
    for job in jobs:
        other = "cowfs, the kernel's own limits"
        bench.report.add(ROW_STALLS, f"{jobs[job]:,} pages of a mapped file changed, {job}", "B/s",
                         figures[job], over(figures[job], "cowfs", other),
                         "times that with the kernel's limits")
        for key, text in (("worst_us", "the longest wait"), ("p999_us", "99.9 % waited less than")):
            bench.report.add(ROW_STALLS, f"the same, {job}: {text}", "s", worst[job, key],
                             over(worst[job, key], "cowfs", other),
                             "of that with the kernel's limits")
    bench.report.note(ROW_STALLS, f"cowfs's limits: {lifted}; the kernel's: {default}")
