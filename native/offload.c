/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.c - what a network card would do for a receiver that takes no offload.
 *
 * Frames travel through the fabric as the sender's protocol stack made them: a checksum may be
 * left to do, and one frame may carry 64 KiB of TCP or UDP payload that is to become many packets.
 * A receiver that cannot deal with this gets the work done here, on its way out.
 *
 * Checksums. The sender leaves the sum of the pseudo-header in the checksum field and says where
 * summing starts and where the field is (VIRTIO 1.2, 5.1.6.2), so completing it needs no look at
 * the headers: sum from csum_start to the end of the frame, store the complement. The sum of
 * 16-bit words does not depend on their byte order nor on how many are added at once (RFC 1071),
 * so they are added eight bytes at a time into four sums, each with its carry brought round.
 *
 * Segments. Cutting does need the headers, and these may be a hostile node's. Each length in them
 * is checked against the one around it, from the outside in:
 *
 *     frame >= IP packet (what the IP header says; the rest is padding and is cut off)
 *           >= headers up to csum_start (which must be just where the transport header begins)
 *           >= transport header
 *
 * and all that is read later lies at offsets that were stored after this check. A segment is
 * therefore never longer than the frame it came from, and no 16-bit length can overflow.
 *
 * The pseudo-header's sum left in the field covers the length of the whole frame and might be
 * wrong on purpose; each segment's is computed afresh. It covers the address of the *last* hop:
 * usually the destination in the IP header, but that of the source route (IPv4), or of the routing
 * header of type 2 or segment routing (IPv6), while hops are left.
 *
 * Refused, since no segment of it would be right: fragments; authentication headers (they cover
 * the payload) and any other IPv6 header but hop-by-hop, routing and destination options; routing
 * headers of other types with hops left; the home address option (it stands for the source
 * address); jumbograms; a third VLAN tag; frames in 802.3 encapsulation.
 */
#include "offload.h"

#include <arpa/inet.h>
#include <string.h>

#define ETHER_TYPE_OFF 12u
#define ETHER_IPV4 0x0800u
#define ETHER_IPV6 0x86ddu
#define ETHER_VLAN 0x8100u /* IEEE 802.1Q */
#define ETHER_QINQ 0x88a8u /* IEEE 802.1ad */
#define VLAN_TAG_BYTES 4u
#define VLAN_TAGS_MAX 2u

#define IPV4_BYTES 20u
#define IPV4_FRAGMENT 0x3fffu /* more fragments, or an offset */
#define IPV4_OPT_END 0u
#define IPV4_OPT_NOP 1u
#define IPV4_OPT_LSRR 131u
#define IPV4_OPT_SSRR 137u

#define IPV6_BYTES 40u
#define IPV6_HOP_BY_HOP 0u
#define IPV6_ROUTING 43u
#define IPV6_DST_OPTIONS 60u
#define IPV6_ROUTING_HOME 2u    /* RFC 6275 */
#define IPV6_ROUTING_SEGMENT 4u /* RFC 8754 */
#define IPV6_OPT_PAD1 0u
#define IPV6_OPT_HOME_ADDRESS 0xc9u

#define PROTO_TCP 6u
#define PROTO_UDP 17u

#define TCP_BYTES 20u
#define TCP_CSUM 16u /* offset of the checksum in the header */
#define TCP_FIN 0x01u
#define TCP_PSH 0x08u
#define TCP_CWR 0x80u
#define UDP_BYTES 8u
#define UDP_CSUM 6u

/* The shortest GSO frame that mint_vnet_ok() accepts holds an Ethernet header with all its tags. */
_Static_assert(MINT_FRAME_MIN + UDP_BYTES >= ETHER_TYPE_OFF + 2 + VLAN_TAGS_MAX * VLAN_TAG_BYTES,
               "find_network() reads so far");

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void store16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static uint32_t load32(const uint8_t *p)
{
    return (uint32_t)load16(p) << 16 | load16(p + 2);
}

static void store32(uint8_t *p, uint32_t value)
{
    store16(p, value >> 16);
    store16(p + 2, value & 0xffffu);
}

/* Ones' complement sum of two: the carry comes round. */
static inline uint64_t add_carry(uint64_t a, uint64_t b)
{
    a += b;
    return a + (a < b);
}

