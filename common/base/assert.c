/* Ends the process when one of our own invariants is broken. */
#include "common/base/assert.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void bt_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr,
            "baton: broken invariant: %s (%s:%d); this is a defect in baton, please report it\n",
            condition, file, line);
    abort();
}
