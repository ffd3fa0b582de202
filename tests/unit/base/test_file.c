/* Files read whole: to the bound and no byte further, and each refusal in a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/file.h"

static void make_file(char *path, size_t n) {
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++)
        fputc((int)('a' + i % 23), file);
    assert_int_equal(fclose(file), 0);
}

static void test_up_to_the_bound(void **state) {
    (void)state;
    /* Around the buffer's first size and its double. */
    static const size_t sizes[] = {0, 1, 16383, 16384, 16385, 32768, 40000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char path[] = "/tmp/baton-file-XXXXXX", *text;
        size_t n;
        struct bt_error err;
        make_file(path, sizes[i]);
        assert_int_equal(bt_file_read("trace", path, sizes[i], &text, &n, &err), BT_OK);
        assert_int_equal(n, sizes[i]);
        assert_int_equal(strlen(text), n);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(text[k], 'a' + k % 23);
        free(text);
        if (sizes[i]) {
            assert_int_equal(bt_file_read("trace", path, sizes[i] - 1, &text, &n, &err),
                             BT_E_INVALID);
            assert_null(text);
            assert_non_null(strstr(err.text, "trace \"/tmp/baton-file-"));
            assert_non_null(strstr(err.text, "has more than"));
        }
        unlink(path);
    }
}

static void test_what_cannot_be_read(void **state) {
    (void)state;
    char *text;
    size_t n;
    struct bt_error err;
    assert_int_equal(bt_file_read("trace", "/nothing-there", 10, &text, &n, &err), BT_E_IO);
    assert_string_equal(err.text,
                        "trace \"/nothing-there\" cannot be opened: No such file or directory");
    assert_int_equal(bt_file_read("trace", "/tmp", 10, &text, &n, &err), BT_E_IO);
    assert_string_equal(err.text, "trace \"/tmp\" cannot be read: Is a directory");
    assert_null(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_to_the_bound),
        cmocka_unit_test(test_what_cannot_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
