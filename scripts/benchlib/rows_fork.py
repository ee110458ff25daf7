# SPDX-License-Identifier: Apache-2.0
"""Rows fork and sleep: cowvm with guests that run. TCG: a guest with KVM answers sooner."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import time

from .measure import median, process_memory
from .rows_clone import over
from .sandbox import GIB, MIB, CommandFailed, Skip, wait_until

ROW_FORK, ROW_SLEEP = 23, 24
MEMORY_MIB, DIRTY_MIB = 512, 100
PORT = 6379
STEPS = ("flush", "start", "stop", "save", "clone", "continue", "restore", "on")


class Vms:
    """The VMs in one directory, by cowvm."""

    def __init__(self, bench, target):
        self.bench, self.target, self.name = bench, target, target.name
        self.program = bench.cowfs_binary.parent / "cowvm"
        self.run_dir = bench.sandbox.new_path("run")
        self.env = {"COWVM_DIR": str(target.path("")), "COWVM_RUN": str(self.run_dir)}

    def do(self, *words):
        return self.bench.sandbox.run(self.program, *words, env=self.env)

    def describe(self, name):
        return json.loads(self.do("ls", "--json", name))[0]

    def runtime(self, name):
        path = pathlib.Path(self.target.path(name)) / "vm.json"
        return self.run_dir / json.loads(path.read_text("utf-8"))["uuid"]

    def ask(self, name, line, seconds=60):
        """One line to the guest, its answer."""
        word, end = line.split()[0], time.monotonic() + seconds
        directory = os.open(self.runtime(name), os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(f"/proc/self/fd/{directory}/console")
            os.close(directory)
            console.settimeout(1)
            console.sendall(line.encode() + b"\n")
            seen = b""
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    seen += console.recv(4096)
                found = re.search(rb"=" + word.encode() + rb" ?([^\r\n]*)[\r\n]", seen)
                if found:
                    return found[1].decode()
        raise CommandFailed(["ask", name, line], "no answer", seen.decode(errors="replace"))

    def ask_service(self, name, port=None):
        """Of redis-server in the guest, over the network."""
        port = port or self.describe(name)["forwards"][str(PORT)]
        with socket.create_connection(("127.0.0.1", port), 60) as service:
            service.settimeout(60)
            service.sendall(b"get count\r\n")
            return service.recv(100)

    def boot(self, guest):
        """golden, from the guest's files; seconds until it was ready."""
        self.do("create", "golden", "--quiet", "--accel", "tcg", "--memory", f"{MEMORY_MIB}M",
                "--forward", PORT,
                "--disk", guest / "disk.img", "--kernel", guest / "vmlinuz",
                "--initrd", guest / "initrd", "--append", "console=ttyS0 quiet panic=-1")
        began = time.monotonic()
        self.do("start", "golden")
        log = self.runtime("golden") / "serial.log"
        wait_until(lambda: b"GUEST READY" in log.read_bytes(), 180)
        return time.monotonic() - began

    def end(self):
        for path in pathlib.Path(self.target.path("")).iterdir():
            if (path / "vm.json").exists():
                with contextlib.suppress(CommandFailed):
                    self.do("stop", "--now", path.name)


def build_guest(bench, directory):
    script = bench.root / "scripts/lib/guest.sh"
    try:
        bench.sandbox.run("bash", "-c", '. "$1" && guest_build "$2"', "bash", script,
                          directory / "guest", env={"COWFS_INPUTS": str(directory)})
    except CommandFailed as e:
        raise Skip(f"no guest can be made here: {e}") from None
    return directory / "guest"


def inputs(bench, stack):
    cache = os.environ.get("COWFS_INPUTS")
    return (pathlib.Path(cache) if cache and os.path.isdir(cache)
            else stack.enter_context(bench.sandbox.volume("inputs", GIB)))


