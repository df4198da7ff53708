/* SPDX-License-Identifier: Apache-2.0 */
/* test_offload.c - vnet headers, checksums and segments of well-formed frames. */
#include "offload_model.h"

/* ------------------------------------------------------------------------- the vnet header */

static void vnet_accepts_what_linux_sends(void)
{
    static const struct mint_vnet good[] = {
        {0},
        {.flags = MINT_VNET_DATA_VALID},
        {.flags = MINT_VNET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16},
        {.flags = MINT_VNET_NEEDS_CSUM, .csum_start = 14, .csum_offset = 0},
        {.flags = MINT_VNET_NEEDS_CSUM, .csum_start = 1498, .csum_offset = 0},
        {1, MINT_GSO_TCPV4, 66, 1448, 34, 16, 0},
        {1, MINT_GSO_TCPV4 | MINT_GSO_ECN, 66, 1448, 34, 16, 0},
        {1, MINT_GSO_TCPV6, 66, 1428, 54, 16, 0},
        {1, MINT_GSO_TCPV6 | MINT_GSO_ECN, 66, 1428, 54, 16, 0},
        {3, MINT_GSO_UDP_L4, 42, 1, 1500 - 8 - 1024, 6, 0},
        /* What is not asked for is not looked at. */
        {0, MINT_GSO_NONE, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff},
    };

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        CHECK(mint_vnet_ok(&good[i], 1500), "good header %zu refused", i);
    CHECK(mint_vnet_ok(&good[0], MINT_FRAME_MIN), "shortest frame refused");
    CHECK(mint_vnet_ok(&good[0], MINT_FRAME_MAX), "longest frame refused");
}

static void vnet_refuses_nonsense(void)
{
    static const struct mint_vnet bad[] = {
        {.flags = 4},                                       /* RSC information */
        {.flags = 0x81, .csum_start = 34},                  /* unknown flag */
        {1, MINT_GSO_NONE, 0, 0, 13, 0, 0},                 /* would write into the MACs */
        {1, MINT_GSO_NONE, 0, 0, 0, 6, 0},                  /* likewise */
        {1, MINT_GSO_NONE, 0, 0, 1499, 0, 0},               /* field half behind the end */
        {1, MINT_GSO_NONE, 0, 0, 34, 1500 - 34 - 1, 0},     /* likewise */
        {1, MINT_GSO_NONE, 0, 0, 0xffff, 0xffff, 0},        /* a 16-bit sum would wrap */
        {0, MINT_GSO_TCPV4, 66, 1448, 34, 16, 0},           /* GSO without NEEDS_CSUM */
        {2, MINT_GSO_TCPV4, 66, 1448, 34, 16, 0},           /* likewise */
        {1, MINT_GSO_TCPV4, 66, 0, 34, 16, 0},              /* no gso_size */
        {1, MINT_GSO_TCPV4, 66, 0, 1480, 16, 0},            /* likewise, and no payload */
        {1, MINT_GSO_TCPV4, 66, 1, 34, 16, 0},              /* 1446 segments */
        {1, MINT_GSO_UDP_L4, 66, 1, 1500 - 8 - 1025, 6, 0}, /* one too many */
        {1, MINT_GSO_TCPV4, 66, 1448, 34, 6, 0},            /* UDP's csum_offset */
        {1, MINT_GSO_UDP_L4, 66, 1448, 34, 16, 0},          /* TCP's csum_offset */
        {1, MINT_GSO_TCPV4, 66, 1448, 1481, 16, 0},         /* no room for a TCP header */
        {1, MINT_GSO_UDP_L4, 66, 1448, 1493, 6, 0},         /* no room for a UDP header */
        {1, MINT_GSO_UDP_L4 | MINT_GSO_ECN, 66, 1448, 34, 6, 0},
        {0, MINT_GSO_ECN, 0, 0, 0, 0, 0},
        {1, 3, 66, 1448, 34, 6, 0},     /* UDP fragmentation, which no one is offered */
        {1, 2, 66, 1448, 34, 16, 0},    /* unknown */
        {1, 0x21, 66, 1448, 34, 16, 0}, /* tunnelled */
    };
    static const struct mint_vnet none = {0};
    struct mint_seg seg;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint8_t frame[1500] = {0};

        CHECK(!mint_vnet_ok(&bad[i], 1500), "bad header %zu accepted", i);
        CHECK(!mint_seg_begin(&seg, &bad[i], frame, sizeof(frame)), "bad header %zu cut", i);
    }
    CHECK(!mint_vnet_ok(&none, 0), "empty frame accepted");
    CHECK(!mint_vnet_ok(&none, MINT_FRAME_MIN - 1), "frame too short accepted");
    CHECK(!mint_vnet_ok(&none, MINT_FRAME_MAX + 1), "frame too long accepted");
    CHECK(!mint_seg_begin(&seg, &none, (const uint8_t[64]){0}, 64), "a frame without GSO cut");
}

