# SPDX-License-Identifier: Apache-2.0
"""What every row gets: where to work, what to measure with, where to report."""

import dataclasses
import pathlib

from . import targets
from .sandbox import CommandFailed, Skip


@dataclasses.dataclass
class Bench:
    sandbox: object
    report: object
    scale: object
    root: pathlib.Path
    helpers: pathlib.Path
    cowfs_binary: pathlib.Path
    # Why cowfs cannot be measured; empty when it can. The peers still are.
    cowfs_missing: str
    passthrough_binary: pathlib.Path

    def enter(self, stack, row, name, manager):
        """Opens a target for the length of `stack`; None, and a note, if it
        cannot be had: one missing peer does not take the row away."""
        try:
            return stack.enter_context(manager)
        except (Skip, CommandFailed) as e:
            self.report.note(row, f"{name} left out: {e}")
            return None

    def require_cowfs(self):
        if self.cowfs_missing:
            raise Skip(self.cowfs_missing)

    def cowfs(self, stack, size_bytes, options=()):
        """A fresh cowfs, or None where there is no binary. A mount that fails
        is not caught: the row is then about nothing."""
        if self.cowfs_missing:
            return None
        return stack.enter_context(
            targets.cowfs(self.sandbox, self.cowfs_binary, size_bytes, options))

    def loop(self, stack, row, kind, size_bytes):
        return self.enter(stack, row, kind,
                          targets.loop_file_system(self.sandbox, kind, size_bytes))

    def tmpfs(self, stack, row, size_bytes):
        return self.enter(stack, row, "tmpfs", targets.tmpfs(self.sandbox, size_bytes))

    def cowfs_variant(self, stack, row, size_bytes, *options):
        """cowfs with options that it may not have (yet): None, and a note, then."""
        if self.cowfs_missing:
            return None
        return self.enter(stack, row, f"cowfs -o {','.join(options)}",
                          targets.cowfs(self.sandbox, self.cowfs_binary, size_bytes, options))

    def cowfs_on(self, stack, volume, options=()):
        self.require_cowfs()
        return stack.enter_context(
            targets.cowfs_on(self.sandbox, self.cowfs_binary, volume, options))

    def passthrough(self, stack, row, size_bytes, *modes):
        """passthrough_hp over one directory, once for each mode that can be had."""
        volume = stack.enter_context(self.sandbox.volume("passthrough-source", size_bytes))
        found = [self.enter(stack, row, targets.passthrough_name(mode),
                            targets.passthrough_hp(self.sandbox, self.passthrough_binary,
                                                   volume, mode))
                 for mode in modes]
        return [t for t in found if t]

    def scaled(self, row, what, wanted, got):
        if got != wanted:
            self.report.note(row, f"{what} scaled down to {got >> 20} MiB for want of memory")
        return got
