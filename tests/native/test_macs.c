/* SPDX-License-Identifier: Apache-2.0 */
/* test_macs.c - the tables of MACs, against an array that is searched from end to end. */
#include "check.h"
#include "macs.h"
#include <errno.h>

#define MODEL_MAX 1024u
#define SECOND 1000000000ull

/* xorshift64: the same numbers in every run. */
static uint64_t random_state = 0x9e3779b97f4a7c15ull;

static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % limit;
}

static uint64_t random_key(void)
{
    uint8_t mac[6];

    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)random_below(256);
    mac[0] &= 0xfe;
    return mint_mac_key(mac);
}

/* Where a key's search begins; as macs.c has it, so that keys can be made to collide. */
static uint32_t home_of(uint64_t key)
{
    return (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> 40) % MINT_MACS_STATIC;
}

/* A random key whose search begins at `home` or up to `spread` places behind it. */
static uint64_t colliding_key(uint32_t home, uint32_t spread)
{
    for (;;) {
        uint64_t key = random_key();

        if ((home_of(key) - home) % MINT_MACS_STATIC <= spread)
            return key;
    }
}

static struct mint_macs *new_table(void)
{
    struct mint_macs *t = calloc(1, sizeof(*t));

    CHECK(t, "out of memory");
    return t;
}

/* ------------------------------------------------------------------------- the static table */

struct model {
    uint32_t count;
    struct {
        uint64_t key;
        uint32_t port;
    } entry[MODEL_MAX];
};

static int model_find(const struct model *m, uint64_t key)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (m->entry[i].key == key)
            return (int)m->entry[i].port;
    return -1;
}

static void model_drop(struct model *m, uint32_t port)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < m->count; i++)
        if (m->entry[i].port != port)
            m->entry[kept++] = m->entry[i];
    m->count = kept;
}

/* Every key of the model is found where it should be, and others are not. */
static void compare(const struct mint_macs *t, const struct model *m)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < m->count; i++)
        CHECK(mint_macs_fixed(t, m->entry[i].key) == (int)m->entry[i].port,
              "key %#llx is behind port %d, not %u", (unsigned long long)m->entry[i].key,
              mint_macs_fixed(t, m->entry[i].key), m->entry[i].port);
    for (uint32_t i = 0; i < MINT_MACS_STATIC; i++)
        used += t->fixed[i].key != 0;
    CHECK(used == m->count, "%u entries in use, the model has %u", used, m->count);
    for (uint32_t i = 0; i < 16; i++) {
        uint64_t key = random_key();

        CHECK(mint_macs_fixed(t, key) == model_find(m, key), "a stranger is found");
    }
}

static void add(struct mint_macs *t, struct model *m, uint64_t key, uint32_t port)
{
    int owner = model_find(m, key);
    int wanted = owner < 0 || owner == (int)port ? 0 : -EEXIST;

    CHECK(mint_macs_add(t, key, port) == wanted, "add says something else than %d", wanted);
    if (owner < 0) {
        m->entry[m->count].key = key;
        m->entry[m->count++].port = port;
    }
}

/* Random additions and removals; `home` and `spread` say how much the keys collide. */
static void churn(uint32_t home, uint32_t spread, uint32_t ports, uint32_t steps)
{
    struct mint_macs *t = new_table();
    struct model *m = calloc(1, sizeof(*m));

    CHECK(m, "out of memory");
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t port = random_below(ports);

        if (m->count < MODEL_MAX && random_below(8)) {
            uint64_t key = m->count && !random_below(8)
                               ? m->entry[random_below(m->count)].key /* again, or by another */
                               : colliding_key(home, spread);

            add(t, m, key, port);
        } else {
            mint_macs_drop(t, port);
            model_drop(m, port);
        }
        compare(t, m);
    }
    free(m);
    free(t);
}

static void fixed_like_a_list(void)
{
    churn(0, MINT_MACS_STATIC - 1, 64, 3000);
    churn(0, MINT_MACS_STATIC - 1, 3, 300);
}

/* Entries that lie behind their own place must move up when one before them goes. */
static void fixed_removal_moves_the_displaced(void)
{
    churn(100, 40, 16, 400);
}

/* The same where the run of entries goes over the table's end. */
static void fixed_removal_around_the_end(void)
{
    churn(MINT_MACS_STATIC - 20, 40, 16, 400);
    churn(MINT_MACS_STATIC - 1, 0, 8, 60);
}

static void fixed_takes_a_whole_fabric(void)
{
    struct mint_macs *t = new_table();
    uint64_t *keys = calloc(MODEL_MAX, sizeof(*keys));

    CHECK(keys, "out of memory");
    for (uint32_t i = 0; i < MODEL_MAX; i++) {
        const uint8_t mac[6] = {2, 0x4d, 0x56, 0xff, (uint8_t)(i >> 8), (uint8_t)i};

        keys[i] = mint_mac_key(mac);
        CHECK(mint_macs_add(t, keys[i], i) == 0, "MAC %u refused", i);
    }
    for (uint32_t gone = 0; gone < MODEL_MAX; gone++) {
        mint_macs_drop(t, gone);
        CHECK(mint_macs_fixed(t, keys[gone]) == -1, "MAC %u is still there", gone);
        if (gone + 1 < MODEL_MAX)
            CHECK(mint_macs_fixed(t, keys[MODEL_MAX - 1]) == MODEL_MAX - 1, "the last is lost");
    }
    free(keys);
    free(t);
}