/* ------------------------------------------------------------------------------- checksums */

/* Completes one checksum in a frame that starts `skew` bytes off any alignment; checks all of it. */
static void complete_and_compare(uint32_t len, uint32_t start, uint32_t offset, uint32_t skew)
{
    uint8_t *memory = allocate(skew + len), *frame = memory + skew, *wanted = allocate(len);
    struct mint_vnet v = {.flags = MINT_VNET_NEEDS_CSUM,
                          .csum_start = (uint16_t)start,
                          .csum_offset = (uint16_t)offset};
    uint32_t sum;

    for (uint32_t i = 0; i < len; i++)
        frame[i] = (uint8_t)(random_below(4) ? random_below(256) : 0xff);
    memcpy(wanted, frame, len);
    sum = ~plain_sum(0, frame + start, len - start) & 0xffffu;
    put16(wanted + start + offset, sum == 0 && offset == 6 ? 0xffff : sum);
    CHECK(mint_vnet_ok(&v, len), "vnet header refused: %u bytes from %u at %u", len, start, offset);
    mint_csum_complete(&v, frame, len);
    CHECK(memcmp(frame, wanted, len) == 0, "%u bytes from %u at %u: %04x, not %04x", len, start,
          offset, get16(frame + start + offset), get16(wanted + start + offset));
    free(wanted);
    free(memory);
}

static void csum_of_every_length_and_alignment(void)
{
    for (uint32_t len = 16; len < 400; len++)
        for (uint32_t skew = 0; skew < 9; skew++)
            complete_and_compare(len, 14 + random_below(len - 15), 0, skew);
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t len = 64 + random_below(MINT_FRAME_MAX - 63);
        uint32_t start = 14 + random_below(30);

        complete_and_compare(len, start, 2 * random_below(9), random_below(8));
    }
    complete_and_compare(MINT_FRAME_MAX, 34, 16, 0);
}

