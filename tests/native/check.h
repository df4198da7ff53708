/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check.h - what the C unit tests share: CHECK() and a main that runs named tests.
 *
 *     static void rings(void) { CHECK(ring() == 0, "ring gave %d", ring()); }
 *     static const struct check_test tests[] = {CHECK_TEST(rings)};
 *     int main(int argc, char **argv) { return CHECK_MAIN(argc, argv, tests); }
 *
 * Arguments name the tests to run; without any, all run. The first check that fails ends the
 * program with status 1, so that what comes after cannot hide it.
 */
#ifndef MINT_TEST_CHECK_H
#define MINT_TEST_CHECK_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* struct check_test - one test: it returns, or ends in a failed CHECK(). */
struct check_test {
    const char *name;
    void (*run)(void);
};
#define CHECK_TEST(function) {#function, function}

/* The test that runs, for the message of a failed check; one copy per program. */
static const char *check_running = "(no test)"; // NOLINT(*-non-const-global-variables): see above

/* Reports a failed check and exits; use CHECK(). */
__attribute__((noreturn, format(printf, 4, 5))) static inline void check_fail(
    const char *file, int line, const char *condition, const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "%s:%d: in %s: %s: ", file, line, check_running, condition);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* CHECK(condition, format, ...) - go on if it holds, else say where and why not, and exit(1). */
#define CHECK(condition, ...) \
    do { \
        if (!(condition)) \
            check_fail(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)

/* Whether the command line asks for this test. */
static inline int check_wanted(const char *name, int argc, char **argv)
{
    if (argc < 2)
        return 1;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return 0;
}

/* Runs the tests; use CHECK_MAIN(). Return: the program's exit status. */
static inline int check_main(int argc, char **argv, const struct check_test *tests, size_t count)
{
    size_t passed = 0;

    for (size_t i = 0; i < count; i++) {
        if (!check_wanted(tests[i].name, argc, argv))
            continue;
        check_running = tests[i].name;
        tests[i].run();
        passed++;
    }
    if (passed == 0) { /* a misspelt name must not look like success */
        fprintf(stderr, "no test of that name\n");
        return 2;
    }
    printf("%zu passed, 0 failed\n", passed);
    return 0;
}
#define CHECK_MAIN(argc, argv, tests) \
    check_main((argc), (argv), (tests), sizeof(tests) / sizeof((tests)[0]))

#endif
