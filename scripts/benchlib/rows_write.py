# SPDX-License-Identifier: Apache-2.0
"""Rows sustained, first-write, fsync and seal: writing for long, writing to what
is shared, making it durable, and what the sealer costs."""

import contextlib
import pathlib
import threading
import time

from .measure import fill, helper, median, random_io, rotated, spawn_seconds
from .rows_clone import copy_command, over
from .sandbox import GIB, MIB

ROW_SUSTAINED, ROW_FIRST, ROW_FSYNC, ROW_SEAL = 15, 16, 18, 19
SLICE_MS = 200


def sustained(bench):
    """bench_rand write direct|buffered 30000 SEED CLONE: 4 KiB at random places of a fresh clone,
    one at a time. cowfs and XFS (cp --reflink=always, loop device on tmpfs), one after the
    other: what piles up would be worked off in a pause. Steady: the last 10 s over the first 10
    s."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_SUSTAINED, "the file", s.snap_bytes,
                              bench.sandbox.fit(s.snap_bytes, 2.5))
    results = {}
    for mode in ("direct", "buffered"):
        for name, make in (("XFS", lambda k: bench.loop(k, ROW_SUSTAINED, "xfs", room)),
                           ("cowfs", lambda k: bench.cowfs(k, room))):
            room = size_bytes * 2 + 2 * GIB
            with contextlib.ExitStack() as stack:
                target = make(stack)
                if not target:
                    continue
                fill(bench, target.path("golden"), size_bytes, seed=1)
                target.sync()
                bench.sandbox.run(*copy_command(target, "golden", "clone"))
                results[mode, name] = random_io(bench, "write", mode, s.sustained_s * 1000, 5,
                                                target.path("clone"))
    for mode in ("direct", "buffered"):
        text = "O_DIRECT" if mode == "direct" else "buffered, an fsync at the end included"
        what = f"4 KiB random writes to a fresh clone of {size_bytes // MIB} MiB for " \
               f"{s.sustained_s} s, {text}"
        got = {n: results[m, n] for m, n in results if m == mode}

        def add(text, unit, key, ratio_of="", goal=None, scale=1.0, mode=mode, got=got):
            samples = {"cowfs": [], **{n: [r[key] * scale] for n, r in got.items()}}
            bench.report.add(ROW_SUSTAINED, text, unit, samples, over(samples, "cowfs", "XFS"),
                             ratio_of, goal, skipped=bench.cowfs_missing)

        add(what, "IOPS", "per_s", "of XFS", (">=", 0.5))
        add(f"the same ({mode}): 99 % took less than", "s", "p99_us", "of XFS's", scale=1e-6)
        add(f"the same ({mode}): the longest", "s", "worst_us", "of XFS's", scale=1e-6)
        steady = {n: [r["last_third_per_s"] / r["first_third_per_s"]] for n, r in got.items()}
        bench.report.add(ROW_SUSTAINED, f"the same ({mode}): the last third over the first", "x",
                         {"cowfs": [], **steady}, steady.get("cowfs", [None])[0], "of the start",
                         (">=", 1.0), skipped=bench.cowfs_missing)


def first_write(bench):
    """cowfs clone golden clone; bench_rand twice direct COUNT SEED clone: COUNT different blocks of
    4 KiB written to the fresh clone one at a time with O_DIRECT, then the same once more. Stored
    bytes by cowfs df around the first. Beside it: XFS the same way, cp --reflink=always."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_FIRST, "the file", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 4))
    room = size_bytes * 2 + GIB
    first, again, ratios, stored = {}, {}, {}, []
    with contextlib.ExitStack() as stack:
        own = bench.cowfs(stack, room)
        found = [t for t in (own, bench.loop(stack, ROW_FIRST, "xfs", room)) if t]
        for target in found:
            fill(bench, target.path("golden"), size_bytes, seed=1)
            target.sync()
        for number in range(max(3, s.rounds)):
            for target in rotated(found, number):
                bench.sandbox.run(*copy_command(target, "golden", "clone"))
                before = own.df()["stored_bytes"] if target is own else 0
                got = helper(bench, "bench_rand", "twice", "direct", s.qd1_ops, number,
                             target.path("clone"))
                if target is own:
                    stored.append((own.df()["stored_bytes"] - before) / s.qd1_ops)
                first.setdefault(target.name, []).append(got["first_us"] / s.qd1_ops / 1e6)
                again.setdefault(target.name, []).append(got["again_us"] / s.qd1_ops / 1e6)
                ratios.setdefault(target.name, []).append(got["first_us"] / got["again_us"])
                target.remove("clone")
                target.sync()
    what = "first write of 4 KiB to a shared chunk, O_DIRECT, mean"
    samples = {"cowfs": first.get("cowfs", []), "cowfs again": again.get("cowfs", []),
               "XFS first": first.get("XFS", []), "XFS again": again.get("XFS", [])}
    bench.report.add(ROW_FIRST, f"{what}, over the same once more", "s", samples,
                     median(ratios.get("cowfs", [])), "times (median of the rounds)",
                     ("<=", 1.5), skipped=bench.cowfs_missing)
    if "XFS" in ratios:
        bench.report.note(ROW_FIRST, f"XFS's ratio is {median(ratios['XFS']):.2f}")
    if stored:
        bench.report.add(ROW_FIRST, "bytes stored for such a write of 4 KiB", "B",
                         {"cowfs": stored}, median(stored) / 4096, "of what was written",
                         ("<=", 1.1))


