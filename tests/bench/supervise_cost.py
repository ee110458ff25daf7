#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a supervisor costs while nothing dies: two mounts at once, one with -o supervise and one
with -o nosupervise, measured in turn (docs/DESIGN.md, "Two processes"). Prints a table of medians.

Daemons and load run at real-time priority where root may have that, so that others who want the
processors do not count. Needs root and fio.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KINDS = ("nosupervise", "supervise")
MIB = 1 << 20
FILE_BYTES = 256 * MIB
NAMES = 2000
CLONES = 300

# Name and fio's words. All on a file of FILE_BYTES that is there.
FIO_ROWS = (
    ("4 KiB random read, O_DIRECT, 1 at a time", "--rw=randread --bs=4k --direct=1 --iodepth=1"),
    ("4 KiB random write, O_DIRECT, 1 at a time", "--rw=randwrite --bs=4k --direct=1 --iodepth=1"),
    ("4 KiB random read, O_DIRECT, 16 at a time", "--rw=randread --bs=4k --direct=1 --iodepth=16"),
    ("4 KiB random write, O_DIRECT, 16 at a time",
     "--rw=randwrite --bs=4k --direct=1 --iodepth=16"),
    ("4 KiB random write, buffered", "--rw=randwrite --bs=4k --direct=0 --iodepth=1"),
    ("1 MiB read, O_DIRECT", "--rw=read --bs=1m --direct=1 --iodepth=4"),
    ("1 MiB write, O_DIRECT", "--rw=write --bs=1m --direct=1 --iodepth=4"),
)


def run(*words, **more):
    return subprocess.run([str(w) for w in words], check=True, stdout=subprocess.PIPE,
                          text=True, timeout=120, **more).stdout


class Mount:
    def __init__(self, cowfs, directory, kind):
        self.cowfs, self.kind = cowfs, kind
        self.store, self.path = directory / f"store-{kind}", directory / f"mnt-{kind}"
        self.path.mkdir(exist_ok=True)

    def up(self):
        """Seconds until the first answer."""
        start = time.monotonic()
        run(self.cowfs, "mount", "-o", f"{self.kind},seal=off", self.store, self.path)
        os.listdir(self.path)
        return time.monotonic() - start

    def down(self):
        start = time.monotonic()
        run(self.cowfs, "umount", self.path)
        return time.monotonic() - start

    def sync(self):
        run("sync", "-f", self.path)

    def pss_bytes(self):
        """Of all the processes that name the store: how many, and what they take."""
        found, total = 0, 0
        for entry in pathlib.Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if entry.name.isdigit() and os.fsencode(self.store) in words:
                    lines = (entry / "smaps_rollup").read_text("ascii").splitlines()
                    total += sum(int(x.split()[1]) for x in lines if x.startswith("Pss:")) * 1024
                    found += 1
            except OSError:
                pass
        return found, total


# ---- rows: each takes a mount, and returns one figure --------------------------------------------

def fio(mount, words, seconds, name="file"):
    said = json.loads(run("fio", "--name=job", f"--filename={mount.path / name}",
                          f"--size={FILE_BYTES}", "--ioengine=libaio", "--time_based",
                          f"--runtime={seconds}", "--output-format=json", *words.split()))
    job = said["jobs"][0]
    return job["read"]["iops"] + job["write"]["iops"]


def first_writes(mount):
    """4 KiB writes with O_DIRECT, each to a chunk that is shared: all are changes of the map."""
    run(mount.cowfs, "clone", mount.path / "file", mount.path / "fresh")
    said = json.loads(run("fio", "--name=job", f"--filename={mount.path / 'fresh'}",
                          f"--size={FILE_BYTES}", "--io_size=64m", "--ioengine=libaio",
                          "--output-format=json", "--rw=randwrite", "--bs=4k", "--direct=1",
                          "--iodepth=1"))
    os.unlink(mount.path / "fresh")
    mount.sync()
    return said["jobs"][0]["write"]["iops"]


def names(mount):
    directory = mount.path / "names"
    os.makedirs(directory, exist_ok=True)
    start = time.monotonic()
    for i in range(NAMES):
        os.close(os.open(directory / str(i), os.O_CREAT | os.O_WRONLY, 0o600))
    for i in range(NAMES):
        os.unlink(directory / str(i))
    return 2 * NAMES / (time.monotonic() - start)


