# SPDX-License-Identifier: Apache-2.0
"""cowfs and its peers, each as a directory to measure in.

Every peer runs with its own defaults: what its users get. Python never touches
a FUSE mount itself; only children with a time limit do, so a daemon that hangs
costs a row and not the bench.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time

from .sandbox import CommandFailed, Skip, mount_points, unmount, wait_until


@dataclasses.dataclass
class Target:
    name: str
    sandbox: object
    directory: pathlib.Path
    # Where its bytes are counted: for cowfs and passthrough_hp the tmpfs below.
    volume: pathlib.Path
    fuse: bool = False

    def path(self, name):
        return self.directory / name

    def mkdir(self, name):
        self.sandbox.run("mkdir", self.path(name))
        return self.path(name)

    def remove(self, *names):
        self.sandbox.run("rm", "-rf", "--", *(self.path(n) for n in names))

    def sync(self):
        self.sandbox.run("sync", "-f", self.directory)

    def used_bytes(self):
        """Bytes in use on the volume below, or in the loop's file system."""
        s = os.statvfs(self.volume)
        return (s.f_blocks - s.f_bfree) * s.f_frsize

    def settled_bytes(self, quiet_s=2.0, most_s=15.0):
        """used_bytes once it has stood still for quiet_s: after deferred work."""
        end, last, since = time.monotonic() + most_s, self.used_bytes(), time.monotonic()
        while time.monotonic() < end and time.monotonic() - since < quiet_s:
            time.sleep(0.1)
            now = self.used_bytes()
            if now != last:
                last, since = now, time.monotonic()
        return last

    def pids(self):
        return []


@contextlib.contextmanager
def tmpfs(sandbox, size_bytes):
    if not sandbox.on_tmpfs:
        raise Skip("the work directory is not on tmpfs")
    with sandbox.volume("tmpfs", size_bytes) as volume:
        yield Target("tmpfs", sandbox, volume, volume)


class LoopTarget(Target):
    image = kind = None

    def mount(self):
        self.sandbox.run("mount", "-o", "loop", "-t", self.kind, self.image, self.directory)

    def settled_bytes(self, quiet_s=2.0, most_s=15.0):
        """XFS holds space ahead of copies on write (128 KiB for each 4 KiB, in
        this bench) until it forgets the inode: by df, several times the data.
        That would be an unfair figure of it, so it is counted after a remount."""
        unmount(self.directory)
        self.mount()
        return super().settled_bytes(quiet_s, most_s)


@contextlib.contextmanager
def loop_file_system(sandbox, kind, size_bytes):
    """XFS or btrfs with its mkfs's and its mount's defaults, on a loop device."""
    options = {"xfs": ["-q"], "btrfs": ["-q"]}[kind]
    with sandbox.volume(f"{kind}-image", size_bytes + size_bytes // 8) as volume:
        image, directory = volume / "image", sandbox.new_path(kind)
        directory.mkdir()
        with open(image, "wb") as f:
            f.truncate(size_bytes)
        sandbox.run(f"mkfs.{kind}", *options, image)
        target = LoopTarget({"xfs": "XFS"}.get(kind, kind), sandbox, directory, directory)
        target.image, target.kind = image, kind
        target.mount()
        try:
            yield target
        finally:
            unmount(directory)


@contextlib.contextmanager
def passthrough_hp(sandbox, binary, size_bytes, splice=True):
    """libfuse's example without passthrough: the floor of FUSE itself.

    Without passthrough it asks for the writeback cache, as facts for a fair
    race want it. With splice it reads faster one at a time, without it many at
    a time, so both stand in the table.
    """
    if not os.access(binary, os.X_OK):
        raise Skip(f"{binary.name} is missing (scripts/deps builds it)")
    name = "passthrough_hp" if splice else "passthrough_hp --nosplice"
    with sandbox.volume("passthrough-source", size_bytes) as volume:
        directory = sandbox.new_path("passthrough")
        directory.mkdir()
        options = ["--nopassthrough", "--foreground"] + ([] if splice else ["--nosplice"])
        child = subprocess.Popen([binary, *options, volume, directory],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        try:
            mounted = wait_until(lambda: str(directory) in mount_points() or
                                 child.poll() is not None, 10)
            if not mounted or child.poll() is not None:
                raise Skip(f"{name} did not mount (status {child.returncode})")
            target = Target(name, sandbox, directory, volume, fuse=True)
            target.pids = lambda: [child.pid]
            yield target
        finally:
            unmount(directory)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            if child.poll() is None:
                child.kill()
                child.wait()


class CowfsTarget(Target):
    binary = store = None

    def command(self, *words):
        return self.sandbox.run(self.binary, *words)

    def df(self):
        return json.loads(self.command("df", "--json", self.directory))

    def pids(self):
        """Supervisor and daemon: processes that name this very store, whose
        path is like no other's (mkdtemp)."""
        found, wanted = [], os.fsencode(str(self.store))
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = pathlib.Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if wanted in words:
                    found.append(int(entry))
        return sorted(found)


@contextlib.contextmanager
def cowfs(sandbox, binary, size_bytes, options=()):
    """A new store on a volume of its own, mounted with the defaults + options."""
    with sandbox.volume("store", size_bytes) as volume:
        directory = sandbox.new_path("cowfs")
        directory.mkdir()
        target = CowfsTarget("cowfs", sandbox, directory, volume, fuse=True)
        target.binary, target.store = binary, volume / "store"
        words = ["-o", ",".join(options)] if options else []
        try:
            # Into a file: a daemon that keeps stderr open would keep a pipe
            # open too, and run() would wait for its end.
            log = sandbox.new_path("cowfs.log")
            try:
                sandbox.run("sh", "-c", 'log=$1; shift; exec "$@" >"$log" 2>&1', "sh", log,
                            binary, "mount", *words, target.store, directory, timeout_s=60)
            except CommandFailed:
                raise CommandFailed([binary], "mount failed", log.read_text("utf-8")) from None
            yield target
        finally:
            _stop_cowfs(target)


def _stop_cowfs(target):
    if str(target.directory) in mount_points():
        with contextlib.suppress(CommandFailed, Skip):
            target.sandbox.run(target.binary, "umount", target.directory, timeout_s=60)
    unmount(target.directory)
    # The daemon outlives a lazy umount for as long as it hangs on something.
    if not wait_until(lambda: not target.pids(), 5, 0.1):
        for pid in target.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not target.pids(), 5, 0.1)


def _bdi(target):
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        for line in f:
            words = line.split()
            if words[4] == str(target.directory):
                return pathlib.Path("/sys/class/bdi", words[2])
    raise Skip(f"{target.name} is not mounted any more")


def bdi_settings(target):
    """How far the kernel lets this mount's page cache go."""
    return {name: int((_bdi(target) / name).read_text())
            for name in ("read_ahead_kb", "max_ratio", "strict_limit")}


def set_bdi(target, settings):
    for name, value in settings.items():
        (_bdi(target) / name).write_text(str(value))
