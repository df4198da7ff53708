/* SPDX-License-Identifier: Apache-2.0 */
/* test_guest_accounts.c - lines of /etc/passwd, as mint-guest takes them apart. */
#include "check.h"
#include "guest/accounts.c" // NOLINT(bugprone-suspicious-include): what is static in it is tested

/* accounts.c wants nothing else of mint-guest. */

static bool parsed(const char *text, struct account *a)
{
    char *line = strdup(text);
    bool ok = line && parse(line, a);

    free(line);
    return ok;
}

static void usual(void)
{
    struct account a;

    CHECK(parsed("root:x:0:0:root:/root:/bin/bash\n", &a), "not taken");
    CHECK(a.uid == 0 && a.gid == 0, "ids %u %u", a.uid, a.gid);
    CHECK(strcmp(a.name, "root") == 0, "name %s", a.name);
    CHECK(strcmp(a.home, "/root") == 0, "home %s", a.home);
    CHECK(strcmp(a.shell, "/bin/bash") == 0, "shell %s", a.shell);
    CHECK(parsed("u:x:1000:100::/home/u:", &a), "no shell, no end of line");
    CHECK(a.uid == 1000 && a.gid == 100 && !*a.shell, "%u %u %s", a.uid, a.gid, a.shell);
}

static void odd(void)
{
    char longer[2048];
    struct account a;

    CHECK(!parsed("", &a), "nothing");
    CHECK(!parsed("\n", &a), "an empty line");
    CHECK(!parsed("# a comment\n", &a), "a comment");
    CHECK(!parsed("a:x:1:1:g:/h\n", &a), "a field too few");
    CHECK(!parsed("a:x:1:1:g:/h:/s:more\n", &a), "a field too many");
    CHECK(!parsed("+::::::\n", &a) || !*a.home, "NIS");
    memset(longer, 'x', sizeof(longer));
    memcpy(longer, "a:x:1:1:g:/", 11);
    memcpy(longer + sizeof(longer) - 5, ":/s\n", 5);
    CHECK(!parsed(longer, &a), "a home that is too long");
    memset(longer, ':', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    CHECK(!parsed(longer, &a), "nothing but colons");
}

static bool count(const struct account *a, void *data)
{
    (void)a;
    return ++*(int *)data < 2;
}

static void whole_file(void)
{
    struct account root;
    int n = 0;

    accounts_each(count, &n);
    CHECK(n <= 2, "went on after %d", n);
    accounts_root(&root);
    CHECK(root.uid == 0 && root.home[0] == '/' && *root.shell, "root %s %s", root.home, root.shell);
}

static const struct check_test tests[] = {
    CHECK_TEST(usual),
    CHECK_TEST(odd),
    CHECK_TEST(whole_file),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
