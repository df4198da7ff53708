/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gmem.c - see gmem.h.
 *
 * Nothing that a guest says about its memory is believed: regions must lie within their file and
 * apart from each other, and each address of a descriptor is looked up anew. What the guest can do
 * later is to cut the file short; then the kernel answers a touch by SIGBUS. The handler puts
 * zeroes in place of the region and notes it; whoever was copying goes on with zeroes, finds the
 * note after its batch, and gives the guest up. The process lives on.
 */
#include "gmem.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* A signal handler has no argument to find them by. NOLINTBEGIN(*-avoid-non-const-global-variables) */
static struct mint_gmem *guarded;
static volatile sig_atomic_t torn;
/* NOLINTEND(*-avoid-non-const-global-variables) */

static bool overlap(uint64_t a, uint64_t b, uint64_t a_size, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

static int check(const struct mint_gmem *m, uint64_t gpa, uint64_t uva, uint64_t size,
                 uint64_t offset)
{
    if (!size || gpa + size < gpa || uva + size < uva || offset + size < offset ||
        offset + size > (uint64_t)INT64_MAX)
        return -EINVAL;
    if (m->count == MINT_GMEM_MAX)
        return -ENOSPC;
    for (uint32_t i = 0; i < m->count; i++) {
        const struct mint_gmem_region *r = &m->region[i];

        if (overlap(gpa, r->gpa, size, r->size) || overlap(uva, r->uva, size, r->size))
            return -EEXIST;
    }
    return 0;
}

int mint_gmem_add(struct mint_gmem *m, uint64_t gpa, uint64_t uva, uint64_t size, uint64_t offset,
                  int fd)
{
    struct mint_gmem_region *r;
    struct stat st;
    void *map;
    int err = check(m, gpa, uva, size, offset);

    if (err)
        return err;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL; /* a device may sleep, or change under us, in ways a file can't */
    if (offset + size > (uint64_t)st.st_size)
        return -ERANGE;
    /* From the file's beginning: huge pages want an aligned offset, and addresses cost nothing. */
    map = mmap(NULL, offset + size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    madvise(map, offset + size, MADV_DONTDUMP);
    guarded = m;
    r = &m->region[m->count++];
    r->gpa = gpa;
    r->uva = uva;
    r->size = size;
    r->map = map;
    r->map_len = offset + size;
    r->base = r->map + offset;
    return 0;
}

void mint_gmem_clear(struct mint_gmem *m)
{
    for (uint32_t i = 0; i < m->count; i++)
        munmap(m->region[i].map, m->region[i].map_len);
    memset(m, 0, sizeof(*m));
    torn = 0;
}

uint8_t *mint_gmem_at(struct mint_gmem *m, uint64_t gpa, uint64_t *len)
{
    for (uint32_t n = 0; n < m->count; n++) {
        uint32_t i = m->last + n < m->count ? m->last + n : m->last + n - m->count;
        struct mint_gmem_region *r = &m->region[i];
        uint64_t off = gpa - r->gpa; /* huge when gpa lies before it */

        if (off < r->size) {
            if (*len > r->size - off)
                *len = r->size - off;
            m->last = i;
            return r->base + off;
        }
    }
    return NULL;
}

uint8_t *mint_gmem_ring(struct mint_gmem *m, uint64_t uva, uint64_t len)
{
    for (uint32_t i = 0; i < m->count; i++) {
        struct mint_gmem_region *r = &m->region[i];
        uint64_t off = uva - r->uva;

        if (off < r->size && len <= r->size - off)
            return r->base + off;
    }
    return NULL;
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;

    (void)context;
    for (uint32_t i = 0; guarded && i < guarded->count; i++) {
        struct mint_gmem_region *r = &guarded->region[i];

        if (at >= r->map && at < r->map + r->map_len) {
            torn = 1;
            if (mmap(r->map, r->map_len, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED)
                return;
        }
    }
    signal(sig, SIG_DFL); /* nobody's fault but ours: die of it when it happens again at once */
}

int mint_gmem_guard(void)
{
    struct sigaction sa = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};

    sigemptyset(&sa.sa_mask);
    return sigaction(SIGBUS, &sa, NULL) < 0 ? -errno : 0;
}

bool mint_gmem_torn(void)
{
    return torn != 0;
}