def fsync_latency(bench):
    """bench_rand fsync buffered 2000 SEED FILE…: write 4 KiB at a random place and fsync, a thread
    a file, 1 and 8 threads. cowfs's store lies on the XFS (loop device on tmpfs) that it stands
    beside."""
    s = bench.scale
    file_bytes, threads = 32 * MIB, (1, 8)
    results = {}
    with contextlib.ExitStack() as stack:
        xfs = bench.loop(stack, ROW_FSYNC, "xfs", 4 * GIB)
        bench.require_cowfs()
        own = bench.cowfs_on(stack, xfs.directory)
        for target in (own, xfs):
            for n in range(max(threads)):
                fill(bench, target.path(f"file{n}"), file_bytes, seed=n)
            target.sync()
        for number in range(max(3, s.rounds)):
            for target in rotated((own, xfs), number):
                for count in threads:
                    files = [target.path(f"file{n}") for n in range(count)]
                    got = random_io(bench, "fsync", "buffered", s.fsync_ms, number, *files)
                    results.setdefault((count, target.name), []).append(got)
    for count in threads:
        of = f"{count} thread{'s' * (count > 1)}, a file each"
        for key, unit, text, scale in (("per_s", "IOPS", "a second", 1),
                                       ("p50_us", "s", "half took less than", 1e-6),
                                       ("p99_us", "s", "99 % took less than", 1e-6)):
            samples = {n: [r[key] * scale for r in results[count, n]] for n in ("cowfs", "XFS")}
            bench.report.add(ROW_FSYNC, f"write 4 KiB and fsync, store on XFS, {of}: {text}", unit,
                             samples, over(samples, "cowfs", "XFS"), "of XFS's")
    samples = {n: [b["per_s"] / a["per_s"] for a, b in zip(results[1, n], results[8, n])]
               for n in ("cowfs", "XFS")}
    bench.report.add(ROW_FSYNC, "fsyncs of 8 threads over those of one (what they share)", "x",
                     samples, median(samples["cowfs"]), "times")


# ---- seal ----


class PeakMemory:
    """Peak resident memory of a daemon inside `with`, looked at every 10 ms, without the pages of
    the store's files on tmpfs, which are in memory whether it maps them or not."""

    PERIOD_S = 0.01

    def __init__(self, pids):
        self.pids, self.bytes = pids, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def look(self):
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
                    if line.startswith(("RssAnon:", "RssFile:")):
                        total += int(line.split()[1]) * 1024
        self.bytes = max(self.bytes, total)

    def watch(self):
        while not self.over.wait(self.PERIOD_S):
            self.look()

    def __enter__(self):
        self.look()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.look()


def seal(bench):
    """Import: `cp` of a file on tmpfs into the mount (seal=off), unique and again, and the same cp
    onto tmpfs. Sealing: `cowfs seal FILE`, of that unique file and of its copy. Memory: the
    daemon's RssAnon and RssFile, looked at every 10 ms. Foreground: bench_rand read direct 200 on
    a sealed file in slices of 0.2 s, in a mount with seal_delay=1, while a second, unsealed file
    is there for the sealer (`cowfs df` says whether it was at work) and after."""
    import_and_seal(bench)
    foreground(bench)