def clones(mount):
    directory = mount.path / "clones"
    os.makedirs(directory, exist_ok=True)
    source = os.open(mount.path / "file", os.O_RDONLY)
    took = []
    for i in range(CLONES):
        target = os.open(directory / str(i), os.O_CREAT | os.O_WRONLY, 0o600)
        start = time.monotonic()
        if os.copy_file_range(source, target, FILE_BYTES, 0, 0) != FILE_BYTES:
            raise OSError("copy_file_range was short")
        took.append(time.monotonic() - start)
        os.close(target)
    os.close(source)
    shutil.rmtree(directory)
    return 1 / statistics.median(took)


OTHER_ROWS = (
    ("4 KiB first write to a shared chunk, O_DIRECT, 1 at a time", first_writes),
    ("create and unlink", names),
    ("clone of 256 MiB (copy_file_range)", clones),
)

# ---- all of them ---------------------------------------------------------------------------------

def measure(args, directory):
    mounts = [Mount(args.cowfs, directory, kind) for kind in KINDS]
    rows = {}  # name: (unit, {kind: figures})

    def note(name, unit, kind, figure):
        rows.setdefault(name, (unit, {k: [] for k in KINDS}))[1][kind].append(figure)

    try:
        for mount in mounts:
            mount.up()
            run("fio", "--name=job", f"--filename={mount.path / 'file'}", f"--size={FILE_BYTES}",
                "--rw=write", "--bs=1m", "--direct=1", "--ioengine=libaio")
        for i in range(args.rounds):
            # Who comes first changes: what the one leaves to the kernel the other finds.
            for mount in mounts if i % 2 == 0 else reversed(mounts):
                for name, words in FIO_ROWS + OTHER_ROWS:
                    if args.row in name:
                        mount.sync()
                        note(name, "/s", mount.kind, words(mount) if callable(words) else
                             fio(mount, words, args.seconds))
        for mount in mounts:
            processes, memory = mount.pss_bytes()
            note("processes", "", mount.kind, processes)
            note("their memory after that (PSS)", "MiB", mount.kind, memory / MIB)
            mount.down()
        for i in range(2 * args.rounds):
            for mount in mounts if i % 2 == 0 else reversed(mounts):
                note("cowfs mount until the first answer", "ms", mount.kind, mount.up() * 1000)
                if i == 0:
                    note("memory of an idle mount (PSS)", "MiB", mount.kind,
                         mount.pss_bytes()[1] / MIB)
                note("cowfs umount", "ms", mount.kind, mount.down() * 1000)
    finally:
        for mount in mounts:
            if os.path.ismount(mount.path):
                subprocess.run([args.cowfs, "umount", mount.path], check=False)
    return rows


def show(rows):
    print("| | nosupervise | supervise | supervise : nosupervise, median (each round) |")
    print("| --- | --- | --- | --- |")
    for name, (unit, figures) in rows.items():
        plain, kept = (figures[kind] for kind in KINDS)
        ratios = [b / a for a, b in zip(plain, kept)]
        each = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        digits = 0 if unit in ("/s", "") else 1
        print(f"| {name} | {statistics.median(plain):.{digits}f} {unit} "
              f"| {statistics.median(kept):.{digits}f} {unit} "
              f"| {statistics.median(ratios):.3f}{each} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cowfs", type=pathlib.Path, default=ROOT / "build/bin/cowfs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each fio job")
    parser.add_argument("--row", default="", help="only those with this in their name")
    parser.add_argument("--directory", default="/dev/shm", help="where the stores are made")
    args = parser.parse_args()
    # Else a mount namespace that somebody makes meanwhile would have these mounts, and keep them.
    if "COWFS_COST_NAMESPACE" not in os.environ:
        os.environ["COWFS_COST_NAMESPACE"] = "private"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("not at real-time priority")
    with tempfile.TemporaryDirectory(prefix="cowfs-cost.", dir=args.directory) as directory:
        show(measure(args, pathlib.Path(directory)))


if __name__ == "__main__":
    main()
