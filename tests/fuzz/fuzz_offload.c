/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_offload.c - vnet headers and the frames that they belong to: checked, completed, cut.
 *
 * The input is a vnet header and a frame. Buffers are allocated to the byte, so that the address
 * sanitizer sees any access beyond them. What is cut keeps the bounds that offload.h promises.
 */
#include "fuzz.h"
#include "offload.h"
#include <stdlib.h>

static uint8_t *allocate(size_t bytes)
{
    uint8_t *p = malloc(bytes ? bytes : 1);

    CHECK(p, "out of memory");
    return p;
}

/* A frame of `len` bytes: what the input has, over and over. */
static uint8_t *make_frame(struct script *s, uint32_t len)
{
    uint8_t *frame = allocate(len);
    size_t head = s->left < len ? s->left : len;

    take_bytes(s, frame, head);
    for (size_t i = head; i < len; i++)
        frame[i] = head ? frame[i % head] : (uint8_t)i;
    return frame;
}

static void cut(const struct mint_vnet *v, const uint8_t *frame, uint32_t len, uint32_t size)
{
    struct mint_seg seg;
    uint8_t *out;
    uint32_t n = 0, bytes, payload = 0, whole;

    if (!mint_seg_begin(&seg, v, frame, len))
        return;
    CHECK(mint_vnet_ok(v, len), "a header that is not right is cut by");
    CHECK(seg.payload_off <= seg.len && seg.len <= len, "payload at %u of %u", seg.payload_off,
          len);
    whole = seg.len - seg.payload_off;
    out = allocate(size);
    while ((bytes = mint_seg_next(&seg, out, size)) != 0) {
        CHECK(++n <= MINT_SEGMENTS_MAX, "%u segments", n);
        CHECK(bytes <= size && bytes <= len && bytes >= seg.payload_off, "%u bytes", bytes);
        CHECK(memcmp(out, frame, 14) == 0, "another Ethernet header");
        payload += bytes - seg.payload_off;
    }
    CHECK(seg.next < seg.len || payload == whole, "%u bytes of payload became %u", whole, payload);
    if (size >= MINT_HEADERS_MAX + seg.mss)
        CHECK(seg.next >= seg.len, "a segment that fits was not cut");
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script s = {data, size};
    struct mint_vnet v;
    uint32_t len = take_length(&s, 0, MINT_FRAME_MAX + 16u), room = take16(&s);
    uint8_t *frame;

    take_bytes(&s, &v, sizeof(v));
    frame = make_frame(&s, len);
    if (mint_vnet_ok(&v, len) && v.gso_type == MINT_GSO_NONE && v.flags & MINT_VNET_NEEDS_CSUM) {
        uint8_t head[14];

        memcpy(head, frame, sizeof(head));
        mint_csum_complete(&v, frame, len);
        CHECK(memcmp(head, frame, sizeof(head)) == 0, "completing rewrote a checked MAC");
    } else if (len >= MINT_FRAME_MIN) {
        cut(&v, frame, len, room);
        cut(&v, frame, len, MINT_HEADERS_MAX + v.gso_size);
    }
    free(frame);
    return 0;
}
