// SPDX-License-Identifier: Apache-2.0
/* remove_tree.h - the end of a test's own directory. */
#ifndef TESTS_UNIT_REMOVE_TREE_H
#define TESTS_UNIT_REMOVE_TREE_H

#include <glib.h>
#include <glib/gstdio.h>

/* With all that is in it; what cannot be removed stays, and nobody is told. */
static inline void remove_tree(const char *dir)
{
    GDir *entries = g_dir_open(dir, 0, NULL);
    const char *name;
    while (entries && (name = g_dir_read_name(entries))) {
        g_autofree char *child = g_build_filename(dir, name, NULL);
        if (g_unlink(child) != 0)
            remove_tree(child);
    }
    if (entries)
        g_dir_close(entries);
    g_rmdir(dir);
}

#endif
