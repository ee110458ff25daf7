// SPDX-License-Identifier: Apache-2.0
/* cowfs_tree.h - walking and removing directory trees, for the subcommands. */
#ifndef COWFS_TREE_H
#define COWFS_TREE_H

#include <stdbool.h>
#include <sys/stat.h>

/*
 * Calls fn for everything below the directory `fd` (not for itself), parents
 * before children, links not followed. `path` is what the directory is called
 * in messages. fn gets the containing directory and the name in it; its false
 * ends the walk. False if that happened or something could not be read (said
 * so already).
 */
typedef bool (*tree_fn)(void *arg, int dir_fd, const char *name, const char *path,
                        const struct stat *st);
bool tree_walk(int fd, const char *path, tree_fn fn, void *arg);

/* The same for the regular files alone, opened for reading. One that has gone meanwhile is passed
 * over. */
typedef bool (*tree_file_fn)(void *arg, int fd, const char *path);
bool tree_walk_files(int fd, const char *path, tree_file_fn fn, void *arg);

/* For tree_walk: adds the sizes of regular files to the uint64_t that arg points to. */
bool tree_add_size(void *arg, int dir_fd, const char *name, const char *path,
                   const struct stat *st);

/* Opens a regular file found by a walk for reading. -1: said so already. */
int tree_open_file(int dir_fd, const char *name, const char *path);

/* Removes dir/name and all below. 0 or the first negative errno; the rest is
 * removed all the same. */
int tree_remove(int dir_fd, const char *name);

#endif
