/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gmem.h - a guest's memory, as far as it was handed over by vhost-user: looked up by guest
 * (physical) address or by the front end's own (user) address. Theory of operation in gmem.c.
 */
#ifndef MINT_GMEM_H
#define MINT_GMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MINT_GMEM_MAX 8u /* regions, as many as a vhost-user message can name */

struct mint_gmem_region {
    uint64_t gpa, uva, size;
    uint8_t *base; /* where gpa is mapped */
    uint8_t *map;  /* the whole mapping: of the file from its beginning */
    size_t map_len;
};

struct mint_gmem {
    struct mint_gmem_region region[MINT_GMEM_MAX];
    uint32_t count;
    uint32_t last; /* region of the last look-up */
};

/*
 * mint_gmem_add() - map one region.
 * @gpa, @uva, @size: where the guest and the front end see it, bytes
 * @offset: where it begins in the file
 * @fd:     the file; only mapped, the caller closes it
 * Return: 0; -EINVAL for nonsense, -EEXIST when it overlaps another region, -ENOSPC for one too
 * many, -ERANGE when the file is shorter, or what mmap() and fstat() say.
 */
int mint_gmem_add(struct mint_gmem *m, uint64_t gpa, uint64_t uva, uint64_t size, uint64_t offset,
                  int fd);
void mint_gmem_clear(struct mint_gmem *m);

/* Where guest address `gpa` is; *len is cut to what lies in the same region. NULL: nowhere. */
uint8_t *mint_gmem_at(struct mint_gmem *m, uint64_t gpa, uint64_t *len);
/* Where `len` bytes at the front end's address `uva` are, all in one region; NULL: nowhere. */
uint8_t *mint_gmem_ring(struct mint_gmem *m, uint64_t uva, uint64_t len);

/* From now on this process survives a guest that cuts its memory's file short; for one guest (the
 * last that mint_gmem_add() was called for) a process. Return: 0 or a negative errno. */
int mint_gmem_guard(void);
/* Whether that happened since the last mint_gmem_clear(). */
bool mint_gmem_torn(void);

#endif
