/* SPDX-License-Identifier: Apache-2.0 */
/* region.c - see region.h. */
#include "region.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>

int mint_region_check(int fd, size_t bytes)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    const int need = F_SEAL_SHRINK | F_SEAL_GROW;

    if (seals < 0 || (seals & need) != need || fstat(fd, &st) < 0)
        return -EPROTO;
    return st.st_size >= 0 && (size_t)st.st_size == bytes ? 0 : -EPROTO;
}

static int protection(bool writable)
{
    return writable ? PROT_READ | PROT_WRITE : PROT_READ;
}

void *mint_region_map(int fd, size_t bytes, bool writable)
{
    void *p = mmap(NULL, bytes, protection(writable), MAP_SHARED, fd, 0);

    return p == MAP_FAILED ? NULL : p;
}

void *mint_region_map_twice(int fd, size_t bytes, bool writable)
{
    /* Reserve the addresses first, so that MAP_FIXED replaces nothing but our own reservation. */
    uint8_t *p =
        mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    for (int i = 0; i < 2; i++) {
        if (mmap(p + (size_t)i * bytes, bytes, protection(writable), MAP_SHARED | MAP_FIXED, fd,
                 0) == MAP_FAILED) {
            int saved = errno;

            munmap(p, 2 * bytes);
            errno = saved;
            return NULL;
        }
    }
    return p;
}
