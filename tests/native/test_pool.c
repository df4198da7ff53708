/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool.c - the shared pool in one process: the region, records, batches, coming and going. */
#include "pool_util.h"

/* --- the region ------------------------------------------------------------------------------ */

static void sizes_have_bounds(void)
{
    size_t least = (size_t)MINT_POOL_BLOCKS_MIN * MINT_POOL_BLOCK;
    size_t most = (size_t)MINT_POOL_BLOCKS_MAX * MINT_POOL_BLOCK;

    CHECK(mint_pool_bytes(2, least) > least, "the least is refused");
    CHECK(mint_pool_bytes(2, least) % 4096 == 0, "not whole pages");
    CHECK(mint_pool_bytes(2, least - 1) == mint_pool_bytes(2, least), "not rounded up to blocks");
    CHECK(mint_pool_bytes(2, least - MINT_POOL_BLOCK) == 0, "too small, and accepted");
    CHECK(mint_pool_bytes(MINT_PORTS_MAX, most) > most, "the most is refused");
    CHECK(mint_pool_bytes(2, most + 1) == 0, "too large, and accepted");
    CHECK(mint_pool_bytes(2, SIZE_MAX) == 0, "far too large, and accepted");
    CHECK(mint_pool_bytes(0, least) == 0, "no ports, and accepted");
    CHECK(mint_pool_bytes(MINT_PORTS_MAX + 1, least) == 0, "too many ports, and accepted");
    /* Memory is O(ports + blocks): a port more costs two lines, whatever the pool's size. */
    CHECK(mint_pool_bytes(1024, most) - mint_pool_bytes(2, most) <= 1024ul * 128u + 4096u,
          "ports cost %zu", mint_pool_bytes(1024, most) - mint_pool_bytes(2, most));
}

static void format_wants_a_fresh_file(void)
{
    size_t data = 100ul * MINT_POOL_BLOCK, bytes = mint_pool_bytes(2, data);
    int fd = region_file(bytes, F_SEAL_SHRINK | F_SEAL_GROW), err;

    CHECK((err = mint_pool_format(fd, 3, data + 2ul * MINT_POOL_BLOCK)) == -EPROTO, "%d", err);
    CHECK((err = mint_pool_format(fd, 2, 0)) == -EINVAL, "%d", err);
    CHECK((err = mint_pool_format(fd, 2, data)) == 0, "%d", err);
    CHECK((err = mint_pool_format(fd, 2, data)) == -EEXIST, "formatted twice: %d", err);
    close(fd);
}

static void attach_checks_the_region(void)
{
    static mint_a64 counter[MINT_PORT_COUNTERS];
    struct mint_pool_end *end, *second;
    struct region r;
    int fd, err;

    region_make(&r, 2, 100);
    CHECK((err = mint_pool_attach(&end, r.fd, 2, counter)) == -EINVAL, "port 2 of 2: %d", err);
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == 0, "%d", err);
    CHECK((err = mint_pool_attach(&second, r.fd, 1, counter)) == -EBUSY, "twice: %d", err);
    mint_pool_detach(end);
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == 0, "again: %d", err);
    mint_pool_detach(end);

    r.head->version++;
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == -EPROTO, "version: %d", err);
    r.head->version--;
    r.head->blocks++;
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == -EPROTO, "blocks: %d", err);
    r.head->blocks--;
    r.head->data_at -= 4096;
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == -EPROTO, "offset: %d", err);
    r.head->data_at += 4096;
    store_relaxed(&r.head->magic, 0);
    CHECK((err = mint_pool_attach(&end, r.fd, 1, counter)) == -EPROTO, "magic: %d", err);
    region_free(&r);

    fd = region_file(mint_pool_bytes(2, 1u << 20), F_SEAL_GROW); /* might shrink */
    CHECK(mint_pool_format(fd, 2, 1u << 20) == 0, "format");
    CHECK((err = mint_pool_attach(&end, fd, 0, counter)) == -EPROTO, "no seal: %d", err);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "%s", strerror(errno));
    CHECK((err = mint_pool_attach(&end, fd, 0, counter)) == 0, "sealed: %d", err);
    mint_pool_detach(end);
    close(fd);
    CHECK((err = mint_pool_attach(&end, fd, 0, counter)) < 0, "closed: %d", err);
}

/* --- records --------------------------------------------------------------------------------- */