static void fixed_full_is_refused(void)
{
    struct mint_macs *t = new_table();
    uint32_t n = 0;
    int err;

    for (;;) {
        uint64_t key = random_key();

        if (mint_macs_fixed(t, key) >= 0)
            continue;
        err = mint_macs_add(t, key, n % 5);
        if (err)
            break;
        n++;
    }
    CHECK(err == -ENOSPC && n == MINT_MACS_STATIC, "%d after %u", err, n);
    CHECK(mint_macs_fixed(t, random_key()) == -1, "a search in a full table");
    mint_macs_drop(t, 3);
    for (uint32_t i = 0; i < MINT_MACS_STATIC; i++)
        if (t->fixed[i].key)
            CHECK(mint_macs_fixed(t, t->fixed[i].key) == (int)t->fixed[i].port, "entry %u", i);
    free(t);
}

/* ------------------------------------------------------------------------ the learned table */

static void learned_moves_and_ages(void)
{
    struct mint_macs *t = new_table();
    uint64_t key = random_key(), now = 1000 * SECOND;

    CHECK(mint_macs_learned(t, key, now) == -1, "known before it was seen");
    CHECK(mint_macs_learn(t, key, 7, now), "not new");
    CHECK(!mint_macs_learn(t, key, 7, now + SECOND), "new again");
    CHECK(mint_macs_learned(t, key, now + 2 * SECOND) == 7, "not behind port 7");
    CHECK(mint_macs_learn(t, key, 9, now + 3 * SECOND), "it moved, and that is no news");
    CHECK(mint_macs_learned(t, key, now + 3 * SECOND) == 9, "not behind port 9");
    CHECK(mint_macs_learned(t, key, now + 3 * SECOND + MINT_MACS_AGE_NS) == 9, "aged too early");
    CHECK(mint_macs_learned(t, key, now + 3 * SECOND + MINT_MACS_AGE_NS + 1) == -1, "not aged");
    CHECK(mint_macs_learned(t, key ^ 1u, now) == -1, "a stranger is known");
    free(t);
}

static void learned_goes_with_its_port(void)
{
    struct mint_macs *t = new_table();
    uint64_t one = random_key(), two = random_key();

    mint_macs_learn(t, one, 1, SECOND);
    mint_macs_learn(t, two, 2, SECOND);
    mint_macs_drop(t, 1);
    CHECK(mint_macs_learned(t, one, SECOND) == -1, "still behind the port that is gone");
    CHECK(mint_macs_learned(t, two, SECOND) == 2, "the other's is gone too");
    free(t);
}

/* Within the places where a MAC may lie the oldest makes room; what was seen lately stays. */
static void learned_forgets_the_oldest(void)
{
    struct mint_macs *t = new_table();
    uint64_t key[MINT_MACS_PROBE + 1];

    for (uint32_t i = 0; i <= MINT_MACS_PROBE; i++) {
        uint32_t home = 77;

        do
            key[i] = random_key();
        while (((uint32_t)((key[i] * 0x9e3779b97f4a7c15ull) >> 40)) % MINT_MACS_LEARNED != home);
    }
    for (uint32_t i = 0; i < MINT_MACS_PROBE; i++)
        CHECK(mint_macs_learn(t, key[i], i, (i + 1) * SECOND), "%u is not new", i);
    mint_macs_learn(t, key[0], 0, 20 * SECOND); /* so that 1 is the oldest */
    mint_macs_learn(t, key[MINT_MACS_PROBE], 99, 21 * SECOND);
    for (uint32_t i = 0; i < MINT_MACS_PROBE; i++)
        CHECK(mint_macs_learned(t, key[i], 22 * SECOND) == (i == 1 ? -1 : (int)i), "%u", i);
    CHECK(mint_macs_learned(t, key[MINT_MACS_PROBE], 22 * SECOND) == 99, "the new one");
    free(t);
}

/* A flood of MACs neither outgrows the table nor is answered wrongly, nor hides a static one. */
static void learned_is_bounded(void)
{
    struct mint_macs *t = new_table();
    uint64_t known = random_key();
    uint32_t used = 0;

    CHECK(mint_macs_add(t, known, 5) == 0, "refused");
    for (uint32_t i = 0; i < 100000; i++) {
        uint64_t key = random_key();

        mint_macs_learn(t, key, i % 11, i);
        CHECK(mint_macs_learned(t, key, i) == (int)(i % 11), "just learned, and not known");
    }
    for (uint32_t i = 0; i < MINT_MACS_LEARNED; i++)
        used += t->learned[i].key != 0;
    CHECK(used > MINT_MACS_LEARNED / 2, "only %u places are used", used);
    CHECK(mint_macs_fixed(t, known) == 5, "the static MAC is hidden");
    free(t);
}

static const struct check_test tests[] = {
    CHECK_TEST(fixed_like_a_list),
    CHECK_TEST(fixed_removal_moves_the_displaced),
    CHECK_TEST(fixed_removal_around_the_end),
    CHECK_TEST(fixed_takes_a_whole_fabric),
    CHECK_TEST(fixed_full_is_refused),
    CHECK_TEST(learned_moves_and_ages),
    CHECK_TEST(learned_goes_with_its_port),
    CHECK_TEST(learned_forgets_the_oldest),
    CHECK_TEST(learned_is_bounded),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
