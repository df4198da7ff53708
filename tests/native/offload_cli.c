/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_cli.c - native/offload.c as a filter, so that another implementation can check it
 * (tests/test_offload_reference.py).
 *
 * stdin:  a vnet header (12 bytes, little-endian), then one frame
 * stdout: the frames that a receiver without offloads gets, each after its length (4 bytes,
 *         little-endian)
 * status: 0 done; 1 cannot read or write; 3 the vnet header was refused; 4 the frame's headers
 *         were
 *
 * All buffers have exactly the size that is promised to the code, so that a sanitizer sees one
 * byte too many.
 */
#include "offload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, FAILED = 1, VNET_REFUSED = 3, HEADERS_REFUSED = 4 };

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes);

    if (memory == NULL) {
        fprintf(stderr, "no memory\n");
        exit(FAILED);
    }
    return memory;
}

static int put(const uint8_t *frame, uint32_t len)
{
    /* The ABI is for little-endian machines only. */
    if (fwrite(&len, sizeof(len), 1, stdout) != 1 || fwrite(frame, 1, len, stdout) != len)
        return FAILED;
    return DONE;
}

static int cut(const struct mint_vnet *v, const uint8_t *frame, uint32_t len)
{
    uint32_t size = MINT_HEADERS_MAX + v->gso_size, bytes;
    struct mint_seg seg;
    int status = DONE;
    uint8_t *out;

    if (!mint_seg_begin(&seg, v, frame, len))
        return HEADERS_REFUSED;
    out = allocate(size);
    while (status == DONE && (bytes = mint_seg_next(&seg, out, size)) > 0)
        status = put(out, bytes);
    free(out);
    return status;
}

static int resolve(const struct mint_vnet *v, uint8_t *frame, uint32_t len)
{
    if (!mint_vnet_ok(v, len))
        return VNET_REFUSED;
    if (v->gso_type != MINT_GSO_NONE)
        return cut(v, frame, len);
    if (v->flags & MINT_VNET_NEEDS_CSUM)
        mint_csum_complete(v, frame, len);
    return put(frame, len);
}

int main(void)
{
    /* One byte more than the longest, so that a longer one is seen and refused. */
    size_t size = sizeof(struct mint_vnet) + MINT_FRAME_MAX + 1;
    uint8_t *input = allocate(size), *frame;
    size_t bytes = fread(input, 1, size, stdin);
    struct mint_vnet v;
    uint32_t len;
    int status;

    if (ferror(stdin) || bytes < sizeof(v)) {
        fprintf(stderr, "stdin must hold a vnet header (12 bytes) and a frame\n");
        free(input);
        return FAILED;
    }
    memcpy(&v, input, sizeof(v));
    len = (uint32_t)(bytes - sizeof(v));
    frame = allocate(len > 0 ? len : 1);
    memcpy(frame, input + sizeof(v), len);
    free(input);
    status = resolve(&v, frame, len);
    free(frame);
    if (fflush(stdout) != 0 || status == FAILED) {
        fprintf(stderr, "cannot write\n");
        return FAILED;
    }
    return status;
}