static void every_size_arrives(void)
{
    struct region r;
    struct station a, b;

    region_make(&r, 2, 200);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t blocks = 0; blocks < MINT_POOL_REC_BLOCKS; blocks++) {
        for (uint32_t d = 0; d < 160; d++) { /* about each multiple of a block */
            uint32_t len = blocks * MINT_POOL_BLOCK + d - (blocks ? 80u : 0u);

            if (len < MINT_FRAME_MIN || len > MINT_FRAME_MAX)
                continue;
            CHECK(station_send(&a, 1, len), "no room for %u bytes", len);
            CHECK(!mint_pool_pending(b.end), "visible before publish");
            mint_pool_publish(a.end);
            CHECK(mint_pool_pending(b.end), "not visible after publish");
            CHECK(station_drain(&b, false) == 1, "%u bytes did not arrive", len);
        }
        region_audit(&r);
    }
    CHECK(station_send(&a, 1, MINT_FRAME_MAX), "no room for the largest");
    CHECK(!mint_pool_reserve(a.end, 1, MINT_FRAME_MAX + 1), "larger than the largest");
    CHECK(!mint_pool_reserve(a.end, 2, 64), "a port that is none");
    station_leave(&a);
    CHECK(station_drain(&b, false) == 1, "what was staged is published by detach");
    station_leave(&b);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

/* Many times the pool's size in mixed lengths, in lots of random size, both ways. */
static void goes_round_and_round(void)
{
    uint64_t random = 12345, bytes = 0;
    struct region r;
    struct station s[3];
    uint32_t full = 0;

    region_make(&r, 3, 260);
    for (uint8_t i = 0; i < 3; i++)
        station_join(&s[i], &r, i);
    while (bytes < 40ull * 260u * MINT_POOL_BLOCK) {
        struct station *from = &s[test_random(&random) % 3u];
        struct station *to = &s[(from->index + 1u + test_random(&random) % 2u) % 3u];

        for (uint32_t n = test_random(&random) % 40u; n > 0; n--) {
            uint32_t len = test_length(&random);

            if (!station_send(from, to->index, len)) {
                full++;
                break;
            }
            bytes += len;
        }
        mint_pool_publish(from->end);
        for (uint32_t n = test_random(&random) % 40u; n > 0 && station_recv(to, false); n--)
            if (n % 8 == 0)
                mint_pool_recycle(to->end);
        if (test_random(&random) % 16u == 0)
            region_audit(&r);
    }
    CHECK(full > 0, "the pool was never full: the test tests nothing");
    for (uint32_t i = 0; i < 3; i++)
        station_drain(&s[i], false);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t j = 0; j < 3; j++)
            CHECK(s[i].sent[j] == s[j].got[i], "%u->%u: %u of %u", i, j, s[j].got[i], s[i].sent[j]);
    for (uint32_t i = 0; i < 3; i++)
        station_leave(&s[i]);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    CHECK(load_relaxed(&r.head->rebuilds) == 0, "something was damaged");
    region_free(&r);
}

/* Where the length is known only after the read: the largest is reserved each time. */
static void in_place_uses_what_it_needs(void)
{
    struct region r;
    struct station a, b;

    region_make(&r, 2, 512);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < 1000; i++) {
        struct stamp stamp = {.seq = i, .src = 0, .dst = 1, .len = 1514};
        struct mint_rec *rec = mint_pool_reserve(a.end, 1, MINT_FRAME_MAX);

        CHECK(rec, "no room");
        stamp_write(rec, &stamp);
        mint_pool_commit(a.end, 1, rec, stamp.len);
        if (i % 20 != 19)
            continue;
        mint_pool_publish(a.end);
        CHECK(region_audit(&r).queued == 20, "%u blocks", region_audit(&r).queued);
        CHECK(station_drain(&b, false) == 20, "frames are missing");
    }
    CHECK(load_relaxed(&a.counter[MINT_PORT_LOCKS]) <= 2 * 50 + 3, "%llu locks for 50 batches",
          (unsigned long long)load_relaxed(&a.counter[MINT_PORT_LOCKS]));
    station_leave(&a);
    station_leave(&b);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

static struct mint_rec *in_hand(struct station *s, uint8_t dst, uint32_t seq, uint32_t len)
{
    struct stamp stamp = {.seq = seq, .src = s->index, .dst = dst, .len = len};
    struct mint_rec *rec = mint_pool_reserve(s->end, dst, len);

    CHECK(rec, "no room for frame %u", seq);
    stamp_write(rec, &stamp);
    return rec;
}