/*
 * csum_add() - add `n` bytes to a sum; an odd last byte counts as if a zero followed.
 * Four independent sums, because an addition with its carry takes two cycles and a core can work
 * on several; the words are in the machine's byte order, which the stored result undoes.
 */
static uint64_t csum_add(uint64_t sum, const uint8_t *p, size_t n)
{
    uint64_t a = sum, b = 0, c = 0, d = 0, w[4];
    uint32_t four = 0;
    uint16_t two = 0, one = 0;

    for (; n >= sizeof(w); p += sizeof(w), n -= sizeof(w)) {
        memcpy(w, p, sizeof(w));
        a = add_carry(a, w[0]);
        b = add_carry(b, w[1]);
        c = add_carry(c, w[2]);
        d = add_carry(d, w[3]);
    }
    for (; n >= sizeof(w[0]); p += sizeof(w[0]), n -= sizeof(w[0])) {
        memcpy(w, p, sizeof(w[0]));
        a = add_carry(a, w[0]);
    }
    if (n & 4)
        memcpy(&four, p, 4);
    if (n & 2)
        memcpy(&two, p + (n & 4), 2);
    if (n & 1)
        memcpy(&one, p + (n & 6), 1);
    b = add_carry(b, (uint64_t)four + two + one);
    return add_carry(add_carry(a, b), add_carry(c, d));
}

/* The checksum that belongs to a sum, as it is stored. */
static uint16_t csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffffffu) + (sum >> 32);
    sum = (sum & 0xffffu) + (sum >> 16);
    sum = (sum & 0xffffu) + (sum >> 16);
    return (uint16_t)~sum;
}

/*
 * csum_store() - finish a transport checksum. In UDP zero means that there is none, so its other
 * form is stored; only UDP (and protocols that took its format) has the field at this offset.
 */
static void csum_store(uint8_t *header, uint32_t csum_offset, uint64_t sum)
{
    uint16_t csum = csum_fold(sum);

    if (csum == 0 && csum_offset == UDP_CSUM)
        csum = 0xffff;
    memcpy(header + csum_offset, &csum, sizeof(csum));
}

/* The rest of mint_vnet_ok() for a GSO frame. */
static bool gso_ok(const struct mint_vnet *v, uint32_t len, uint32_t header, uint32_t csum_offset)
{
    if (!(v->flags & MINT_VNET_NEEDS_CSUM) || v->csum_offset != csum_offset || v->gso_size == 0)
        return false;
    if (v->csum_start + header > len)
        return false;
    return len - v->csum_start - header <= (uint32_t)v->gso_size * MINT_SEGMENTS_MAX;
}

bool mint_vnet_ok(const struct mint_vnet *v, uint32_t len)
{
    if (len < MINT_FRAME_MIN || len > MINT_FRAME_MAX)
        return false;
    if (v->flags & ~(MINT_VNET_NEEDS_CSUM | MINT_VNET_DATA_VALID))
        return false;
    if (v->flags & MINT_VNET_NEEDS_CSUM) {
        if (v->csum_start < MINT_FRAME_MIN)
            return false;
        if ((uint32_t)v->csum_start + v->csum_offset + sizeof(uint16_t) > len)
            return false;
    }
    switch (v->gso_type) {
    case MINT_GSO_NONE:
        return true;
    case MINT_GSO_TCPV4:
    case MINT_GSO_TCPV6:
    case MINT_GSO_TCPV4 | MINT_GSO_ECN:
    case MINT_GSO_TCPV6 | MINT_GSO_ECN:
        return gso_ok(v, len, TCP_BYTES, TCP_CSUM);
    case MINT_GSO_UDP_L4:
        return gso_ok(v, len, UDP_BYTES, UDP_CSUM);
    default:
        return false;
    }
}

void mint_csum_complete(const struct mint_vnet *v, uint8_t *frame, uint32_t len)
{
    uint8_t *header = frame + v->csum_start;

    csum_store(header, v->csum_offset, csum_add(0, header, len - v->csum_start));
}

static uint8_t proto_of(const struct mint_seg *s)
{
    return s->gso_type == MINT_GSO_UDP_L4 ? PROTO_UDP : PROTO_TCP;
}

static bool is_ipv4(const struct mint_seg *s)
{
    return s->frame[s->l3_off] >> 4 == 4;
}

/*
 * find_network() - step over VLAN tags; sets l3_off.
 * The last Ethernet type that is read ends at byte 22; a GSO frame has more (mint_vnet_ok()).
 */