def import_and_seal(bench):
    s = bench.scale
    size_bytes = bench.scaled(ROW_SEAL, "the file", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 6))
    names = ("import unique", "import duplicate", "seal unique", "seal duplicate")
    speeds, memory = {n: [] for n in (*names, "tmpfs")}, {n: [] for n in names}
    for _ in range(max(2, s.rounds * 3 // 5)):
        with contextlib.ExitStack() as stack:
            own = bench.cowfs(stack, size_bytes * 2 + GIB, ["seal=off"])
            tmpfs = bench.tmpfs(stack, ROW_SEAL, size_bytes * 2 + GIB)
            bench.require_cowfs()
            fill(bench, tmpfs.path("file"), size_bytes, seed=1)
            one, two = own.path("one"), own.path("two")
            commands = {"import unique": ["cp", tmpfs.path("file"), one],
                        "tmpfs": ["cp", tmpfs.path("file"), tmpfs.path("copy")],
                        "import duplicate": ["cp", tmpfs.path("file"), two],
                        "seal unique": [own.binary, "seal", one],
                        "seal duplicate": [own.binary, "seal", two]}
            for name, command in commands.items():
                with PeakMemory(own.pids()) as peak:
                    took = spawn_seconds(bench, 1, 0, command)[0][0]
                    started = time.monotonic()
                    if name.startswith("import"):
                        own.sync()  # imported is what the daemon has
                        took += time.monotonic() - started
                speeds[name].append(size_bytes / took)
                if name in memory:
                    memory[name].append(peak.bytes)
                if name == "tmpfs":
                    tmpfs.remove("copy")
    texts = {"import unique": "import by cp and sync, unique content",
             "import duplicate": "import by cp and sync, of what is there already",
             "seal unique": "`cowfs seal`, unique content",
             "seal duplicate": "`cowfs seal`, content that another file has"}
    for name in names:
        samples = {"cowfs": speeds[name], "tmpfs": speeds["tmpfs"]}
        bench.report.add(ROW_SEAL, texts[name], "B/s", samples, over(samples, "cowfs", "tmpfs"),
                         "of cp onto tmpfs", (">=", 0.5))
    for name in names:
        bench.report.add(ROW_SEAL, f"the daemon's own memory at most: {texts[name]}", "B",
                         {"cowfs": memory[name]})


def foreground(bench):
    s = bench.scale
    size_bytes = s.unit_bytes
    at_work, alone = [], []
    with contextlib.ExitStack() as stack:
        own = bench.cowfs(stack, size_bytes * (s.seal_files + 2) + GIB, ["seal_delay=1"])
        fill(bench, own.path("read"), 256 * MIB, seed=99)
        own.command("seal", own.path("read"))
        for number in range(s.seal_files):
            path = own.path(f"new{number}")
            fill(bench, path, size_bytes, seed=number)
            own.sync()
            slices(bench, own, at_work, alone)
            own.remove(path.name)
    if not at_work:
        bench.report.note(ROW_SEAL, "the sealer was never seen at work")
    samples = {"cowfs": at_work, "cowfs, the sealer idle": alone}
    bench.report.add(ROW_SEAL, "4 KiB random reads, O_DIRECT, one at a time, while the sealer "
                     "runs", "IOPS", samples, over(samples, "cowfs", "cowfs, the sealer idle"),
                     "of those without it", (">=", 0.9))


def slices(bench, own, at_work, alone):
    """Short slices of reading until the sealer, having worked, was idle for six
    in a row. A slice counts as beside the sealer if it sealed in this one, the one
    before and the one after: at the edges it was at work for a part only."""
    end, found = time.monotonic() + 20, []
    before = own.df()["sealed_bytes"]
    while time.monotonic() < end:
        got = random_io(bench, "read", "direct", SLICE_MS, 1, own.path("read"))["per_s"]
        now = own.df()["sealed_bytes"]
        found.append((got, now > before))
        before = now
        worked = [w for _, w in found]
        if any(worked) and len(worked) > 6 and not any(worked[-6:]):
            break
    for i in range(1, len(found) - 1):
        around = {w for _, w in found[i - 1:i + 2]}
        if len(around) == 1:
            (at_work if found[i][1] else alone).append(found[i][0])

