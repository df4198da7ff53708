/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trim.c - keeps the number of files bounded that the guest's kernel remembers.
 *
 * The root is a view of the host's files, and whoever shows it (User-Mode Linux's hostfs, virtiofsd)
 * has a descriptor open for each inode that this kernel has in its cache. The kernel drops them when
 * memory gets short, and knows nothing of the host's limit: where that is low, one walk over a large
 * tree would leave nothing that can be opened. So it is looked at now and then, and the cache dropped
 * in time. Half of the inodes are the overlay's own, which cost nothing outside: that is the margin
 * for what is opened between two looks.
 */
#include "guest.h"
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define INODES "/proc/sys/fs/inode-nr"
#define DROP "/proc/sys/vm/drop_caches"
#define DECIMAL 10

/* Milliseconds to the next look: when there are few inodes; when there are many; after a drop, since
 * what is in use can't be dropped and more haste would not help. */
#define FEW_MS 1000u
#define MANY_MS 100u
#define DROPPED_MS 2000u

void trim_start(struct trim *trim, const char *limit)
{
    trim->limit = strtoul(limit, NULL, DECIMAL);
    trim->at = guest_now();
}

void trim_watch(const struct trim *trim, struct watch *w)
{
    if (trim->limit)
        watch_until(w, trim->at);
}

static unsigned long inodes(void)
{
    int fd = open(INODES, O_RDONLY | O_CLOEXEC);
    char text[64];
    ssize_t n;

    if (fd < 0)
        return 0;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return strtoul(text, NULL, DECIMAL);
}

void trim_serve(struct trim *trim)
{
    unsigned long n;

    if (!trim->limit || guest_now() < trim->at)
        return;
    n = inodes();
    if (n > trim->limit) {
        files_write(DROP, "2");
        trim->at = guest_now() + DROPPED_MS;
    } else
        trim->at = guest_now() + (n > trim->limit / 4 ? MANY_MS : FEW_MS);
}
