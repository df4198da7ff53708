/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.h - what a network card would do: check a frame's vnet header, complete its checksum,
 * cut it into segments. Pure functions over private memory; theory of operation in offload.c.
 */
#ifndef MINT_OFFLOAD_H
#define MINT_OFFLOAD_H

#include "abi.h"
#include <stdbool.h>

/* Most segments that one frame may be cut into. The smallest MTU of a lab, 576, makes 123 of a
 * 64 KiB TCP frame, and Linux cuts at most 128 from a UDP one; gso_size 1 would make 65,000. */
#define MINT_SEGMENTS_MAX 1024u

/* Longest Ethernet + IP + transport header that is understood. */
#define MINT_HEADERS_MAX 256u

/*
 * mint_vnet_ok() - whether a vnet header makes sense for a frame of `len` bytes.
 * @v:   a private copy
 * @len: bytes of frame
 *
 * Checks the length, flags and gso_type for known values, that the checksum and what it covers lie
 * within the frame and behind the Ethernet header (completing it must not rewrite a MAC that was
 * checked before), that a GSO frame has NEEDS_CSUM with the csum_offset of its protocol, a
 * gso_size, and at most MINT_SEGMENTS_MAX segments. The last is reckoned with the shortest
 * transport header, so a frame within 40 bytes of the limit may be refused. hdr_len and
 * num_buffers are not looked at, here or anywhere.
 */
bool mint_vnet_ok(const struct mint_vnet *v, uint32_t len);

/*
 * mint_csum_complete() - finish the checksum that `v` asks for, in place (RFC 1071; a UDP checksum
 * that comes out as zero is stored as 0xffff, RFC 768).
 * @v:     passed mint_vnet_ok(), has MINT_VNET_NEEDS_CSUM and no GSO
 * @frame: private copy; its checksum field holds the sum of the pseudo-header
 */
void mint_csum_complete(const struct mint_vnet *v, uint8_t *frame, uint32_t len);

/* struct mint_seg - the progress of cutting one frame; fill with mint_seg_begin(). */
struct mint_seg {
    const uint8_t *frame; /* the whole frame; must stay until the last segment is cut */
    uint32_t len;         /* bytes of it without what follows the IP packet (padding) */
    uint32_t l3_off, l4_off, payload_off; /* bytes from the start of the frame */
    uint32_t dst_off; /* the address of the packet's last hop, which the checksum covers */
    uint32_t mss;     /* payload bytes a segment */
    uint32_t next;    /* offset of the next payload byte */
    uint32_t count;   /* segments cut so far */
    uint8_t gso_type; /* MINT_GSO_TCPV4, _TCPV6 or _UDP_L4, without ECN */
};

/*
 * mint_seg_begin() - prepare to cut a GSO frame into frames of at most gso_size payload bytes.
 * @v:     private copy; has a gso_type
 * @frame: private copy of the frame (Ethernet II, up to two VLAN tags, IPv4 or IPv6 with extension
 *         headers up to csum_start, TCP or UDP)
 * Return: false when mint_vnet_ok() would refuse `v`, when the headers do not agree with it or
 * with each other, or when they are none that can be cut (see offload.c).
 */
bool mint_seg_begin(struct mint_seg *s, const struct mint_vnet *v, const uint8_t *frame,
                    uint32_t len);

/*
 * mint_seg_next() - cut the next segment: headers with lengths, IPv4 id, TCP sequence number and
 * flags (FIN and PSH on the last only, CWR on the first only), complete checksums.
 * @out:  at least MINT_HEADERS_MAX + mss bytes, apart from the frame
 * @size: bytes at out
 * Return: bytes of the frame written, 0 when there is none left or it does not fit (nothing is
 * written then, and the same segment can be asked for again).
 */
uint32_t mint_seg_next(struct mint_seg *s, uint8_t *out, uint32_t size);

#endif