static void csum_carries(void)
{
    struct mint_vnet v = {.flags = MINT_VNET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
    uint8_t *frame = allocate(MINT_FRAME_MAX);

    /* All ones make every addition carry; ones' complement makes the sum all ones again. */
    memset(frame, 0xff, MINT_FRAME_MAX);
    mint_csum_complete(&v, frame, MINT_FRAME_MAX);
    CHECK(get16(frame + 50) == 0, "got %04x", get16(frame + 50));
    free(frame);
}

static void csum_zero_is_stored_as_ones_for_udp(void)
{
    struct mint_vnet v = {.flags = MINT_VNET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 6};
    uint8_t frame[64] = {0};

    put16(frame + 34, 0xffff);
    mint_csum_complete(&v, frame, sizeof(frame));
    CHECK(get16(frame + 40) == 0xffff, "UDP got %04x", get16(frame + 40));
    memset(frame, 0, sizeof(frame));
    put16(frame + 34, 0xffff);
    v.csum_offset = 16;
    mint_csum_complete(&v, frame, sizeof(frame));
    CHECK(get16(frame + 50) == 0, "TCP got %04x", get16(frame + 50));
}

/* --------------------------------------------------------------------------------- segments */

static const uint8_t gso_types[] = {MINT_GSO_TCPV4, MINT_GSO_TCPV4 | MINT_GSO_ECN, MINT_GSO_TCPV6,
                                    MINT_GSO_TCPV6 | MINT_GSO_ECN, MINT_GSO_UDP_L4};
#define GSO_TYPES (sizeof(gso_types) / sizeof(gso_types[0]))

/* Cuts a shape as TCP and UDP over IPv4 and IPv6. */
static void cut_all(struct shape shape)
{
    for (size_t i = 0; i <= GSO_TYPES; i++) {
        shape.gso = gso_types[i < GSO_TYPES ? i : GSO_TYPES - 1];
        shape.v6 = i == GSO_TYPES;
        cut_and_compare(&shape);
    }
}

static void segments_of_many_sizes(void)
{
    static const uint32_t payloads[] = {0, 1, 99, 100, 101, 199, 200, 201, 1000, 4321};

    for (size_t i = 0; i < sizeof(payloads) / sizeof(payloads[0]); i++)
        for (uint32_t tags = 0; tags <= 2; tags++)
            cut_all((struct shape){.tags = tags,
                                   .payload = payloads[i],
                                   .mss = 100,
                                   .tcp_options = 4 * random_below(11),
                                   .tcp_flags = FIN | PSH | ACK | CWR});
    for (uint32_t i = 0; i < 200; i++)
        cut_all((struct shape){.tags = random_below(3),
                               .payload = random_below(9000),
                               .mss = (uint16_t)(9 + random_below(3000)),
                               .tcp_options = 4 * random_below(11),
                               .tcp_flags = (uint8_t)random_below(256)});
}

static void segments_of_the_largest_frames(void)
{
    struct shape shape = {.tags = 2, .mss = 1448, .tcp_flags = PSH | ACK};

    shape.gso = MINT_GSO_TCPV4;
    shape.payload = 65535 - 20 - 20;
    cut_and_compare(&shape);
    shape.mss = 0xffff; /* one segment, as long as IPv4 allows */
    cut_and_compare(&shape);
    shape.gso = MINT_GSO_TCPV6;
    shape.payload = MINT_FRAME_MAX - 22 - 40 - 20; /* the frame is the limit, not IPv6 */
    cut_and_compare(&shape);
    shape.gso = MINT_GSO_UDP_L4;
    shape.payload = 65535 - 20 - 8;
    shape.mss = 64; /* 1024 segments */
    cut_and_compare(&shape);
}

static void segments_without_the_padding(void)
{
    cut_all((struct shape){.payload = 250, .mss = 100, .padding = 17, .tcp_flags = FIN});
    cut_all((struct shape){.payload = 3, .mss = 100, .padding = 3});
}

static void udp_segment_with_zero_checksum(void)
{
    struct shape shape = {.gso = MINT_GSO_UDP_L4, .payload = 2, .mss = 2};
    struct packet p = make(&shape);
    uint8_t out[64];
    struct mint_seg seg;

    /* The payload is chosen so that the sum of all the rest and it is all ones. */
    put16(p.frame + p.data, 0);
    put16(p.frame + p.l4 + 6, 0);
    put16(p.frame + p.data, plain_csum(&shape, &p, p.frame, 10));
    CHECK(mint_seg_begin(&seg, &p.v, p.frame, p.len), "refused");
    CHECK(mint_seg_next(&seg, out, sizeof(out)) == p.len, "not one segment");
    CHECK(get16(out + p.l4 + 6) == 0xffff, "got %04x", get16(out + p.l4 + 6));
    free(p.frame);
}

/* Cuts TCP and UDP with these IPv4 options; dst_at as in struct shape. */
static void cut_ipv4_options(const uint8_t *options, uint32_t len, uint32_t dst_at)
{
    struct shape shape = {.gso = MINT_GSO_TCPV4,
                          .extra = options,
                          .extra_len = len,
                          .dst_at = dst_at,
                          .payload = 345,
                          .mss = 100};

    cut_and_compare(&shape);
    shape.gso = MINT_GSO_UDP_L4;
    cut_and_compare(&shape);
}

static void segments_with_ipv4_options(void)
{
    static const uint8_t alert[] = {148, 4, 0, 0};
    static const uint8_t many[40] = {1, 1, 68, 8, 5, 0, 0, 0, 0, 0, 0, 131, 1};
    static const uint8_t loose[] = {1, 131, 11, 4, 10, 0, 0, 1, 10, 0, 0, 2};
    static const uint8_t strict[] = {137, 7, 4, 10, 0, 0, 3, 0};
    static const uint8_t done[] = {131, 7, 8, 10, 0, 0, 3, 0};

    cut_ipv4_options(alert, sizeof(alert), 0);
    cut_ipv4_options(many, sizeof(many), 0); /* what follows the end of options is not looked at */
    cut_ipv4_options(loose, sizeof(loose), 8);
    cut_ipv4_options(strict, sizeof(strict), 3);
    cut_ipv4_options(done, sizeof(done), 0);
}

/* Fills in the last extension header's type and cuts; last_at: where it lies. */
static void cut_ipv6_headers(uint8_t *extra, uint32_t len, uint8_t type, uint32_t last_at,
                             uint32_t dst_at)
{
    struct shape shape = {.gso = MINT_GSO_TCPV6,
                          .extra = extra,
                          .extra_len = len,
                          .extra_type = type,
                          .dst_at = dst_at,
                          .payload = 345,
                          .mss = 100};

    extra[last_at] = 6;
    cut_and_compare(&shape);
    shape.gso = MINT_GSO_UDP_L4;
    shape.v6 = true;
    extra[last_at] = 17;
    cut_and_compare(&shape);
}

static void segments_with_ipv6_headers(void)
{
    uint8_t hop[8] = {0, 0, 1, 4};                             /* padding */
    uint8_t both[24] = {60, 0, 5, 2, 0, 0, 1, 0, 0, 1, 1, 12}; /* hop-by-hop, destination */
    uint8_t segment[40] = {0, 4, 4, 1, 1, 0, 0, 0, 0xfd, 7};   /* segment routing, 1 hop left */
    uint8_t arrived[40] = {0, 4, 4, 0, 1, 0, 0, 0, 0xfd, 7};   /* none left */
    uint8_t home[32] = {43, 0, 1, 4, 0, 0, 0, 0, 0, 2, 2, 1};  /* hop-by-hop, routing type 2 */
    uint8_t old[24] = {0, 2, 0, 0};                            /* type 0, none left */

    cut_ipv6_headers(hop, sizeof(hop), 0, 0, 0);
    cut_ipv6_headers(both, sizeof(both), 0, 8, 0);
    cut_ipv6_headers(segment, sizeof(segment), 43, 0, 8);
    cut_ipv6_headers(arrived, sizeof(arrived), 43, 0, 0);
    cut_ipv6_headers(home, sizeof(home), 0, 8, 16);
    cut_ipv6_headers(old, sizeof(old), 43, 0, 0);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(vnet_accepts_what_linux_sends),       CHECK_TEST(vnet_refuses_nonsense),
        CHECK_TEST(csum_of_every_length_and_alignment),  CHECK_TEST(csum_carries),
        CHECK_TEST(csum_zero_is_stored_as_ones_for_udp), CHECK_TEST(segments_of_many_sizes),
        CHECK_TEST(segments_of_the_largest_frames),      CHECK_TEST(segments_without_the_padding),
        CHECK_TEST(udp_segment_with_zero_checksum),      CHECK_TEST(segments_with_ipv4_options),
        CHECK_TEST(segments_with_ipv6_headers),
    };

    return CHECK_MAIN(argc, argv, tests);
}
