/* SPDX-License-Identifier: Apache-2.0 */
/* test_stock.c - the allocator of layout pooled against a map of who has which block. */
#include "check.h"
#include "stock.h"

#define BLOCKS 5000u
#define BUFFERS 700u

static uint64_t random_state = 0x2545f4914f6cdd1dull; // NOLINT(*-non-const-global-variables)

static uint32_t below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % limit;
}

/* Buffers as the test knows them. */
struct model {
    struct mint_stock stock;
    uint32_t blocks;
    uint16_t owner[BLOCKS]; /* 0: free */
    struct {
        uint32_t at, need, refs;
    } buffer[BUFFERS];
    uint32_t used;
};

static struct model *new_model(uint32_t blocks)
{
    struct model *m = calloc(1, sizeof(*m));

    CHECK(m && mint_stock_init(&m->stock, blocks) == 0, "out of memory");
    m->blocks = blocks;
    return m;
}

static void free_model(struct model *m)
{
    mint_stock_free(&m->stock);
    free(m);
}

static void own(struct model *m, uint32_t from, uint32_t to, uint32_t was, uint32_t is)
{
    CHECK(to <= m->blocks, "blocks up to %u", to);
    for (uint32_t b = from; b < to; b++) {
        CHECK(m->owner[b] == was, "block %u is %u's, not %u's", b, m->owner[b], was);
        m->owner[b] = (uint16_t)is;
    }
    m->used += is ? to - from : 0;
    m->used -= is ? 0 : to - from;
    CHECK(m->stock.free == m->blocks - m->used, "%u free, not %u", m->stock.free,
          m->blocks - m->used);
}

/* The longest run that is free. */
static uint32_t longest(const struct model *m)
{
    uint32_t best = 0, run = 0;

    for (uint32_t b = 0; b < m->blocks; b++) {
        run = m->owner[b] ? 0 : run + 1;
        best = run > best ? run : best;
    }
    return best;
}

static void take(struct model *m, uint32_t i)
{
    uint32_t need = below(4) ? 1 + below(20) : 1 + below(MINT_STOCK_REC_BLOCKS);
    uint32_t at = mint_stock_take(&m->stock, need);

    if (at == MINT_STOCK_NONE) {
        CHECK(longest(m) < need, "%u blocks in a row are not found", need);
        return;
    }
    own(m, at, at + need, 0, i + 1);
    m->buffer[i].at = at;
    m->buffer[i].need = need;
    m->buffer[i].refs = 1;
}

static void change(struct model *m, uint32_t i)
{
    uint32_t at = m->buffer[i].at, need = m->buffer[i].need;

    switch (below(4)) {
    case 0:
        m->buffer[i].need = 1 + below(need);
        mint_stock_trim(&m->stock, at, m->buffer[i].need);
        own(m, at + m->buffer[i].need, at + need, i + 1, 0);
        break;
    case 1:
        mint_stock_hold(&m->stock, at);
        m->buffer[i].refs++;
        break;
    default:
        mint_stock_drop(&m->stock, at);
        if (--m->buffer[i].refs == 0)
            own(m, at, at + need, i + 1, 0);
    }
}

/* Nobody gets a block that another has, and what is free is found. */
static void like_the_model(void)
{
    static const uint32_t sizes[] = {1056, 1026, 64, 65, 127, 4999, BLOCKS};

    for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
        struct model *m = new_model(sizes[n]);

        for (uint32_t step = 0; step < 60000; step++) {
            uint32_t i = below(BUFFERS);

            if (m->buffer[i].refs)
                change(m, i);
            else if (below(3))
                take(m, i);
        }
        for (uint32_t i = 0; i < BUFFERS; i++)
            while (m->buffer[i].refs)
                change(m, i);
        CHECK(m->stock.free == sizes[n], "%u are missing", sizes[n] - m->stock.free);
        if (sizes[n] >= MINT_STOCK_REC_BLOCKS)
            CHECK(mint_stock_take(&m->stock, MINT_STOCK_REC_BLOCKS) == 0, "not the lowest");
        free_model(m);
    }
}

/* What was used before is used again, and the rest of the pool left alone. */
static void the_low_end_is_used(void)
{
    struct model *m = new_model(BLOCKS);
    uint32_t highest = 0;

    for (uint32_t step = 0; step < 20000; step++) {
        uint32_t at = mint_stock_take(&m->stock, 12);

        highest = at > highest ? at : highest;
        mint_stock_drop(&m->stock, at);
    }
    CHECK(highest < 5 * MINT_STOCK_REC_BLOCKS, "block %u was used", highest);
    free_model(m);
}

static void claims(void)
{
    struct model *m = new_model(1000);

    CHECK(mint_stock_claim(&m->stock, 10, 20), "a free one");
    CHECK(mint_stock_claim(&m->stock, 10, 20), "the same again");
    CHECK(m->stock.free == 980 && m->stock.extent[10].refs == 2, "counted wrongly");
    CHECK(!mint_stock_claim(&m->stock, 10, 19), "another length");
    CHECK(!mint_stock_claim(&m->stock, 9, 2), "across its start");
    CHECK(!mint_stock_claim(&m->stock, 29, 1), "inside");
    CHECK(!mint_stock_claim(&m->stock, 990, 11), "beyond the end");
    CHECK(!mint_stock_claim(&m->stock, 1000, 1), "behind the end");
    CHECK(!mint_stock_claim(&m->stock, UINT32_MAX, 2), "far behind the end");
    CHECK(mint_stock_claim(&m->stock, 30, 970), "all the rest");
    CHECK(mint_stock_take(&m->stock, 11) == MINT_STOCK_NONE, "taken twice");
    CHECK(mint_stock_take(&m->stock, 10) == 0, "what is left");
    for (uint32_t i = 2; i < MINT_PORTS_MAX; i++)
        CHECK(mint_stock_claim(&m->stock, 10, 20), "%u receivers", i);
    CHECK(!mint_stock_claim(&m->stock, 10, 20), "more receivers than there are ports");
    free_model(m);
}

static const struct check_test tests[] = {
    CHECK_TEST(like_the_model),
    CHECK_TEST(the_low_end_is_used),
    CHECK_TEST(claims),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