def one_fork(vms):
    """Milliseconds of each step, and until the copy has answered."""
    vms.ask("golden", f"fill {DIRTY_MIB}")
    began = time.monotonic()
    steps = json.loads(vms.do("fork", "--json", "--keep-card", "golden", "copy"))
    vms.ask_service("copy", steps["forwards"]["copy"][str(PORT)])
    steps["answer_ms"] = (time.monotonic() - began) * 1000
    vms.ask("golden", "count")
    vms.do("rm", "--force", "copy")
    return steps


# Forks that start a QEMU, and forks that find one waiting.
HOW = ((), ("standby",), ("standby", "--write-back"))


def forks_with(vms, rounds, how):
    if not how:
        return [one_fork(vms) for _ in range(rounds)]
    vms.do(*how, "golden")
    # Once more: its keeper learns from the first one.
    one_fork(vms)
    found = []
    for _ in range(rounds):
        wait_until(lambda: "standby_bytes" in vms.describe("golden"), 60)
        found.append(one_fork(vms))
    vms.do("standby", "--off", "golden")
    return found


def forks_on(stack, vms, rounds):
    stack.callback(vms.end)
    vms.do("resume", "golden")
    vms.ask("golden", "count")
    return [forks_with(vms, rounds, how) for how in HOW]


def many(vms, count):
    before = process_memory([vms.describe("golden")["pid"]])["Pss"]
    began = time.monotonic()
    vms.do("fork", "--keep-card", "--count", count, "golden", "many")
    names = [f"many-{i + 1}" for i in range(count)]
    for name in names:
        vms.ask_service(name)
    took = time.monotonic() - began
    pids = [vms.describe(name)["pid"] for name in ["golden", *names]]
    after = process_memory(pids)["Pss"]
    vms.do("rm", "--force", *names)
    return took, (after - before) / count


def fork(bench):
    """cowvm create golden --memory 512M, start; in the guest 100 MiB are written to a tmpfs; then
    timed: cowvm fork --json --keep-card golden copy, and the answer of the copy's redis-server over
    its own port: without a standby; after cowvm standby golden; and after cowvm standby --write-back
    golden, which has some of the 100 MiB written back while the guest still writes. The same program on XFS (each file by
    FICLONE) and on tmpfs (copied), from the same hibernated golden. Then cowvm fork --count N, until all N have answered, and the Pss of all QEMUs
    less that of golden before, by N. QEMU under TCG."""
    rounds = max(3, bench.scale.rounds)
    count = 4 if bench.scale.quick else 16
    room = MEMORY_MIB * 4 * MIB + 2 * GIB
    results = {}
    with contextlib.ExitStack() as stack:
        guest = build_guest(bench, inputs(bench, stack))
        own = bench.cowfs(stack, room)
        bench.require_cowfs()
        peers = [t for t in (bench.loop(stack, ROW_FORK, "xfs", room),
                             bench.tmpfs(stack, ROW_FORK, room)) if t]
        vms = Vms(bench, own)
        with contextlib.ExitStack() as running:
            running.callback(vms.end)
            vms.boot(guest)
            vms.do("hibernate", "golden")
        for target in peers:
            bench.sandbox.run("cp", "-r", "--sparse=always", own.path("golden"),
                              target.path("golden"))
        for target in (own, *peers):
            with contextlib.ExitStack() as running:
                found = Vms(bench, target)
                results[target.name] = forks_on(running, found, rounds)
                if target is own:
                    took, each = many(found, count)
    what = f"a guest of {MEMORY_MIB} MiB, {DIRTY_MIB} MiB of them just written"
    for i, how in enumerate(f", cowvm {' '.join(how)} before" if how else "" for how in HOW):
        kind = {n: v[i] for n, v in results.items()}
        answer, paused = ({n: [r[key] / 1000 for r in v] for n, v in kind.items()}
                          for key in ("answer_ms", "paused_ms"))
        bench.report.add(ROW_FORK, f"fork of {what}{how}: from the command to the copy's answer",
                         "s", answer, median(answer[own.name]), "seconds", ("<=", 0.2))
        bench.report.add(ROW_FORK, f"fork of {what}{how}: the source stands still", "s", paused,
                         median(paused[own.name]), "seconds", ("<=", 0.06))
        for name, found in kind.items():
            steps = ", ".join(f"{s} {median([r[s + '_ms'] for r in found]):.1f}" for s in STEPS)
            bench.report.note(ROW_FORK, f"steps on {name}{how}, medians in ms: {steps}")
    bench.report.add(ROW_FORK, f"fork --count {count}: all have answered", "s", {"cowfs": [took]})
    bench.report.add(ROW_FORK, f"fork --count {count}: memory of the machine for each copy (Pss)",
                     "B", {"cowfs": [each]})


