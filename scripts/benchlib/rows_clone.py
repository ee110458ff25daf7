# SPDX-License-Identifier: Apache-2.0
"""Rows 1 and 2: what a clone costs, after fragmentation, by size, by number."""

import contextlib

from .measure import fill, helper, median, rotated, scatter, spawn_seconds
from .sandbox import GIB, MIB
from .targets import CowfsTarget


def over(samples, upper, lower):
    a, b = median(samples.get(upper, [])), median(samples.get(lower, []))
    return a / b if a and b else None


def copy_command(target, source, name):
    """How a user of this file system clones by cp. `--reflink=always` on the
    peers, so that a silent byte copy cannot pass for a clone."""
    reflink = ["--reflink=always"] if target.name in ("XFS", "btrfs") else []
    return ["cp", *reflink, target.path(source), target.path(name)]


def fragmented_clone(bench, target, size_bytes, writes):
    """memory.snap, a clone of golden with random writes of its own: the clone
    that a running guest leaves behind. tmpfs has no clones: written directly."""
    clones = target.name != "tmpfs"
    fill(bench, target.path("golden" if clones else "memory.snap"), size_bytes, seed=1)
    if clones:
        bench.sandbox.run(*copy_command(target, "golden", "memory.snap"))
    took = scatter(bench, target.path("memory.snap"), writes, seed=2)
    target.sync()
    return (took["write_us"] + took["fsync_us"]) / 1e6


def clone_of_fragmented(bench):
    """bench_io fill golden, cp golden memory.snap, bench_io write memory.snap WRITES; then timed by
    bench_spawn, from posix_spawn to waitpid: cp memory.snap NEW (on the peers with
    --reflink=always) and cowfs clone memory.snap NEW. Peers: XFS and btrfs on loop devices on
    tmpfs, tmpfs."""
    s, box = bench.scale, bench.sandbox
    size_bytes = bench.scaled(1, "memory.snap", s.snap_bytes, box.fit(s.snap_bytes, 6.5))
    room = size_bytes * 2 + GIB
    with contextlib.ExitStack() as stack:
        found = [bench.cowfs(stack, room), bench.loop(stack, 1, "xfs", room),
                 bench.loop(stack, 1, "btrfs", room), bench.tmpfs(stack, 1, room)]
        peers = [t for t in found if t]
        wrote = [f"{t.name} {fragmented_clone(bench, t, size_bytes, s.snap_writes):.1f} s"
                 for t in peers]
        bench.report.note(1, f"memory.snap is {size_bytes >> 20} MiB of incompressible data; its "
                             f"{s.snap_writes:,} random 4 KiB writes with one fsync behind them "
                             f"took: {', '.join(wrote)}. All is clean and warm before each clone.")
        times = {}
        for round_number in range(s.rounds):
            for target in rotated(peers, round_number):
                one_round(bench, target, round_number, times)
        if found[0]:
            box.run("cmp", found[0].path("memory.snap"), found[0].path("kept-cp"), timeout_s=120)
            box.run("cmp", found[0].path("memory.snap"), found[0].path("kept-clone"),
                    timeout_s=120)
    times["true"] = spawn_seconds(bench, 50, 0, ["true"])[0]
    tell(bench, times)


def one_round(bench, target, round_number, times):
    """One turn of one file system; clones are removed outside the timing."""
    target.sync()
    copy = copy_command(target, "memory.snap", "cp{}")
    if isinstance(target, CowfsTarget):
        own = [target.binary, "clone", target.path("memory.snap"), target.path("clone{}")]
        count = bench.scale.own_clones
        cps, clones = spawn_seconds(bench, count, 0, copy, own)
        times.setdefault("cowfs cp", []).extend(cps)
        times.setdefault("cowfs clone", []).extend(clones)
        if round_number == 0:  # one of each is compared byte for byte at the end
            bench.sandbox.run("mv", target.path("cp0"), target.path("kept-cp"))
            bench.sandbox.run("mv", target.path("clone0"), target.path("kept-clone"))
        target.remove(*(f"{kind}{n}" for kind in ("cp", "clone") for n in range(count)))
    else:
        times.setdefault(target.name, []).extend(spawn_seconds(bench, 1, 0, copy)[0])
        target.remove("cp0")
    target.sync()


def tell(bench, times):
    missing = bench.cowfs_missing
    for how in ("cp", "cowfs clone"):
        own = times.get("cowfs cp" if how == "cp" else "cowfs clone", [])
        for peer, goal in (("XFS", 500), ("btrfs", 250), ("tmpfs", None)):
            samples = {"cowfs": own, peer: times.get(peer, [])}
            bench.report.add(1, f"clone of a fragmented memory.snap by `{how}`, against "
                                f"{peer} `cp`", "s", samples, over(samples, peer, "cowfs"),
                             "times faster", (">=", goal) if goal else None, skipped=missing)
    bench.report.note(1, f"of each time, starting and ending a process that does nothing is "
                         f"{median(times['true']) * 1e3:.2f} ms (`true`)")


