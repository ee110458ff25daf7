// SPDX-License-Identifier: Apache-2.0
/*
 * ioctl.h - what tools ask a mount, by ioctl(2) on files and directories in
 * it. This is the interface between the cowfs command and the daemon. Those of plain
 * users that may take long are served two at a time.
 *
 * Every struct begins with `version` = COWFS_IOCTL_VERSION; another version
 * gives EPROTO. Numbers are native-endian. Bytes unless a name says otherwise.
 */
#ifndef COWFS_IOCTL_H
#define COWFS_IOCTL_H

#include <linux/ioctl.h>
#include <stdint.h>

#define COWFS_IOCTL_VERSION 2

/*
 * A capability for a file or directory that the caller has open for reading:
 * given with COWFS_IOC_CLONE to say what to clone, so that the daemon needs no
 * path and trusts no number. Valid for some minutes, in this daemon.
 */
struct cowfs_ioc_token {
    uint32_t version;
    uint32_t reserved;
    uint64_t token[2]; /* out */
};

/*
 * On the destination's parent directory: makes `name`, a clone of what the
 * token stands for; a directory is cloned with all in it as one atomic step.
 * EEXIST if name exists; EINVAL if the destination lies within the source;
 * EACCES if the caller may not write the directory or read what is cloned.
 * ENOKEY if the daemon cannot tell whether the caller sees the directory by a mount that
 * is not read-only (he is in another mount namespace, or there is such a mount): then on
 * a file that the caller has made there by O_TMPFILE and has open, instead.
 * Does not flush the kernel's dirty pages of the source: the caller has
 * called sync_file_range on the files before.
 */
struct cowfs_ioc_clone {
    uint32_t version;
    uint32_t reserved;
    uint64_t token[2];
    char name[256];
    uint64_t files, directories, symlinks; /* out: cloned */
    uint64_t left_out;                     /* out: sockets, fifos, devices */
};

/* Names in a request of many: each ends with a NUL, one after the other. */
#define COWFS_NAMES_BYTES 12288

/*
 * On the destination's parent directory: several clones, one after the other, each as
 * COWFS_IOC_CLONE makes it. `names` has `count` pairs: of what to clone, as a name in the
 * directory that the token stands for (empty: what the token itself stands for), and of the
 * clone. Ends early now and then: call again with the pairs that are left.
 */
struct cowfs_ioc_clone_many {
    uint32_t version;
    uint32_t count; /* pairs */
    uint32_t done;  /* out: the first so many have been made */
    int32_t error;  /* out: the errno of the next one; 0: there was none, or no time for it */
    uint64_t token[2];
    uint64_t files, directories, symlinks, left_out; /* out: together */
    char names[COWFS_NAMES_BYTES];
};

/*
 * On a directory: deletes `count` names in it, one after the other, each with all below it as
 * one atomic step. Needs the rights that rm -r needs, from top to bottom. E2BIG if there are
 * more names below than go in one step. Ends early now and then: call again with those left.
 */
struct cowfs_ioc_delete {
    uint32_t version;
    uint32_t count;              /* names */
    uint32_t done;               /* out: the first so many are gone */
    int32_t error;               /* out: as above */
    uint64_t files, directories; /* out: names of such deleted; files: all but directories */
    char names[COWFS_NAMES_BYTES];
};

/* On a regular file: what it consists of. */
struct cowfs_ioc_stat {
    uint32_t version;
    uint32_t chunk_bytes; /* out */
    uint64_t size, mapped, holes;
    uint64_t private_bytes; /* one owner, not sealed */
    uint64_t shared_bytes;  /* several owners */
    uint64_t sealed_bytes;  /* content address known; any number of owners */
    uint64_t reserved_bytes;
    uint64_t extents; /* runs of neighbouring chunks */
    uint64_t levels, ino;
    uint32_t passthrough;      /* out: by this mount it is read past the daemon, or would be */
    uint32_t flat;             /* out: it is one whole flat segment, which passthrough needs */
    char not_passthrough[192]; /* out: why it is not, NUL-terminated */
};

/* On a file or directory (taken with all below it): usage of the tree. EACCES if the
 * caller may not list a directory of it. */
