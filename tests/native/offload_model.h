/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_model.h - a second, plain implementation of what native/offload.c does, to test against.
 *
 * Each GSO frame is made from a struct shape; the segments that must come of it are computed here
 * byte by byte (16-bit sums in network order, no tricks) and compared whole, so nothing in a
 * header can differ unnoticed. Frames and outputs are allocated to the byte: with AddressSanitizer
 * any access beyond them ends the test.
 */
#ifndef MINT_TEST_OFFLOAD_MODEL_H
#define MINT_TEST_OFFLOAD_MODEL_H

#include "check.h"
#include "offload.h"

#include <stdbool.h>

/* struct shape - what a GSO frame looks like. */
struct shape {
    uint8_t gso;          /* MINT_GSO_*, possibly with ECN */
    bool v6;              /* for MINT_GSO_UDP_L4; TCP's version follows from gso */
    uint32_t tags;        /* VLAN tags */
    const uint8_t *extra; /* IPv4 options or IPv6 extension headers */
    uint32_t extra_len;
    uint8_t extra_type;   /* the first extension header's */
    uint32_t dst_at;      /* where in extra the last hop's address lies; 0: in the IP header */
    uint32_t tcp_options; /* bytes */
    uint8_t tcp_flags;
    uint32_t payload, padding;
    uint16_t mss;
};

/* struct packet - the frame of a shape, its vnet header, and where things lie in it. */
struct packet {
    struct mint_vnet v;
    uint8_t *frame;
    uint32_t len, l3, l4, data;
};

#define FIN 0x01u
#define PSH 0x08u
#define ACK 0x10u
#define CWR 0x80u
#define FIRST_ID 0xfffeu      /* wraps at the third segment */
#define FIRST_SEQ 0xffffff00u /* wraps within the first */

/* The same numbers in each run. */
static uint32_t random_state = 2463534242u; // NOLINT(*-non-const-global-variables): a generator

static inline uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % n;
}

static inline uint8_t *allocate(size_t bytes)
{
    uint8_t *memory = malloc(bytes);

    CHECK(memory != NULL, "no memory for %zu bytes", bytes);
    return memory;
}

static inline uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static inline void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value & 0xffffu);
}

/* The sum of RFC 1071, a 16-bit word in network order at a time. */
static inline uint32_t plain_sum(uint32_t sum, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffffu) + (sum >> 16);
    }
    return sum;
}

static inline bool is_v6(const struct shape *shape)
{
    return shape->gso == MINT_GSO_UDP_L4 ? shape->v6
                                         : (shape->gso & ~MINT_GSO_ECN) == MINT_GSO_TCPV6;
}

static inline bool is_udp(const struct shape *shape)
{
    return shape->gso == MINT_GSO_UDP_L4;
}

/* Writes the IP header, with any addresses. */
static inline void write_ip(const struct shape *shape, const struct packet *p)
{
    uint8_t *ip = p->frame + p->l3, proto = is_udp(shape) ? 17 : 6;
    uint32_t size = p->l4 - p->l3, fixed = is_v6(shape) ? 40 : 20;

    if (is_v6(shape)) {
        ip[0] = 0x60;
        put16(ip + 4, p->len - shape->padding - p->l3 - 40);
        ip[6] = shape->extra_len > 0 ? shape->extra_type : proto;
    } else {
        ip[0] = (uint8_t)(0x40u | size / 4);
        put16(ip + 2, p->len - shape->padding - p->l3);
        put16(ip + 4, FIRST_ID);
        put16(ip + 6, 0x4000); /* don't fragment */
        ip[9] = proto;
        put16(ip + 10, 0xbeef); /* as wrong as the transport checksum */
    }
    for (uint32_t i = is_v6(shape) ? 8 : 12; i < fixed; i++)
        ip[i] = (uint8_t)random_below(256);
    if (shape->extra_len > 0)
        memcpy(ip + fixed, shape->extra, shape->extra_len);
}

static inline void write_l4(const struct shape *shape, const struct packet *p)
{
    uint8_t *l4 = p->frame + p->l4;

    put32(l4, 0xc0de0050u); /* ports */
    if (is_udp(shape)) {
        put16(l4 + 4, p->len - shape->padding - p->l4);
    } else {
        put32(l4 + 4, FIRST_SEQ);
        l4[12] = (uint8_t)((20 + shape->tcp_options) / 4 << 4);
        l4[13] = shape->tcp_flags;
        memset(l4 + 20, 1, shape->tcp_options); /* no-operations */
    }
    /* Not the sum of any pseudo-header: it must not be relied on. */
    put16(l4 + p->v.csum_offset, 0xdead);
}