def clone_by_size_and_number(bench):
    """bench_chain tile one big 64: 64 times the same file, one behind the other, and cp or cowfs
    clone of both in turn by bench_spawn. Then cowfs clone golden N, 10,000 times. XFS and btrfs
    stand beside the first half for comparison only."""
    s = bench.scale
    bench.sandbox.need("row 2", 3 * s.unit_bytes + GIB)
    by_size(bench)
    bench.require_cowfs()
    by_number(bench)


def by_size(bench):
    s, ratios = bench.scale, {}
    for make in (lambda k: bench.cowfs(k, s.unit_bytes * 2 + GIB),
                 lambda k: bench.loop(k, 2, "xfs", s.unit_bytes * 2 + GIB),
                 lambda k: bench.loop(k, 2, "btrfs", s.unit_bytes * 2 + GIB)):
        with contextlib.ExitStack() as stack:
            target = make(stack)
            if not target:
                continue
            fill(bench, target.path("one"), s.unit_bytes, seed=1)
            helper(bench, "bench_chain", "tile", target.path("one"), target.path("big"), s.tiles)
            target.sync()
            commands = {"cp": (copy_command(target, "one", "cp-one{}"),
                               copy_command(target, "big", "cp-big{}"))}
            if isinstance(target, CowfsTarget):
                commands["cowfs clone"] = tuple(
                    [target.binary, "clone", target.path(f), target.path(f"clone-{f}{{}}")]
                    for f in ("one", "big"))
            for how, pair in commands.items():
                ratios[target.name, how] = spawn_seconds(bench, s.window, 0, *pair)
    small, big = s.unit_bytes / GIB, s.unit_bytes * s.tiles / GIB
    for how in ("cp", "cowfs clone"):
        one, many = ratios.get(("cowfs", how), ([], []))
        samples = {"cowfs": many, f"cowfs, {small:g} GiB": one}
        for peer in ("XFS", "btrfs"):
            if (peer, how) in ratios:
                peer_one, peer_many = ratios[peer, how]
                samples[f"{peer}, {small:g} GiB"], samples[f"{peer}, {big:g} GiB"] = \
                    peer_one, peer_many
        bench.report.add(2, f"clone of {big:g} GiB mapped over one of {small:g} GiB, by `{how}`",
                         "s", samples, over(samples, "cowfs", f"cowfs, {small:g} GiB"), "",
                         ("<=", 1.2), skipped=bench.cowfs_missing)


def by_number(bench):
    """A second, fresh store gives "first clones" at the very time of the last
    ones: the machine's mood of half a minute ago is not in that ratio."""
    s = bench.scale
    with contextlib.ExitStack() as stack:
        old, fresh = (bench.cowfs(stack, s.unit_bytes + GIB) for _ in range(2))
        for target in (old, fresh):
            fill(bench, target.path("golden"), s.unit_bytes, seed=1)
            scatter(bench, target.path("golden"), 1000, seed=2)
            target.mkdir("clones")
            target.sync()
        old.mkdir("empty")

        def clone(target, directory):
            return [target.binary, "clone", target.path("golden"), target.path(directory) / "{}"]

        times = spawn_seconds(bench, s.many_clones, 1, clone(old, "clones"))[0]
        late, elsewhere, first = spawn_seconds(bench, s.window, s.many_clones + 1,
                                               clone(old, "clones"), clone(old, "empty"),
                                               clone(fresh, "clones"))
    number, window = f"{s.many_clones:,}th", s.window
    samples = {"cowfs": times[-window:], "the first": times[:window]}
    bench.report.add(2, f"the {number} clone in one store over the first (medians of {window} at "
                        "each end, all in one directory)", "s", samples,
                     over(samples, "cowfs", "the first"), "", ("<=", 1.5))
    samples = {"cowfs": late, "first of a fresh store": first}
    bench.report.add(2, f"the same, in turn with the first {window} of a fresh store", "s",
                     samples, over(samples, "cowfs", "first of a fresh store"))
    samples = {"cowfs": elsewhere, "first of a fresh store": first}
    bench.report.add(2, f"the same, but into an empty directory of the store with {number[:-2]} "
                        "clones", "s", samples, over(samples, "cowfs", "first of a fresh store"))
    bench.report.note(2, f"clones are of a file of {s.unit_bytes // MIB} MiB with 1,000 random "
                         "writes, by `cowfs clone`, process start included, in the order made")
