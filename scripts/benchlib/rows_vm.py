# SPDX-License-Identifier: Apache-2.0
"""Rows qemu, vms and rewrite: what people do with VMs."""

import contextlib
import itertools
import re
import time

from .measure import best_of, fill, helper, median, rotated, scatter, spawn_seconds
from .rows_clone import copy_command, over
from .sandbox import GIB, MIB, CommandFailed
from .targets import CowfsTarget

ROW_QEMU, ROW_VMS, ROW_REWRITE = 13, 14, 17

# ---- qemu ----

AIO = {"none": ("native", "io_uring", "threads"), "writeback": ("threads", "io_uring")}


class Disk:
    """What QEMU is given: a clone in cowfs, or an overlay over the same base."""

    def __init__(self, bench, name, make, image_format, directory):
        self.bench, self.name, self.make = bench, name, make
        self.format, self.directory, self.count = image_format, directory, 0

    def fresh(self):
        self.count += 1
        path = self.directory / f"disk{self.count}"
        self.bench.sandbox.run(*self.make(path))
        return path

    def requests(self, path, kind, cache, aio, depth, count, step):
        """Requests a second, by qemu-img bench."""
        write = ["-w", "--pattern=165"] if kind == "write" else []
        out = self.bench.sandbox.run(
            "qemu-img", "bench", "-f", self.format, "-t", cache, "-i", aio, "-c", count,
            "-d", depth, "-s", 4096, "-S", step * 4096, *write, path)
        return count / float(re.search(r"Run completed in ([0-9.]+) seconds", out).group(1))


def overlay(base, options):
    return lambda path: ["qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", base,
                         "-F", "raw", path]