static uint16_t find_network(struct mint_seg *s)
{
    uint32_t off = ETHER_TYPE_OFF;
    uint16_t type = load16(s->frame + off);

    for (uint32_t tags = 0; tags < VLAN_TAGS_MAX; tags++) {
        if (type != ETHER_VLAN && type != ETHER_QINQ)
            break;
        off += VLAN_TAG_BYTES;
        type = load16(s->frame + off);
    }
    s->l3_off = off + (uint32_t)sizeof(type);
    return type;
}

/* Walk the options of an IPv4 header of `size` bytes; a source route may move dst_off. */
static bool walk_ipv4_options(struct mint_seg *s, const uint8_t *ip, uint32_t size)
{
    uint32_t bytes;

    for (uint32_t off = IPV4_BYTES; off < size && ip[off] != IPV4_OPT_END; off += bytes) {
        const uint8_t *option = ip + off;

        bytes = 1;
        if (option[0] == IPV4_OPT_NOP)
            continue;
        if (size - off < 2 || option[1] < 2 || option[1] > size - off)
            return false;
        bytes = option[1];
        if (option[0] != IPV4_OPT_LSRR && option[0] != IPV4_OPT_SSRR)
            continue;
        if (bytes < 7)
            return false;
        if (option[2] <= bytes) /* the pointer has not passed the last hop yet */
            s->dst_off = s->l3_off + off + bytes - 4;
    }
    return true;
}

/* Check an IPv4 header that ends where the transport header begins; sets len and dst_off. */
static bool find_ipv4(struct mint_seg *s)
{
    const uint8_t *ip = s->frame + s->l3_off;
    uint32_t size, total;

    if (s->l4_off < s->l3_off + IPV4_BYTES)
        return false;
    size = s->l4_off - s->l3_off;
    total = load16(ip + 2);
    if (ip[0] >> 4 != 4 || (ip[0] & 15u) * 4u != size || ip[9] != proto_of(s))
        return false;
    if ((load16(ip + 6) & IPV4_FRAGMENT) || total > s->len - s->l3_off)
        return false;
    s->len = s->l3_off + total;
    s->dst_off = s->l3_off + 16;
    return walk_ipv4_options(s, ip, size);
}

/* Whether the `size` bytes of a destination options header have the home address option. */
static bool has_home_address(const uint8_t *header, uint32_t size)
{
    for (uint32_t off = 2; off < size;) {
        if (header[off] == IPV6_OPT_HOME_ADDRESS)
            return true;
        if (header[off] == IPV6_OPT_PAD1)
            off++;
        else if (size - off >= 2)
            off += 2u + header[off + 1];
        else
            break;
    }
    return false;
}

/* A routing header of `size` bytes at `off`; may move dst_off. */
static bool take_routing(struct mint_seg *s, uint32_t off, uint32_t size)
{
    const uint8_t *header = s->frame + off;

    if (header[3] == 0) /* no hops left */
        return true;
    if (header[2] != IPV6_ROUTING_HOME && header[2] != IPV6_ROUTING_SEGMENT)
        return false;
    s->dst_off = off + 8; /* both have the last hop as their first address */
    return size >= 8 + 16;
}

/* Walk the extension headers from after the IPv6 header to csum_start, which must be an end. */
static bool walk_ipv6_headers(struct mint_seg *s, uint8_t type)
{
    uint32_t off = s->l3_off + IPV6_BYTES;

    while (off < s->l4_off) {
        const uint8_t *header = s->frame + off;
        uint32_t size;

        if (s->l4_off - off < 8)
            return false;
        size = (header[1] + 1u) * 8u;
        if (size > s->l4_off - off)
            return false;
        if (type == IPV6_ROUTING && !take_routing(s, off, size))
            return false;
        if (type == IPV6_DST_OPTIONS && has_home_address(header, size))
            return false;
        if (type != IPV6_HOP_BY_HOP && type != IPV6_ROUTING && type != IPV6_DST_OPTIONS)
            return false;
        type = header[0];
        off += size;
    }
    return type == proto_of(s);
}