static inline struct packet make(const struct shape *shape)
{
    struct packet p = {.l3 = 14 + 4 * shape->tags};
    uint32_t off = 12;

    p.l4 = p.l3 + (is_v6(shape) ? 40 : 20) + shape->extra_len;
    p.data = p.l4 + (is_udp(shape) ? 8 : 20 + shape->tcp_options);
    p.len = p.data + shape->payload + shape->padding;
    p.v = (struct mint_vnet){
        .flags = MINT_VNET_NEEDS_CSUM,
        .gso_type = shape->gso,
        .hdr_len = 0xffff, /* never trusted */
        .gso_size = shape->mss,
        .csum_start = (uint16_t)p.l4,
        .csum_offset = is_udp(shape) ? 6 : 16,
    };
    p.frame = allocate(p.len);
    memset(p.frame, 0, p.data);
    memcpy(p.frame, "\x02\x4d\x56\x00\x00\x02\x02\x4d\x56\x00\x00\x01", 12);
    for (uint32_t tag = 0; tag < shape->tags; tag++, off += 4)
        put32(p.frame + off, tag + 1 < shape->tags ? 0x88a80064u : 0x81000007u);
    put16(p.frame + off, is_v6(shape) ? 0x86dd : 0x0800);
    write_ip(shape, &p);
    write_l4(shape, &p);
    for (uint32_t i = p.data; i < p.len; i++)
        p.frame[i] = (uint8_t)random_below(256);
    return p;
}

/* The plain checksum of a segment's transport header and payload, with its pseudo-header. */
static inline uint32_t plain_csum(const struct shape *shape, const struct packet *p,
                                  const uint8_t *segment, uint32_t size)
{
    const uint8_t *ip = p->frame + p->l3;
    uint32_t address = is_v6(shape) ? 16 : 4, fixed = is_v6(shape) ? 40 : 20;
    uint32_t sum = (is_udp(shape) ? 17 : 6) + size;

    sum = plain_sum(sum, ip + (is_v6(shape) ? 8 : 12), address);
    sum = plain_sum(sum, ip + (shape->dst_at ? fixed + shape->dst_at : fixed - address), address);
    sum = ~plain_sum(sum, segment + p->l4, size) & 0xffffu;
    return sum == 0 && is_udp(shape) ? 0xffff : sum;
}

/* What segment `index` must be, to the byte. Return: its length. */
static inline uint32_t expect(const struct shape *shape, const struct packet *p, uint32_t index,
                              uint8_t *out)
{
    uint32_t from = index * shape->mss, bytes = shape->payload - from;
    uint8_t *ip = out + p->l3, *l4 = out + p->l4;
    bool last = bytes <= shape->mss;

    bytes = last ? bytes : shape->mss;
    memcpy(out, p->frame, p->data);
    memcpy(out + p->data, p->frame + p->data + from, bytes);
    if (is_v6(shape)) {
        put16(ip + 4, p->data + bytes - p->l3 - 40);
    } else {
        put16(ip + 2, p->data + bytes - p->l3);
        put16(ip + 4, FIRST_ID + index);
        put16(ip + 10, 0);
        put16(ip + 10, ~plain_sum(0, ip, p->l4 - p->l3));
    }
    if (is_udp(shape)) {
        put16(l4 + 4, p->data + bytes - p->l4);
    } else {
        put32(l4 + 4, FIRST_SEQ + from);
        l4[13] &= (uint8_t)~((last ? 0 : FIN | PSH) | (index > 0 ? CWR : 0));
    }
    put16(l4 + p->v.csum_offset, 0);
    put16(l4 + p->v.csum_offset, plain_csum(shape, p, out, p->data + bytes - p->l4));
    return p->data + bytes;
}

/* Cuts segment `index` of `len` bytes; it must be `wanted` and need no more room than that. */
static inline void cut_one(struct mint_seg *seg, uint32_t index, const uint8_t *wanted,
                           uint32_t len)
{
    uint8_t *out = allocate(len);
    uint32_t got = mint_seg_next(seg, out, len - 1);

    CHECK(got == 0, "segment %u of %u bytes put into %u", index, len, len - 1);
    got = mint_seg_next(seg, out, len);
    CHECK(got == len, "segment %u has %u bytes, not %u", index, got, len);
    for (uint32_t at = 0; at < len; at++)
        CHECK(out[at] == wanted[at], "segment %u, byte %u: %02x, not %02x", index, at, out[at],
              wanted[at]);
    free(out);
}

/* Cuts a shape's frame; each segment must be what is expected, and there must be no further one. */
static inline void cut_and_compare(const struct shape *shape)
{
    struct packet p = make(shape);
    uint32_t count = shape->payload ? (shape->payload + shape->mss - 1) / shape->mss : 1;
    uint8_t *wanted = allocate(p.data + shape->mss);
    struct mint_seg seg;

    CHECK(mint_vnet_ok(&p.v, p.len), "vnet header refused, %u bytes", p.len);
    CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len), "headers refused, %u bytes", p.len);
    for (uint32_t i = 0; i < count; i++)
        cut_one(&seg, i, wanted, expect(shape, &p, i, wanted));
    CHECK(mint_seg_next(&seg, wanted, p.data + shape->mss) == 0, "more than %u segments", count);
    free(wanted);
    free(p.frame);
}

#endif