struct cowfs_ioc_du {
    uint32_t version;
    uint32_t reserved;
    uint64_t files, directories;
    uint64_t apparent;  /* sum of sizes */
    uint64_t mapped;    /* sum of what files map, multiply if shared inside */
    uint64_t exclusive; /* stored bytes that only this tree holds */
    uint64_t shared;    /* stored bytes that it shares with others */
};

/* On anything in the mount: the store as a whole. */
struct cowfs_ioc_df {
    uint32_t version;
    uint32_t chunk_bytes;
    uint64_t files, inodes;
    uint64_t logical;            /* sum of sizes of regular files */
    uint64_t mapped;             /* sum of what they map */
    uint64_t holes;              /* logical - mapped */
    uint64_t stored;             /* live chunks */
    uint64_t saved_by_dedup;     /* owners that came by deduplication */
    uint64_t saved_by_cloning;   /* mapped - stored - saved_by_dedup */
    uint64_t metadata;           /* the database's files */
    uint64_t segments_allocated; /* blocks of the segment files */
    uint64_t pending_free;       /* freed, not yet given back */
    uint64_t fs_total, fs_free;
    uint64_t sealed;
    char uuid[16];
};

/* On a file: seals (hashes and deduplicates) chunks from `offset` on, about
 * `length` bytes at most; call again with offset = next until next == 0. EPERM
 * for one who is not the owner and may not write it. */
struct cowfs_ioc_seal {
    uint32_t version;
    uint32_t reserved;
    uint64_t offset, length;
    uint64_t next;         /* out: where to go on, 0 at the end */
    uint64_t hashed;       /* out: bytes hashed by this call */
    uint64_t deduplicated; /* out: bytes that found their equal */
};

/*
 * On a regular file: whose sealing finds its content. Chunks from `offset` on, about `length`
 * bytes at most; call again with offset = next until next == 0. EPERM for anything but TELL by
 * others than root and whom the daemon runs as.
 */
enum {
    COWFS_PUBLIC_TELL = 0, /* changes nothing */
    COWFS_PUBLIC_ON = 1,   /* seals, and has every owner's sealing find the content it has now */
    COWFS_PUBLIC_OFF = 2,  /* nobody but its owner's finds it any more */
};
struct cowfs_ioc_public {
    uint32_t version;
    uint32_t action;
    uint64_t offset, length;
    uint64_t next;         /* out: where to go on, 0 at the end */
    uint64_t public_bytes; /* out: of the part looked at, public by now */
    uint64_t changed;      /* out: of the part looked at, made so, or not so, by this call */
    uint64_t unsealed;     /* out: of the part looked at, not found by anybody's sealing yet */
    uint32_t domain;       /* out: the owner's, in which it is sealed */
    uint32_t reserved;
};

/*
 * On a file opened for writing (else EBADF): lays it out flat, as one segment of its
 * own, chunks from `offset` on (0 to begin), about `length` bytes; call again with
 * offset = next until next == 0. EAGAIN: it was cloned or cut meanwhile: begin again
 * at 0.
 */
struct cowfs_ioc_pack {
    uint32_t version;
    uint32_t reserved;
    uint64_t offset, length;
    uint64_t next;  /* out: where to go on, 0 at the end */
    uint64_t moved; /* out: bytes moved by this call */
};

/* On file A: byte ranges in which A's and the other's *chunks* differ, from
 * the maps alone; the caller compares bytes where he needs to. EACCES if he may
 * not read both. */
#define COWFS_DIFF_RANGES 256
struct cowfs_ioc_diff {
    uint32_t version;
    uint32_t count;    /* out: ranges filled */
    uint64_t token[2]; /* of file B */
    uint64_t offset;   /* from here */
    uint64_t next;     /* out: where to go on, 0 at the end */
    struct {
        uint64_t offset, length;
    } range[COWFS_DIFF_RANGES];
};

/* On anything: commits; with flags = 1 also waits until freed space has been
 * given back to the file system below. */
struct cowfs_ioc_commit {
    uint32_t version;
    uint32_t flags;
};