/* Several in hand, cancelled and committed in any order, some over a publish. */
static void order_is_that_of_commit(void)
{
    struct region r;
    struct station a, b;
    struct mint_rec *rec[6];

    region_make(&r, 2, 200);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t round = 0; round < 10; round++) {
        uint32_t base = round * 4;
        static const uint32_t seq[6] = {3, 0, 99, 1, 2, 98};

        for (uint32_t i = 0; i < 6; i++)
            rec[i] = in_hand(&a, 1, base + seq[i], 1000 + 700 * i);
        mint_pool_cancel(a.end, rec[2]);
        mint_pool_cancel(a.end, rec[2]); /* twice does nothing */
        mint_pool_cancel(a.end, rec[5]);
        mint_pool_commit(a.end, 1, rec[1], 1000 + 700 * 1);
        mint_pool_commit(a.end, 1, rec[3], 1000 + 700 * 3);
        mint_pool_publish(a.end); /* 0 and 4 stay in hand */
        region_audit(&r);
        CHECK(station_drain(&b, false) == 2, "two were published");
        mint_pool_commit(a.end, 1, rec[4], 1000 + 700 * 4);
        mint_pool_commit(a.end, 1, rec[0], 1000);
        mint_pool_publish(a.end);
        CHECK(station_drain(&b, false) == 2, "two more were published");
        mint_pool_publish(a.end);
        CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    }
    rec[0] = in_hand(&a, 1, 0, 1000);
    mint_pool_commit(a.end, 1, rec[0], 5000); /* more than was reserved: as if cancelled */
    rec[0] = in_hand(&a, 1, 0, 1000);
    mint_pool_commit(a.end, 1, rec[0], MINT_FRAME_MIN - 1);
    mint_pool_publish(a.end);
    CHECK(station_drain(&b, false) == 0, "a frame that was none");
    station_leave(&a);
    station_leave(&b);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

static void handles_have_limits(void)
{
    struct region r;
    struct station a, b;
    struct mint_rec *rec[64];
    uint32_t n = 0, src, len;

    region_make(&r, 2, 1000);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < 64; i++)
        rec[i] = in_hand(&a, 1, i, 100);
    CHECK(!mint_pool_reserve(a.end, 1, 100), "more than 64 in hand");
    for (uint32_t i = 0; i < 64; i++)
        mint_pool_commit(a.end, 1, rec[i], 100);
    a.sent[1] = 64;
    for (uint32_t i = 0; i < 200; i++)
        CHECK(station_send(&a, 1, 100), "no room");
    mint_pool_publish(a.end);
    while (mint_pool_next(b.end, &src, &len))
        n++;
    CHECK(n == 128, "%u taken at once", n);
    station_leave(&b); /* taken and not released is done; the rest stays queued */
    station_join(&b, &r, 1);
    b.got[0] = 128;
    CHECK(station_drain(&b, false) == 136, "frames are missing");
    station_leave(&a);
    station_leave(&b);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

/* --- batches, progress, leaving -------------------------------------------------------------- */

static void a_batch_costs_a_lock_at_each_end(void)
{
    struct region r;
    struct station a, b;
    uint64_t sends, receives;

    region_make(&r, 2, 2000);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < 100; i++) {
        for (uint32_t j = 0; j < 32; j++) {
            CHECK(station_send(&a, 1, 1514), "no room");
            if (i > 0)
                CHECK(station_recv(&b, false), "no frame");
        }
        mint_pool_publish(a.end);
        mint_pool_recycle(b.end);
    }
    station_drain(&b, false);
    sends = load_relaxed(&a.counter[MINT_PORT_LOCKS]);
    receives = load_relaxed(&b.counter[MINT_PORT_LOCKS]);
    CHECK(sends <= 105, "%llu locks for 100 batches sent", (unsigned long long)sends);
    CHECK(receives <= 105, "%llu locks for 100 batches received", (unsigned long long)receives);
    CHECK(!mint_pool_next(b.end, &(uint32_t){0}, &(uint32_t){0}), "a frame from nowhere");
    CHECK(load_relaxed(&b.counter[MINT_PORT_LOCKS]) == receives, "an empty queue costs a lock");
    station_leave(&a);
    station_leave(&b);
    region_free(&r);
}

static void what_was_taken_ahead_comes_back(void)
{
    struct region r;
    struct station a, b;

    region_make(&r, 2, 1000);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < 3; i++) /* a small batch keeps nothing */
        CHECK(station_send(&a, 1, 1514), "no room");
    mint_pool_publish(a.end);
    CHECK(region_audit(&r).reserved == 0, "%u kept", region_audit(&r).reserved);
    for (uint32_t i = 0; i < 20; i++) /* a large one does, until nothing is sent */
        CHECK(station_send(&a, 1, 1514), "no room");
    mint_pool_publish(a.end);
    CHECK(region_audit(&r).reserved > 0, "a busy sender keeps nothing");
    mint_pool_publish(a.end);
    CHECK(region_audit(&r).reserved == 0, "%u kept", region_audit(&r).reserved);

    CHECK(station_drain(&b, false) == 23, "frames are missing");
    for (uint32_t i = 0; i < 20; i++)
        CHECK(station_send(&a, 1, 1514), "no room");
    mint_pool_publish(a.end);
    for (uint32_t i = 0; i < 8; i++) /* a port that only receives gives it back, too */
        mint_pool_recycle(a.end);
    CHECK(region_audit(&r).reserved == 0, "%u kept", region_audit(&r).reserved);

    station_flood(&a, 1, 1514, 32); /* and so does one in a pool that is short */
    CHECK(region_audit(&r).reserved == 0, "%u kept", region_audit(&r).reserved);
    station_leave(&a);
    station_leave(&b);
    region_free(&r);
}

