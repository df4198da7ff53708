/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_offload_hostile.c - headers that lie: each must be refused, or cut into segments that stay
 * within bounds. The sanitizers watch the bounds of memory; the tests those of the result.
 */
#include "offload_model.h"

/* Where a lie is told: bytes from the start of one of the headers. */
enum place { ETHER, IP, L4 };

/* struct lie - `size` bytes at an offset are overwritten with `value`, in network order. */
struct lie {
    const char *what;
    enum place place;
    uint32_t at, size, value;
};

static uint32_t place_of(const struct packet *p, enum place place)
{
    const uint32_t places[] = {[ETHER] = 0, [IP] = p->l3, [L4] = p->l4};

    return places[place];
}

/* The frame of a shape is cut as it is, and refused with any one of these lies in it. */
static void refuse_each(const struct shape *shape, const struct lie *lies, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct packet p = make(shape);
        struct mint_seg seg;

        CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len), "refused the truth about %s",
              lies[i].what);
        for (uint32_t byte = 0; byte < lies[i].size; byte++)
            p.frame[place_of(&p, lies[i].place) + lies[i].at + byte] =
                (uint8_t)(lies[i].value >> 8 * (lies[i].size - 1 - byte));
        CHECK(!mint_seg_begin(&seg, &p.v, p.frame, p.len), "accepted %s", lies[i].what);
        free(p.frame);
    }
}
#define REFUSE_EACH(shape, lies) refuse_each((shape), (lies), sizeof(lies) / sizeof((lies)[0]))

static void ethernet_lies(void)
{
    static const struct lie lies[] = {
        {"tags without an end", ETHER, 12, 2, 0x0800},
        {"ARP", ETHER, 20, 2, 0x0806},
        {"an 802.3 length", ETHER, 12, 2, 1500},
        {"IPv6 in the type, IPv4 in the packet", ETHER, 20, 2, 0x86dd},
    };
    const struct shape shape = {.gso = MINT_GSO_TCPV4, .tags = 2, .payload = 500, .mss = 100};

    REFUSE_EACH(&shape, lies);
}

static void three_tags(void)
{
    const struct shape shape = {.gso = MINT_GSO_TCPV4, .tags = 3, .payload = 500, .mss = 100};
    struct packet p = make(&shape);
    struct mint_seg seg;

    CHECK(!mint_seg_begin(&seg, &p.v, p.frame, p.len), "accepted three VLAN tags");
    free(p.frame);
}

static void ipv4_lies(void)
{
    static const struct lie lies[] = {
        {"IP version 6", IP, 0, 1, 0x66},
        {"IP version 0", IP, 0, 1, 0x06},
        {"a header shorter than up to csum_start", IP, 0, 1, 0x45},
        {"a header longer than up to csum_start", IP, 0, 1, 0x47},
        {"a header of 0 bytes", IP, 0, 1, 0x40},
        {"a total length of 0", IP, 2, 2, 0},
        {"a total length shorter than the headers", IP, 2, 2, 43},
        {"a total length longer than the frame", IP, 2, 2, 545},
        {"a total length of 65535", IP, 2, 2, 0xffff},
        {"more fragments", IP, 6, 2, 0x2000},
        {"a fragment offset", IP, 6, 2, 0x4001},
        {"UDP", IP, 9, 1, 17},
        {"an option without room for its length", IP, 20, 4, 0x01010183},
        {"an option of length 0", IP, 20, 2, 0x4400},
        {"an option of length 1", IP, 20, 2, 0x4401},
        {"an option longer than the header", IP, 20, 2, 0x4405},
        {"a source route without a hop", IP, 20, 3, 0x830404},
        {"a TCP header of 0 bytes", L4, 12, 1, 0x00},
        {"a TCP header of 16 bytes", L4, 12, 1, 0x40},
    };
    static const uint8_t options[4] = {1, 1, 1, 1};
    const struct shape shape = {.gso = MINT_GSO_TCPV4,
                                .payload = 500,
                                .mss = 100,
                                .extra = options,
                                .extra_len = sizeof(options)};

    REFUSE_EACH(&shape, lies);
}