/*
 * On anything, by root or whom the daemon runs as: reads sealed chunks and
 * compares them with their hashes, from chunk number `position` on, about
 * `length` bytes at most (and never more than some MiB); call again with
 * position = next until next == 0. A chunk that is damaged is remembered:
 * reading it gives EIO from then on, whichever file has it.
 */
#define COWFS_SCRUB_CHUNKS 64
struct cowfs_ioc_scrub {
    uint32_t version;
    uint32_t count; /* out: of chunk[] */
    uint64_t position, length;
    uint64_t next;    /* out: where to go on, 0 at the end */
    uint64_t checked; /* out: bytes read and compared by this call */
    uint64_t damaged; /* out: damaged chunks that are known by now, of all calls */
    struct {
        uint64_t number;
        int32_t error; /* 0: it has not its hash, else the errno of reading it */
        uint32_t reserved;
    } chunk[COWFS_SCRUB_CHUNKS]; /* out: the damaged ones that this call has met */
};

/* On a regular file: its byte ranges that are known to be damaged, from
 * `offset` on; call again with offset = next until next == 0. */
#define COWFS_DAMAGE_RANGES 256
struct cowfs_ioc_damage {
    uint32_t version;
    uint32_t count; /* out: ranges filled */
    uint64_t offset;
    uint64_t next; /* out: where to go on, 0 at the end */
    struct {
        uint64_t offset, length;
    } range[COWFS_DAMAGE_RANGES];
};

/* What mount this is. */
struct cowfs_ioc_info {
    uint32_t version;
    uint32_t pid;
    char store_path[1024]; /* NUL-terminated, cut if longer */
    uint32_t is_view;      /* this is the read-only view beside another mount */
    uint32_t reserved;
    char view_path[1024]; /* where the store's view is mounted; empty: nowhere */
};

/*
 * On the root of a mount that has a supervisor: the program that is installed now shall go on
 * in the daemon's place. The answer comes before that happens: ask again (without the
 * flag) until pid is another; a reason says then that it is not the installed one that serves,
 * because that has failed. For root, and the daemon's own user; else EPERM.
 */
enum { COWFS_UPGRADE_GO = 1 };
struct cowfs_ioc_upgrade {
    uint32_t version;
    uint32_t flags;          /* COWFS_UPGRADE_GO, or 0: only tell */
    uint32_t pid;            /* out: of the daemon */
    uint32_t supervisor_pid; /* out: 0: there is none */
    char program_version[64];
    char reason[512]; /* out: why nothing will be done, or was; empty: it will, or was */
};

#define COWFS_IOC_TOKEN _IOWR('c', 1, struct cowfs_ioc_token)
#define COWFS_IOC_CLONE _IOWR('c', 2, struct cowfs_ioc_clone)
#define COWFS_IOC_STAT _IOWR('c', 3, struct cowfs_ioc_stat)
#define COWFS_IOC_DU _IOWR('c', 4, struct cowfs_ioc_du)
#define COWFS_IOC_DF _IOWR('c', 5, struct cowfs_ioc_df)
#define COWFS_IOC_SEAL _IOWR('c', 6, struct cowfs_ioc_seal)
#define COWFS_IOC_DIFF _IOWR('c', 7, struct cowfs_ioc_diff)
#define COWFS_IOC_COMMIT _IOWR('c', 8, struct cowfs_ioc_commit)
#define COWFS_IOC_INFO _IOWR('c', 9, struct cowfs_ioc_info)
#define COWFS_IOC_PACK _IOWR('c', 10, struct cowfs_ioc_pack)
#define COWFS_IOC_CLONE_MANY _IOWR('c', 11, struct cowfs_ioc_clone_many)
#define COWFS_IOC_DELETE _IOWR('c', 12, struct cowfs_ioc_delete)
#define COWFS_IOC_UPGRADE _IOWR('c', 14, struct cowfs_ioc_upgrade)
#define COWFS_IOC_PUBLIC _IOWR('c', 15, struct cowfs_ioc_public)
#define COWFS_IOC_SCRUB _IOWR('c', 20, struct cowfs_ioc_scrub)
#define COWFS_IOC_DAMAGE _IOWR('c', 21, struct cowfs_ioc_damage)

#endif
