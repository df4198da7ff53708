/* SPDX-License-Identifier: Apache-2.0 */
/* test_port_idle.c - the memory of idle channels is given back, and nothing else of them. */
#include "port_util.h"
#include <sys/stat.h>

#define CAPACITY (2u << 20)
#define TENTH (100 * MS)

/* Each test runs in the layouts that give memory back. */
#define EACH_LAYOUT(layout) \
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_POOLED; \
         layout += MINT_LAYOUT_POOLED)

static struct fabric *open_fabric(uint32_t layout, uint16_t idle_ds)
{
    struct fabric *f = fabric_new(3, layout, CAPACITY);

    f->idle_ds = idle_ds;
    return fabric_open(f);
}

/* Bytes that what port `from` writes to port `to` occupies now. */
static uint64_t committed(const struct fabric *f, uint32_t from, uint32_t to)
{
    int fd = f->layout == MINT_LAYOUT_POOLED ? f->stock[from] : f->payload[from][to];
    struct stat st;

    CHECK(fstat(fd, &st) == 0, "fstat");
    return (uint64_t)st.st_blocks * 512;
}

/* Enough frames to go through the whole of a ring, each read at once. */
static void talk(struct fabric *f, uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < 2000; i++) {
        CHECK(send_frame(f, from, to, 1400 + i % 100, (uint8_t)i) == MINT_SENT, "not sent");
        CHECK(recv_mark(f, to) == (int)(i % 256), "frame %u does not come", i);
    }
}

/* Sleep; nothing may wake the port before its time. */
static void sleep_for(struct fabric *f, uint32_t i, int64_t ns)
{
    uint64_t start = now_ns();

    while (mint_port_wait(f->port[i], 0) != MINT_EV_TIMER) /* rings of the beginning */
        ;
    CHECK(mint_port_wait(f->port[i], ns) == MINT_EV_TIMER, "woken");
    CHECK(now_ns() - start >= (uint64_t)ns, "woken too early");
}

static void idle_memory_is_given_back(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 1);

        for (uint32_t round = 1; round <= 3; round++) {
            talk(f, 0, 1);
            CHECK(committed(f, 0, 1) > 64 << 10, "nothing was committed");
            sleep_for(f, 0, 3 * TENTH);
            CHECK(committed(f, 0, 1) <= 4096, "%llu bytes are kept",
                  (unsigned long long)committed(f, 0, 1)); /* a pool's page of notes */
            CHECK(port_counter(f, 0, MINT_PORT_RECLAIMS) == round, "not counted");
        }
        talk(f, 0, 1);
        CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 0, "the receiver noticed");
        fabric_free(f);
    }
}

/* With nothing to give back the port sleeps without getting up. */
static void an_idle_port_sleeps(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 1);
        uint64_t sleeps;

        talk(f, 0, 1);
        sleep_for(f, 0, 4 * TENTH);
        sleeps = port_counter(f, 0, MINT_PORT_SLEEPS);
        sleep_for(f, 0, 5 * TENTH);
        CHECK(port_counter(f, 0, MINT_PORT_SLEEPS) <= sleeps + 2, "%llu times",
              (unsigned long long)(port_counter(f, 0, MINT_PORT_SLEEPS) - sleeps));
        fabric_free(f);
    }
}

static void what_is_unread_is_kept(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 1);

        talk(f, 0, 1);
        for (uint8_t i = 0; i < 50; i++)
            CHECK(send_frame(f, 0, 1, 1500, i) == MINT_SENT, "not sent");
        sleep_for(f, 0, 3 * TENTH);
        CHECK(port_counter(f, 0, MINT_PORT_RECLAIMS) == 0, "given back");
        for (uint8_t i = 0; i < 50; i++)
            CHECK(recv_mark(f, 1) == i, "frame %u is lost", i);
        sleep_for(f, 0, 3 * TENTH);
        CHECK(committed(f, 0, 1) <= 4096, "kept");
        fabric_free(f);
    }
}

/* Whoever talks keeps its memory; in layout per-channel, whoever does not loses it nevertheless. */
static void active_channels_are_left_alone(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 1);
        bool own = layout == MINT_LAYOUT_PER_CHANNEL;
        uint64_t start;

        talk(f, 0, 1);
        start = now_ns();
        /* Too busy to sleep: the flushes do it, however few a busy machine lets through. */
        while (now_ns() - start < 5 * TENTH ||
               (own && committed(f, 0, 1) && now_ns() - start < 100 * TENTH)) {
            CHECK(send_frame(f, 0, 2, 1500, 1) == MINT_SENT, "not sent");
            CHECK(recv_mark(f, 2) == 1, "not received");
        }
        CHECK(committed(f, 0, 2) > 64 << 10, "taken from one who talks");
        CHECK(!own || committed(f, 0, 1) == 0, "kept by one who does not");
        fabric_free(f);
    }
}

static void never_means_never(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 0);

        talk(f, 0, 1);
        sleep_for(f, 0, 3 * TENTH);
        CHECK(committed(f, 0, 1) > 64 << 10, "given back");
        fabric_free(f);
    }
}

/* A successor gives back what its predecessor left, too; what nobody reads any more as well. */
static void whatever_became_of_the_ends(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(layout, 1);

        talk(f, 0, 1);
        crash_port(f, 0);
        open_port(f, 0);
        sleep_for(f, 0, 3 * TENTH);
        CHECK(committed(f, 0, 1) <= 4096, "kept by a successor");
        for (uint8_t i = 0; i < 50; i++)
            CHECK(send_frame(f, 0, 1, 1500, i) == MINT_SENT, "not sent");
        leave_port(f, 1);
        sleep_for(f, 0, 3 * TENTH);
        CHECK(committed(f, 0, 1) <= 4096, "kept for one who left");
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 50, "%llu counted",
              (unsigned long long)tx_counter(f, 0, 1, MINT_TX_DROP_RESET));
        open_port(f, 1);
        CHECK(send_frame(f, 0, 1, 100, 5) == MINT_SENT && recv_mark(f, 1) == 5, "again");
        fabric_free(f);
    }
}

static const struct check_test tests[] = {
    CHECK_TEST(idle_memory_is_given_back), CHECK_TEST(an_idle_port_sleeps),
    CHECK_TEST(what_is_unread_is_kept),    CHECK_TEST(active_channels_are_left_alone),
    CHECK_TEST(never_means_never),         CHECK_TEST(whatever_became_of_the_ends),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