static void ipv6_lies(void)
{
    static const struct lie lies[] = {
        {"IP version 4", IP, 0, 1, 0x45},
        {"a payload length of 0 (a jumbogram)", IP, 4, 2, 0},
        {"a payload shorter than the headers", IP, 4, 2, 43},
        {"a payload longer than the frame", IP, 4, 2, 545},
        {"a payload of 65535", IP, 4, 2, 0xffff},
        {"TCP before csum_start", IP, 6, 1, 6},
        {"a fragment", IP, 6, 1, 44},
        {"an authentication header", IP, 6, 1, 51},
        {"an encrypted payload", IP, 6, 1, 50},
        {"no next header", IP, 6, 1, 59},
        {"UDP", IP, 40, 1, 17},
        {"an extension header over csum_start", IP, 41, 1, 3},
        {"the longest extension header", IP, 41, 1, 255},
        {"an extension header that ends early", IP, 41, 1, 0},
        {"a home address", IP, 42, 2, 0xc910},
        {"a home address after one byte of padding", IP, 42, 2, 0x00c9},
        {"a home address after more padding", IP, 42, 4, 0x000100c9},
    };
    const uint8_t headers[24] = {6, 2, 1, 20};
    const struct shape shape = {.gso = MINT_GSO_TCPV6,
                                .payload = 500,
                                .mss = 100,
                                .extra = headers,
                                .extra_len = sizeof(headers),
                                .extra_type = 60};

    REFUSE_EACH(&shape, lies);
}

static void ipv6_routing_lies(void)
{
    static const struct lie lies[] = {
        {"a routing header of type 0", IP, 42, 1, 0},
        {"a routing header of type 3", IP, 42, 1, 3},
        {"a routing header of an unknown type", IP, 42, 1, 200},
        {"a short header before a long one", IP, 40, 2, 0x2b00},
    };
    const uint8_t headers[24] = {6, 2, 4, 1};
    const uint8_t hop[8] = {6, 0, 4, 0};
    const struct lie hops_left = {"hops left, no address", IP, 43, 1, 1};
    struct shape shape = {.gso = MINT_GSO_TCPV6,
                          .payload = 500,
                          .mss = 100,
                          .extra = headers,
                          .extra_len = sizeof(headers),
                          .extra_type = 43};

    REFUSE_EACH(&shape, lies);
    shape.extra = hop;
    shape.extra_len = sizeof(hop);
    refuse_each(&shape, &hops_left, 1);
}

/* A good frame of each kind. */
static const struct shape kinds[] = {
    {.gso = MINT_GSO_TCPV4, .payload = 500, .mss = 100},
    {.gso = MINT_GSO_TCPV6, .payload = 500, .mss = 100},
    {.gso = MINT_GSO_UDP_L4, .payload = 500, .mss = 100},
    {.gso = MINT_GSO_UDP_L4, .payload = 500, .mss = 100, .v6 = true},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void type_lies(void)
{
    for (size_t i = 0; i < KINDS; i++) {
        struct packet p = make(&kinds[i]);
        struct mint_seg seg;

        for (size_t other = 0; other < KINDS; other++) {
            p.v.gso_type = kinds[other].gso;
            p.v.csum_offset = is_udp(&kinds[other]) ? 6 : 16;
            CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len) == (kinds[other].gso == kinds[i].gso),
                  "frame of kind %zu as one of kind %zu", i, other);
        }
        p.v.gso_type = MINT_GSO_NONE;
        CHECK(!mint_seg_begin(&seg, &p.v, p.frame, p.len), "frame of kind %zu without GSO", i);
        free(p.frame);
    }
}

static void csum_start_lies(void)
{
    for (size_t i = 0; i < KINDS; i++) {
        struct packet p = make(&kinds[i]);
        const uint16_t truth = p.v.csum_start;
        struct mint_seg seg;

        for (uint32_t start = 0; start <= p.len + 2; start++) {
            p.v.csum_start = (uint16_t)start;
            CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len) == (start == truth),
                  "csum_start %u, transport header at %u", start, truth);
        }
        free(p.frame);
    }
}

static void ipv4_header_of_16_bytes(void)
{
    struct packet p = make(&kinds[0]);
    struct mint_seg seg;

    /* All agree on a header that is too short: its length, csum_start, and a TCP header there. */
    p.frame[p.l3] = 0x44;
    p.v.csum_start = (uint16_t)(p.l3 + 16);
    p.frame[p.l3 + 16 + 12] = 0x50;
    CHECK(!mint_seg_begin(&seg, &p.v, p.frame, p.len), "accepted 16 bytes of IPv4 header");
    free(p.frame);
}

static void headers_are_bounded(void)
{
    uint8_t headers[2048] = {6};
    struct shape shape = {
        .gso = MINT_GSO_TCPV6, .payload = 10, .mss = 10, .extra_type = 60, .extra = headers};

    for (uint32_t size = 8; size <= 2048; size += 8) {
        bool fits = 14 + 40 + size + 20 <= MINT_HEADERS_MAX;
        struct packet p;
        struct mint_seg seg;

        headers[1] = (uint8_t)(size / 8 - 1);
        shape.extra_len = size;
        p = make(&shape);
        CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len) == fits, "%u bytes of headers", p.data);
        free(p.frame);
    }
}