/* Check an IPv6 header and what lies between it and the transport header; sets len, dst_off. */
static bool find_ipv6(struct mint_seg *s)
{
    const uint8_t *ip = s->frame + s->l3_off;
    uint32_t total;

    if (s->l4_off < s->l3_off + IPV6_BYTES)
        return false;
    total = IPV6_BYTES + load16(ip + 4);
    if (ip[0] >> 4 != 6 || total > s->len - s->l3_off)
        return false;
    s->len = s->l3_off + total;
    s->dst_off = s->l3_off + 24;
    return walk_ipv6_headers(s, ip[6]);
}

/* Check the transport header; sets payload_off. */
static bool find_transport(struct mint_seg *s)
{
    uint32_t size = UDP_BYTES;

    if (s->gso_type != MINT_GSO_UDP_L4) {
        size = (s->frame[s->l4_off + 12] >> 4) * 4u;
        if (size < TCP_BYTES)
            return false;
    }
    s->payload_off = s->l4_off + size;
    return s->payload_off <= s->len && s->payload_off <= MINT_HEADERS_MAX;
}

bool mint_seg_begin(struct mint_seg *s, const struct mint_vnet *v, const uint8_t *frame,
                    uint32_t len)
{
    uint16_t type;
    bool found;

    if (!mint_vnet_ok(v, len) || v->gso_type == MINT_GSO_NONE)
        return false;
    *s = (struct mint_seg){
        .frame = frame,
        .len = len,
        .l4_off = v->csum_start,
        .mss = v->gso_size,
        .gso_type = (uint8_t)(v->gso_type & ~MINT_GSO_ECN),
    };
    type = find_network(s);
    if (type == ETHER_IPV4)
        found = s->gso_type != MINT_GSO_TCPV6 && find_ipv4(s);
    else
        found = type == ETHER_IPV6 && s->gso_type != MINT_GSO_TCPV4 && find_ipv6(s);
    if (!found || !find_transport(s))
        return false;
    s->next = s->payload_off;
    return true;
}

/* Give the IP header of a segment of `len` bytes its length, id and checksum. */
static void finish_network(const struct mint_seg *s, uint8_t *out, uint32_t len)
{
    uint8_t *ip = out + s->l3_off;
    uint16_t csum;

    if (!is_ipv4(s)) {
        store16(ip + 4, len - s->l3_off - IPV6_BYTES);
        return;
    }
    store16(ip + 2, len - s->l3_off);
    store16(ip + 4, load16(ip + 4) + s->count);
    store16(ip + 10, 0);
    csum = csum_fold(csum_add(0, ip, s->l4_off - s->l3_off));
    memcpy(ip + 10, &csum, sizeof(csum));
}

/* Sum of the pseudo-header of a segment with `size` bytes of transport header and payload. */
static uint64_t pseudo_sum(const struct mint_seg *s, uint32_t size)
{
    const uint8_t *ip = s->frame + s->l3_off;
    size_t address = is_ipv4(s) ? 4 : 16;
    uint64_t sum = (uint64_t)htons(proto_of(s)) + htons((uint16_t)size);

    sum = csum_add(sum, ip + (is_ipv4(s) ? 12 : 8), address);
    return csum_add(sum, s->frame + s->dst_off, address);
}

/* Give the transport header of a segment of `len` bytes what differs from the frame's. */
static void finish_transport(const struct mint_seg *s, uint8_t *out, uint32_t len, bool last)
{
    uint8_t *header = out + s->l4_off;
    uint32_t size = len - s->l4_off, csum_offset = UDP_CSUM;

    if (s->gso_type == MINT_GSO_UDP_L4) {
        store16(header + 4, size);
    } else {
        csum_offset = TCP_CSUM;
        store32(header + 4, load32(header + 4) + (s->next - s->payload_off));
        if (!last)
            header[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
        if (s->count > 0)
            header[13] &= (uint8_t)~TCP_CWR;
    }
    store16(header + csum_offset, 0);
    csum_store(header, csum_offset, csum_add(pseudo_sum(s, size), header, size));
}

uint32_t mint_seg_next(struct mint_seg *s, uint8_t *out, uint32_t size)
{
    uint32_t left = s->len - s->next;
    uint32_t payload = left < s->mss ? left : s->mss;
    uint32_t len = s->payload_off + payload;

    if ((left == 0 && s->count > 0) || size < len)
        return 0;
    memcpy(out, s->frame, s->payload_off);
    memcpy(out + s->payload_off, s->frame + s->next, payload);
    finish_network(s, out, len);
    finish_transport(s, out, len, payload == left);
    s->next += payload;
    s->count++;
    return len;
}