def qemu(bench):
    """qemu-img bench -f raw|qcow2 -t none|writeback -i native|io_uring|threads -c COUNT -d 1|16
    -s 4096 -S STEP [-w --pattern=165] DISK. STEP is odd in blocks and near the golden section of
    the size, so that no block comes twice and none near the one before. Writes go to a fresh clone
    or overlay each; reads to one of which 10 % was written so before, and are warm. Each side has
    the -i that is best for it in the first round. Peers: qemu-img create -f qcow2 -b BASE on tmpfs,
    with its defaults and with -o extended_l2=on,cluster_size=128k."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_QEMU, "the disk", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 6))
    jobs = list(itertools.product(("read", "write"), ("none", "writeback"), (1, 16)))
    with contextlib.ExitStack() as stack:
        own = bench.cowfs(stack, size_bytes * 3 + GIB)
        tmpfs = bench.tmpfs(stack, ROW_QEMU, size_bytes * 4 + GIB)
        bench.require_cowfs()
        base = tmpfs.path("base")
        for target in (own, tmpfs):
            fill(bench, target.path("base"), size_bytes, seed=1)
            target.sync()
        disks = [
            Disk(bench, "cowfs", lambda path: [own.binary, "clone", own.path("base"), path],
                 "raw", own.directory),
            Disk(bench, "qcow2", overlay(base, []), "qcow2", tmpfs.directory),
            Disk(bench, "qcow2 extended_l2", overlay(
                base, ["-o", "extended_l2=on,cluster_size=128k"]), "qcow2", tmpfs.directory)]
        figures = qemu_rounds(bench, disks, jobs, size_bytes // 4096)
    for job in jobs:
        kind, cache, depth = job
        samples = figures[job]
        best = best_of(samples, [d.name for d in disks[1:]])
        bench.report.add(ROW_QEMU, f"QEMU's block layer, 4 KiB scattered {kind}s, cache={cache}, "
                         f"{depth} at a time", "IOPS", samples, over(samples, "cowfs", best),
                         "of the better overlay", (">=", 1.0))


def qemu_rounds(bench, disks, jobs, blocks):
    s = bench.scale
    step = int(blocks * 0.618) | 1
    used = {}
    for disk in disks:
        used[disk.name] = disk.fresh()
        disk.requests(used[disk.name], "write", "writeback", "threads", 16, blocks // 10, step)
    figures = {job: {d.name: [] for d in disks} for job in jobs}
    best_aio = {}

    def once(disk, kind, cache, depth, aio):
        count = min(blocks // 2, s.qd1_ops if depth == 1 else s.qd16_ops)
        if kind == "read":
            return disk.requests(used[disk.name], kind, cache, aio, depth, count, step - 2)
        path = disk.fresh()
        try:
            return disk.requests(path, kind, cache, aio, depth, count, step)
        finally:
            bench.sandbox.run("rm", "-f", path)

    for number in range(max(3, s.rounds)):
        for job, disk in itertools.product(jobs, rotated(disks, number)):
            if number == 0:
                found = {}
                for aio in AIO[job[1]]:
                    with contextlib.suppress(CommandFailed):
                        found[aio] = once(disk, *job, aio)
                best_aio[job, disk.name] = max(found, key=found.get)
            else:
                figures[job][disk.name].append(once(disk, *job, best_aio[job, disk.name]))
    chosen = sorted({f"{n} {c}/{d} {k}: {a}" for ((k, c, d), n), a in best_aio.items()})
    bench.report.note(ROW_QEMU, "the best -i: " + ", ".join(chosen))
    return figures


# ---- vms ----


def vms(bench):
    """bench_vms create|clone|remove: COUNT directories with disk, memory.snap and snapshot.snap of
    8 KiB each, in one process, a syncfs at the end of each step included. Clones are of each VM to
    a VM of its own: by one ioctl on the directory in cowfs, by mkdir and FICLONE of each file in
    XFS. "Many in one call": cowfs clones and deletes by ioctls that take some thousand names each, as
    cowfs clone --count and cowfs rm do; XFS as before, since it has no such call. Then by processes
    of their own: `cp -r VM NEW` and `cowfs clone VM NEW`. Then the mount
    time of the store with all VMs and their clones in it: after umount, and after kill -9 of the
    daemon. Peer: XFS on a loop device."""
    s = bench.scale
    times = {step: {} for step in ("create", "clone", "remove", "clone-many", "remove-many")}
    by_command, mounts = {}, {}
    room = 4 * GIB if not s.quick else GIB
    with contextlib.ExitStack() as stack:
        found = [t for t in (bench.cowfs(stack, room), bench.loop(stack, ROW_VMS, "xfs", room))
                 if t]
        for number in range(s.vm_rounds):
            for target in rotated(found, number):
                for step, seconds in vm_steps(bench, target, number, by_command, mounts):
                    times[step].setdefault(target.name, []).append(seconds)
    for step in ("clone", "remove"):
        times[f"{step}-many"]["XFS"] = times[step].get("XFS", [])
    what = {"create": "made, one process", "clone": "cloned, one process",
            "remove": "deleted, one process", "clone-many": "cloned, many in one call",
            "remove-many": "deleted, many in one call"}
    for step, samples in times.items():
        samples = {"cowfs": [], **samples}
        bench.report.add(ROW_VMS, f"{s.vms:,} VMs of 3 files {what[step]}", "s",
                         samples, over(samples, "XFS", "cowfs"), "times as fast as XFS",
                         (">=", 1.0), skipped=bench.cowfs_missing)
    samples = {"cowfs": [], "XFS": [], **by_command}
    bench.report.add(ROW_VMS, "one VM cloned by `cp -r`", "s", samples,
                     over(samples, "XFS", "cowfs"), "times as fast as XFS",
                     unshown=("cowfs clone",), skipped=bench.cowfs_missing)
    samples = {"cowfs": by_command.get("cowfs clone", []), "XFS": samples["XFS"]}
    bench.report.add(ROW_VMS, "one VM cloned by `cowfs clone`, against `cp -r` on XFS", "s",
                     samples, over(samples, "XFS", "cowfs"), "times as fast as XFS",
                     skipped=bench.cowfs_missing)
    for when in ("after umount", "after kill -9"):
        samples = {"cowfs": mounts.get(("cowfs", when), []), "XFS": mounts.get(("XFS", when), [])}
        value = median(samples["cowfs"])
        bench.report.add(ROW_VMS, f"mounting the store with {2 * s.vms:,} VMs, {when}", "s",
                         samples, value, "seconds", ("<=", 1.0), skipped=bench.cowfs_missing)


def vm_steps(bench, target, number, by_command, mounts):
    """One turn of one file system: pairs of step and seconds."""
    s, own = bench.scale, isinstance(target, CowfsTarget)
    made, cloned = target.mkdir(f"made{number}"), target.mkdir(f"cloned{number}")
    how = "cowfs" if own else "reflink"

    def took(*words):
        return helper(bench, "bench_vms", *words)["all_us"] / 1e6

    yield "create", took("create", made, s.vms, 8192)
    yield "clone", took("clone", how, made, cloned, s.vms)
    if number == 0:
        one, few = made / "0", 5 * s.window
        target.mkdir("few")
        reflink = [] if own else ["--reflink=always"]
        commands = [["cp", "-r", *reflink, one, target.path("few/cp{}")]]
        commands += [[target.binary, "clone", one, target.path("few/clone{}")]] if own else []
        found = spawn_seconds(bench, few, 0, *commands)
        by_command[target.name] = found[0]
        if own:
            by_command["cowfs clone"] = found[1]
        target.remove("few")
    time_mounts(bench, target, cloned, mounts)
    yield "remove", took("remove", cloned, s.vms)
    if own:
        yield "clone-many", took("clone", "cowfs-many", made, cloned, s.vms)
        # As cold as what was deleted name by name.
        target.sync()
        target.umount()
        target.mount()
        yield "remove-many", took("remove-many", cloned, s.vms)
    target.remove(f"made{number}", f"cloned{number}")
    target.sync()


def time_mounts(bench, target, directory, mounts):
    """From the start of mount to the end of a first `ls` of one VM."""
    def mount(when):
        started = time.monotonic()
        target.mount()
        bench.sandbox.run("ls", directory / "0")
        mounts.setdefault((target.name, when), []).append(time.monotonic() - started)

    target.sync()
    target.umount()
    mount("after umount")
    if isinstance(target, CowfsTarget):
        # Something to recover: changes that no commit has seen.
        bench.sandbox.run("touch", directory / "0/disk", directory / "1/disk")
        target.kill()
        mount("after kill -9")


# ---- rewrite ----


def rewrite(bench):
    """new.snap is golden with 1 % of its 4 KiB pages changed, at random places. Each round:
    cowfs clone golden clone; dd if=new.snap of=clone bs=1M conv=notrunc,fsync; and, for speed,
    cp new.snap copy on tmpfs. Stored bytes by cowfs df, before and after."""
    s = bench.scale
    size_bytes = bench.scaled(ROW_REWRITE, "memory.snap", s.unit_bytes,
                              bench.sandbox.fit(s.unit_bytes, 5))
    changed = size_bytes // 4096 // 100
    times, stored = {"cowfs": [], "tmpfs": []}, []
    with contextlib.ExitStack() as stack:
        own = bench.cowfs(stack, size_bytes * 2 + GIB)
        tmpfs = bench.tmpfs(stack, ROW_REWRITE, size_bytes * 2 + GIB)
        bench.require_cowfs()
        fill(bench, tmpfs.path("new.snap"), size_bytes, seed=1)
        bench.sandbox.run("cp", tmpfs.path("new.snap"), own.path("golden"))
        scatter(bench, tmpfs.path("new.snap"), changed, seed=2)
        own.sync()
        for _ in range(max(3, s.rounds)):
            own.command("clone", own.path("golden"), own.path("clone"))
            before = own.df()["stored_bytes"]
            times["cowfs"] += spawn_seconds(bench, 1, 0, [
                "dd", f"if={tmpfs.path('new.snap')}", f"of={own.path('clone')}", "bs=1M",
                "conv=notrunc,fsync", "status=none"])[0]
            stored.append(own.df()["stored_bytes"] - before)
            times["tmpfs"] += spawn_seconds(bench, 1, 0, ["cp", tmpfs.path("new.snap"),
                                                          tmpfs.path("copy")])[0]
            bench.sandbox.run("cmp", tmpfs.path("new.snap"), own.path("clone"), timeout_s=120)
            own.remove("clone")
            tmpfs.remove("copy")
            own.sync()
    speeds = {n: [size_bytes / t for t in v] for n, v in times.items()}
    what = f"a memory.snap of {size_bytes // MIB} MiB, 1 % changed, written over a clone of the old"
    bench.report.add(ROW_REWRITE, f"{what}: stored", "B", {"cowfs": stored,
                     "changed": [changed * 4096.0]}, median(stored) / (changed * 4096),
                     "of the bytes changed", ("<=", 1.1))
    bench.report.add(ROW_REWRITE, f"{what}: speed, an fsync included", "B/s", speeds,
                     over(speeds, "cowfs", "tmpfs"), "of cp onto tmpfs", (">=", 0.5))