/* A random good shape, small enough to try many. */
static struct shape random_shape(void)
{
    static const uint8_t types[] = {MINT_GSO_TCPV4, MINT_GSO_TCPV4 | MINT_GSO_ECN, MINT_GSO_TCPV6,
                                    MINT_GSO_UDP_L4};
    static const uint8_t options[12] = {1, 131, 11, 4, 10, 0, 0, 1, 10, 0, 0, 2};
    static const uint8_t tcp[24] = {6, 2, 4, 1}, udp[24] = {17, 2, 4, 1};
    struct shape shape = {.gso = types[random_below(sizeof(types))],
                          .v6 = random_below(2),
                          .tags = random_below(3),
                          .payload = random_below(300),
                          .padding = random_below(4),
                          .mss = (uint16_t)(1 + random_below(150))};

    if (random_below(2) && is_v6(&shape)) {
        shape.extra = is_udp(&shape) ? udp : tcp;
        shape.extra_len = sizeof(tcp);
        shape.extra_type = 43;
    } else if (random_below(2) && !is_v6(&shape)) {
        shape.extra = options;
        shape.extra_len = sizeof(options);
    }
    return shape;
}

/* Cuts whatever it is into segments; they must be few, fit, and hold the payload in order. */
static void cut_bounded(struct mint_seg *seg, const struct packet *p)
{
    uint32_t size = MINT_HEADERS_MAX + p->v.gso_size, from = seg->payload_off, len;
    uint8_t *out = allocate(size);

    while ((len = mint_seg_next(seg, out, size)) > 0) {
        uint32_t bytes = len - seg->payload_off;

        CHECK(len <= size && len <= p->len && bytes <= p->v.gso_size, "segment of %u bytes", len);
        CHECK(memcmp(out + seg->payload_off, p->frame + from, bytes) == 0, "payload differs");
        from += bytes;
        CHECK(seg->count <= MINT_SEGMENTS_MAX, "more than %u segments", seg->count);
    }
    CHECK(from == seg->len && from <= p->len, "payload up to %u of %u", from, seg->len);
    free(out);
}

/* Changes a few bytes, mostly of the headers, or cuts the frame short. */
static void damage(struct packet *p)
{
    uint8_t vnet[sizeof(p->v)], *shorter;
    uint32_t changes = 1 + random_below(3);

    memcpy(vnet, &p->v, sizeof(vnet));
    for (uint32_t i = 0; i < changes; i++) {
        uint32_t at = 12 + random_below(p->data - 12);

        if (random_below(4) == 0)
            vnet[random_below(sizeof(vnet))] ^= (uint8_t)(1u << random_below(8));
        else if (random_below(2))
            p->frame[at] ^= (uint8_t)(1u << random_below(8));
        else
            p->frame[at] = (uint8_t)random_below(256);
    }
    memcpy(&p->v, vnet, sizeof(vnet));
    if (random_below(4) == 0) {
        p->len = 1 + random_below(p->len - 1);
        shorter = allocate(p->len); /* a new block, so that its end is watched */
        memcpy(shorter, p->frame, p->len);
        free(p->frame);
        p->frame = shorter;
    }
}

static void random_damage(void)
{
    uint32_t cut = 0, refused = 0, completed = 0;

    for (uint32_t i = 0; i < 100000; i++) {
        struct shape shape = random_shape();
        struct packet p = make(&shape);
        struct mint_seg seg;

        damage(&p);
        if (mint_seg_begin(&seg, &p.v, p.frame, p.len)) {
            cut_bounded(&seg, &p);
            cut++;
        } else {
            refused++;
        }
        /* The same as a frame without GSO: its checksum, wherever it is said to be. */
        p.v.gso_type = MINT_GSO_NONE;
        if (p.v.flags & MINT_VNET_NEEDS_CSUM && mint_vnet_ok(&p.v, p.len)) {
            mint_csum_complete(&p.v, p.frame, p.len);
            completed++;
        }
        free(p.frame);
    }
    /* Were it always one or the other, this would have tested nothing. */
    CHECK(cut > 10000 && refused > 10000 && completed > 10000, "%u cut, %u refused, %u completed",
          cut, refused, completed);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(ethernet_lies),       CHECK_TEST(three_tags),
        CHECK_TEST(ipv4_lies),           CHECK_TEST(ipv4_header_of_16_bytes),
        CHECK_TEST(ipv6_lies),           CHECK_TEST(ipv6_routing_lies),
        CHECK_TEST(type_lies),           CHECK_TEST(csum_start_lies),
        CHECK_TEST(headers_are_bounded), CHECK_TEST(random_damage),
    };

    return CHECK_MAIN(argc, argv, tests);
}