static void progress_is_what_the_receiver_frees(void)
{
    struct region r;
    struct station a, b, c;
    uint64_t mark;

    region_make(&r, 3, 300);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    station_join(&c, &r, 2);
    CHECK(station_send(&a, 1, 100), "no room");
    CHECK(station_send(&a, 1, 100), "no room");
    CHECK(station_send(&a, 2, 100), "no room");
    mint_pool_publish(a.end);
    mark = mint_pool_progress(a.end, 1);
    CHECK(station_recv(&b, false), "no frame");
    CHECK(station_drain(&c, false) == 1, "no frame");
    CHECK(mint_pool_progress(a.end, 1) == mark, "progress before anything was given back");
    mint_pool_recycle(b.end);
    CHECK(mint_pool_progress(a.end, 1) != mark, "no progress");
    station_drain(&b, false);
    /* Port 1 has nothing: if there is no room for it, that is for others to change. */
    CHECK(station_send(&a, 2, 100), "no room");
    mint_pool_publish(a.end);
    mark = mint_pool_progress(a.end, 1);
    CHECK(station_drain(&c, false) == 1, "no frame");
    CHECK(mint_pool_progress(a.end, 1) != mark, "no progress by others");
    CHECK(mint_pool_progress(a.end, 3) == 0, "a port that is none");
    station_leave(&a);
    station_leave(&b);
    station_leave(&c);
    region_free(&r);
}

static void leaving_keeps_what_was_not_handed_out(void)
{
    struct region r;
    struct station a, b;

    region_make(&r, 2, 300);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < 50; i++)
        CHECK(station_send(&a, 1, 1000 + i), "no room");
    mint_pool_publish(a.end);
    for (uint32_t i = 0; i < 5; i++) /* the handle has taken 32 */
        CHECK(station_recv(&b, false), "no frame");
    station_leave(&b);
    CHECK(region_audit(&r).queued == 45, "%u queued", region_audit(&r).queued);
    CHECK(station_send(&a, 1, 77), "no room");
    mint_pool_publish(a.end);
    station_join(&b, &r, 1);
    b.got[0] = 5;
    CHECK(station_drain(&b, false) == 46, "frames are missing");
    CHECK(load_relaxed(&b.counter[MINT_PORT_DROP_RESTART]) == 0, "nothing was dropped");
    station_leave(&a);
    station_leave(&b);
    region_free(&r);
}

static void forget_drops_what_is_queued_for_one(void)
{
    struct region r;
    struct station a, b, c;

    region_make(&r, 3, 300);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    station_join(&c, &r, 2);
    for (uint32_t i = 0; i < 10; i++) {
        CHECK(station_send(&a, 1, 3000), "no room");
        CHECK(station_send(&a, 2, 100), "no room");
        CHECK(station_send(&c, 1, 100), "no room");
    }
    mint_pool_publish(a.end);
    mint_pool_publish(c.end);
    CHECK(mint_pool_forget(a.end, 1) == 10, "not ten");
    CHECK(mint_pool_forget(a.end, 1) == 0, "ten, and more");
    mint_pool_publish(a.end);
    mint_pool_publish(c.end);
    CHECK(region_audit(&r).queued == 20, "%u left", region_audit(&r).queued);
    CHECK(station_drain(&b, false) == 10 && b.got[2] == 10, "what others sent stays");
    CHECK(station_drain(&c, false) == 10, "what others get stays");
    station_leave(&a);
    station_leave(&b);
    station_leave(&c);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(sizes_have_bounds),
        CHECK_TEST(format_wants_a_fresh_file),
        CHECK_TEST(attach_checks_the_region),
        CHECK_TEST(every_size_arrives),
        CHECK_TEST(goes_round_and_round),
        CHECK_TEST(in_place_uses_what_it_needs),
        CHECK_TEST(order_is_that_of_commit),
        CHECK_TEST(handles_have_limits),
        CHECK_TEST(a_batch_costs_a_lock_at_each_end),
        CHECK_TEST(what_was_taken_ahead_comes_back),
        CHECK_TEST(progress_is_what_the_receiver_frees),
        CHECK_TEST(leaving_keeps_what_was_not_handed_out),
        CHECK_TEST(forget_drops_what_is_queued_for_one),
    };

    return CHECK_MAIN(argc, argv, tests);
}
