# SPDX-License-Identifier: Apache-2.0
"""Rows 4, 5 and 6: bytes. What clones add, what deleting gives back, what
deduplication finds in real images."""

import contextlib
import hashlib
import mmap
import os
import pathlib
import subprocess
import time

from .measure import fill, scatter
from .rows_clone import copy_command
from .sandbox import GIB, MIB, CommandFailed, Skip
from .targets import CowfsTarget

BLOCK_BYTES = 4096


def growth_and_return(bench):
    """cp golden clones/N (XFS, btrfs: --reflink=always) and bench_io write clones/N WRITES, for
    each clone; statvfs of the tmpfs that holds the store (XFS, btrfs: of themselves). Then rm
    -rf clones, statvfs every 2 ms."""
    s, box = bench.scale, bench.sandbox
    written = s.clones * s.clone_writes * BLOCK_BYTES
    size_bytes = bench.scaled(4, "the golden file", s.snap_bytes,
                              box.fit(s.snap_bytes, 1 + 2 * written / s.snap_bytes))
    room = size_bytes + 4 * written + GIB
    results = {}
    for name, make in (("cowfs", lambda k: bench.cowfs(k, room)),
                       ("XFS", lambda k: bench.loop(k, 4, "xfs", room)),
                       ("btrfs", lambda k: bench.loop(k, 4, "btrfs", room))):
        # One after the other: this is about space, and memory is short.
        with contextlib.ExitStack() as stack:
            target = make(stack)
            if target:
                results[name] = one_store(bench, target, size_bytes, written)
    tell_growth(bench, results, written, size_bytes)


