# SPDX-License-Identifier: Apache-2.0
"""How big and how often. `quick` asks the same questions of smaller things."""

import dataclasses

from .sandbox import GIB


@dataclasses.dataclass
class Scale:
    quick: bool
    rounds: int             # times each peer gets its turn in rows 1, 3 and 8
    snap_bytes: int         # row 1, and the golden file of rows 4 and 5
    snap_writes: int        # row 1: random 4 KiB writes before the clone
    own_clones: int         # row 1: cowfs clones a round (they take milliseconds)
    unit_bytes: int         # rows 2, 3, 7, 8: the file that is read, tiled, cloned
    tiles: int              # row 2: how often it is mapped in the big file
    many_clones: int        # row 2: "the 10,000th"
    window: int             # row 2: clones in the median near either end
    chain: int              # row 3: "the 1,000th"
    chain_writes: int       # row 3: "a few writes of its own"
    random_reads: int       # row 3
    clones: int             # row 4
    clone_writes: int       # row 4
    image_mib: int          # row 6: each of two ext4 images
    memory_mib: int         # row 6: each of two guests
    unique_gib: int         # row 7: unique data, in files of unit_bytes
    qd1_ops: int            # row 8: 4 KiB requests, one at a time
    qd16_ops: int           # row 8: 4 KiB requests, 16 at a time
    buffered_ops: int       # buffered: 4 KiB writes; at 64 KiB four times the bytes
    density_bytes: int      # density: the memory.snap
    density_clones: int     # density
    scaling_bytes: int      # scaling: each of four files
    dirty_pages: int        # dirty: pages changed before the clone
    stall_pages: int        # stalls: pages changed at random
    vms: int                # vms
    vm_rounds: int          # vms: the mount times are one sample a round
    sustained_s: int        # sustained: seconds of writing
    fsync_ms: int           # fsync: each turn
    seal_files: int         # seal: files given to the sealer while others are read


def full(rounds):
    return Scale(quick=False, rounds=rounds or 3, snap_bytes=2 * GIB, snap_writes=100_000,
                 own_clones=10, unit_bytes=GIB, tiles=64, many_clones=10_000, window=50,
                 chain=1000, chain_writes=4, random_reads=20_000, clones=100, clone_writes=1000,
                 image_mib=1536, memory_mib=512, unique_gib=4, qd1_ops=20_000, qd16_ops=80_000,
                 buffered_ops=100_000, density_bytes=GIB, density_clones=16,
                 scaling_bytes=GIB // 4, dirty_pages=50_000, stall_pages=100_000, vms=10_000,
                 vm_rounds=3, sustained_s=30, fsync_ms=2000, seal_files=3)


def quick(rounds):
    return Scale(quick=True, rounds=rounds or 2, snap_bytes=GIB // 2, snap_writes=25_000,
                 own_clones=5, unit_bytes=GIB // 2, tiles=64, many_clones=1000, window=30,
                 chain=300, chain_writes=4, random_reads=8_000, clones=25, clone_writes=1000,
                 image_mib=256, memory_mib=128, unique_gib=1, qd1_ops=8_000, qd16_ops=20_000,
                 buffered_ops=25_000, density_bytes=GIB // 4, density_clones=16,
                 scaling_bytes=GIB // 16, dirty_pages=25_000, stall_pages=50_000, vms=1000,
                 vm_rounds=2, sustained_s=6, fsync_ms=1000, seal_files=2)