def first_output(vms, golden):
    """Seconds from cowvm run --rm to the guest's first answer. What is typed before it runs is lost,
    so the question is asked again and again."""
    began = time.monotonic()
    child = subprocess.Popen([vms.program, "run", "--rm", golden], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0,
                             env={**os.environ, **vms.env})
    try:
        os.set_blocking(child.stdout.fileno(), False)
        seen = b""
        while b"=count" not in seen:
            if child.poll() is not None or time.monotonic() > began + 60:
                raise CommandFailed(child.args, child.returncode, seen.decode(errors="replace"))
            child.stdin.write(b"count\n")
            child.stdin.flush()
            time.sleep(0.02)
            seen += child.stdout.read() or b""
        return time.monotonic() - began
    finally:
        child.terminate()
        child.wait(30)
        child.stdin.close()
        child.stdout.close()


def sleep(bench):
    """golden boots (timed), is hibernated and resumed (timed, each until it has answered); ten forks
    of it (cowvm fork --count 10, then cowvm hibernate of each): bytes stored for each by cowfs df.
    Then cowvm run --rm golden, until its first answer, beside golden's boot."""
    rounds, count = max(3, bench.scale.rounds), 4 if bench.scale.quick else 10
    times = {"hibernate": [], "resume": [], "run": []}
    with contextlib.ExitStack() as stack:
        guest = build_guest(bench, inputs(bench, stack))
        own = bench.cowfs(stack, MEMORY_MIB * 4 * MIB + 2 * GIB)
        bench.require_cowfs()
        vms = Vms(bench, own)
        stack.callback(vms.end)
        boot = vms.boot(guest)
        for _ in range(rounds):
            began = time.monotonic()
            vms.do("hibernate", "golden")
            times["hibernate"].append(time.monotonic() - began)
            began = time.monotonic()
            vms.do("resume", "golden")
            vms.ask("golden", "count")
            times["resume"].append(time.monotonic() - began)
        own.sync()
        before = own.df()["stored_bytes"]
        vms.do("fork", "--keep-card", "--count", count, "golden", "many")
        names = [f"many-{i + 1}" for i in range(count)]
        for name in names:
            vms.ask(name, f"set {name}", 180)
        vms.do("hibernate", "golden", *names)
        own.sync()
        each = (own.df()["stored_bytes"] - before) / count
        before = own.df()["stored_bytes"]
        for _ in range(rounds):
            times["run"].append(first_output(vms, "golden"))
        wait_until(lambda: own.df()["stored_bytes"] <= before, 30)
        left = own.df()["stored_bytes"] - before
    bench.report.add(ROW_SLEEP, f"hibernate a guest of {MEMORY_MIB} MiB", "s",
                     {"cowfs": times["hibernate"]})
    bench.report.add(ROW_SLEEP, "resume it, until it has answered", "s", {"cowfs": times["resume"]})
    bench.report.add(ROW_SLEEP, f"{count} hibernated forks of one golden VM: stored for each", "B",
                     {"cowfs": [each]})
    against = {"cowfs": times["run"], "booting it": [boot]}
    bench.report.add(ROW_SLEEP, "cowvm run --rm: until the guest's first answer", "s", against,
                     over(against, "booting it", "cowfs"), "times sooner")
    bench.report.add(ROW_SLEEP, "cowvm run --rm: left on the store afterwards", "B",
                     {"cowfs": [float(left)]})
