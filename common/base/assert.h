/* Checks of our own invariants, in release builds too; never used on what comes from outside. */
#pragma once

/* Prints the failed condition with its place and aborts. */
_Noreturn void bt_assert_failed(const char *condition, const char *file, int line);

#define BT_ASSERT(condition)                                  \
    do {                                                      \
        if (__builtin_expect(!(condition), 0))                \
            bt_assert_failed(#condition, __FILE__, __LINE__); \
    } while (0)