def one_store(bench, target, size_bytes, written):
    s = bench.scale
    fill(bench, target.path("golden"), size_bytes, seed=1)
    target.mkdir("clones")
    target.sync()
    result = {"before": target.settled_bytes()}
    own = isinstance(target, CowfsTarget)
    result["df_before"] = target.df() if own else None
    for n in range(s.clones):
        name = f"clones/{n}"
        bench.sandbox.run(*copy_command(target, "golden", name))
        scatter(bench, target.path(name), s.clone_writes, seed=10 + n)
    target.sync()
    result["after"] = target.used_bytes()
    result["settled"] = target.settled_bytes()
    result["df_after"] = target.df() if own else None
    limits = {"of_before": result["before"] + result["before"] // 50,
              "of_written": result["before"] + written // 50}
    result["back"], result["left"] = delete_and_wait(target, limits)
    return result


def delete_and_wait(target, limits, most_s=30):
    """Seconds from the start of rm until use has fallen to each limit (most_s:
    not by then), and the use once it stands still. rm itself is included."""
    back = dict.fromkeys(limits)
    started = time.monotonic()
    with subprocess.Popen(["rm", "-rf", "--", target.path("clones")],
                          stdin=subprocess.DEVNULL) as child:
        try:
            while time.monotonic() - started < most_s and (
                    child.poll() is None or None in back.values()):
                used, now = target.used_bytes(), time.monotonic() - started
                for name, limit in limits.items():
                    if used <= limit and back[name] is None and child.poll() is not None:
                        back[name] = now
                time.sleep(0.002)
        finally:
            if child.poll() is None:
                child.kill()
    return {n: most_s if t is None else t for n, t in back.items()}, target.settled_bytes()


def tell_growth(bench, results, written, size_bytes):
    s, missing = bench.scale, bench.cowfs_missing
    what = f"{s.clones} clones of {size_bytes >> 20} MiB, {s.clone_writes:,} random 4 KiB writes " \
           "each"
    for key, when in (("after", "right after the last fsync"),
                      ("settled", "once it stands still (XFS and btrfs: after a remount)")):
        samples = {n: [r[key] - r["before"]] for n, r in results.items()}
        own = samples.get("cowfs")
        bench.report.add(4, f"{what}: growth {when}", "B", {"cowfs": [], **samples},
                         own[0] / written if own else None, f"of {written >> 20} MiB written",
                         ("<=", 1.15), skipped=missing)
    for key, limit, goal in (("of_before", "2 % of the use before", ("<=", 2)),
                             ("of_written", "2 % of the bytes written", None)):
        samples = {n: [r["back"][key]] for n, r in results.items()}
        bench.report.add(5, f"`rm -rf` of those until use is within {limit} (30 s: never)", "s",
                         {"cowfs": [], **samples}, samples.get("cowfs", [None])[0], "seconds",
                         goal, skipped=missing)
    bench.report.note(4, "XFS reserves space around each copy on write until it forgets the inode, "
                         "so its growth right after the fsync is not all lost: see after a remount")
    left = ", ".join(f"{n} {(r['left'] - r['before']) / MIB:+.1f} MiB" for n, r in results.items())
    bench.report.note(5, f"use against before, once it stands still: {left}. cowfs's is the use "
                         "of the tmpfs that holds the store; XFS's and btrfs's is free space in "
                         "their own file system, of which tmpfs gets nothing back.")
    if "cowfs" in results:
        before, after = results["cowfs"]["df_before"], results["cowfs"]["df_after"]
        grown = {k: after[k] - before[k] for k in ("stored_bytes", "metadata_bytes")}
        bench.report.note(4, "by `cowfs df`: stored "
                             f"{grown['stored_bytes'] / MIB:+.1f} MiB, metadata "
                             f"{grown['metadata_bytes'] / MIB:+.1f} MiB")


def deduplication(bench):
    """Two ext4 images and two guest memories (scripts/lib/inputs.sh), cp into a mount with
    seal=off,chunk_size=4K|16K|64K, cowfs seal FILE…, cowfs df."""
    s, box = bench.scale, bench.sandbox
    bench.require_cowfs()
    total = 2 * (s.image_mib + s.memory_mib) * MIB
    box.need("row 6", int(total * 2.2))
    with contextlib.ExitStack() as stack:
        # A cache of the user's own saves a minute from the second run on.
        cache = os.environ.get("COWFS_INPUTS")
        inputs = (pathlib.Path(cache) if cache and os.path.isdir(cache)
                  else stack.enter_context(box.volume("inputs", total + GIB)))
        files = make_inputs(bench, inputs)
        for chunk_kib in (4, 16, 64):
            one_chunk_size(bench, files, chunk_kib, total)


def make_inputs(bench, directory):
    """Real images by scripts/lib/inputs.sh; a guest that cannot boot here is
    replaced by that script's own next best thing, and that is said."""
    s, script = bench.scale, bench.root / "scripts/lib/inputs.sh"
    if not script.exists():
        raise Skip("scripts/lib/inputs.sh is missing")
    env = {"COWFS_INPUTS": str(directory)}

    def call(words):
        bench.sandbox.run("bash", "-c", '. "$1" && shift && "$@"', "bash", script, *words,
                          env=env, timeout_s=400)

    files = []
    for seed in (0, 1):
        files.append(directory / f"bench-disk{seed}")
        call(["inputs_ext4_image", files[-1], s.image_mib, seed])
    for seed in (0, 1):
        files.append(directory / f"bench-memory{seed}")
        try:
            call(["inputs_memory_snap", files[-1], s.memory_mib, seed])
        except CommandFailed as e:
            bench.report.note(6, f"no guest could boot ({e}); memory.snap is the nearest thing")
            call(["inputs_memory_snap_nearest", files[-1], s.memory_mib, seed])
    return files


def one_chunk_size(bench, files, chunk_kib, total):
    box = bench.sandbox
    ideal, data_bytes = ideal_ratio(files, chunk_kib * 1024)
    with contextlib.ExitStack() as stack:
        target = bench.cowfs(stack, total + 2 * GIB, ["seal=off", f"chunk_size={chunk_kib}K"])
        for file in files:
            box.run("cp", file, target.path(file.name))
        target.sync()
        unsealed = target.df()
        started = time.monotonic()
        box.run(target.binary, "seal", "--json", *(target.path(f.name) for f in files),
                timeout_s=600)
        took = time.monotonic() - started
        target.sync()
        sealed, used = target.df(), target.settled_bytes()
        for file in files:  # what was merged must still be what was copied in
            box.run("cmp", file, target.path(file.name), timeout_s=120)
    ratio = sealed["mapped_bytes"] / max(sealed["stored_bytes"], 1)
    samples = {"cowfs": [ratio], "found by hashing the inputs": [ideal]}
    bench.report.add(6, f"dedup, chunks of {chunk_kib} KiB: mapped over stored bytes", "x",
                     samples, ratio / ideal, "of what is there")
    bench.report.add(6, f"metadata, chunks of {chunk_kib} KiB", "B",
                     {"cowfs": [sealed["metadata_bytes"]],
                      "store on its volume in all": [used]},
                     100 * sealed["metadata_bytes"] / max(sealed["stored_bytes"], 1),
                     "% of stored")
    bench.report.add(6, f"`cowfs seal`, chunks of {chunk_kib} KiB", "B/s",
                     {"cowfs": [unsealed["mapped_bytes"] / took]})
    bench.report.note(6, f"{chunk_kib} KiB: of {data_bytes / GIB:.2f} GiB that are not zero, "
                         f"{unsealed['stored_bytes'] / GIB:.2f} GiB stored before sealing, "
                         f"{sealed['stored_bytes'] / GIB:.2f} GiB after ({took:.1f} s)")


def ideal_ratio(files, chunk_bytes):
    """Chunks that are not zero over distinct ones, by hashing the inputs here:
    an answer that owes cowfs nothing."""
    seen, count, zero = set(), 0, bytes(chunk_bytes)
    for file in files:
        with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as data:
            for at in range(0, len(data), chunk_bytes):
                chunk = data[at:at + chunk_bytes]
                if chunk != zero[:len(chunk)]:
                    seen.add(hashlib.blake2b(chunk, digest_size=16).digest())
                    count += 1
    return count / max(len(seen), 1), count * chunk_bytes
