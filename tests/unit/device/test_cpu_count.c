/* CPUs from mask and quotas: control group files of both versions in a folder that stands for the
 * system's root, and what is in none of their forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/device/cpu_count.h"

static char root[64];

static void write_file(const char *path, const char *text) {
    char whole[512];
    int n = snprintf(whole, sizeof whole, "%s%s", root, path);
    assert_true(n > 0 && (size_t)n < sizeof whole);
    for (char *slash = whole + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(whole, 0700);
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int make_root(void **state) {
    (void)state;
    strcpy(root, "/tmp/baton_cpu_count_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command) == 0 ? 0 : -1;
}

static uint32_t count(uint32_t in_mask, const char *says) {
    struct bt_cpu_count found;
    bt_cpu_count(root, in_mask, &found);
    if (!strstr(found.text, says))
        fail_msg("\"%s\", expected \"%s\"", found.text, says);
    assert_int_equal(found.in_mask, in_mask);
    return found.n;
}

static void test_no_groups(void **state) {
    (void)state;
    assert_int_equal(count(5, "5 CPUs in this process's mask, no CPU quota"), 5);
    assert_int_equal(count(0, "0 CPUs in this process's mask"), 1);
}

static void test_version_2(void **state) {
    (void)state;
    write_file("/proc/self/cgroup", "0::/kubepods/pod1/app\n");
    assert_int_equal(count(8, "no CPU quota"), 8);
    write_file("/sys/fs/cgroup/kubepods/pod1/app/cpu.max", "max 100000\n");
    assert_int_equal(count(8, "no CPU quota"), 8);
    write_file("/sys/fs/cgroup/kubepods/pod1/app/cpu.max", "250000 100000\n");
    assert_int_equal(count(8, "/kubepods/pod1/app gives it 2.50: the quota counts"), 3);
    assert_int_equal(count(2, "the mask counts"), 2);
    /* An ancestor's is less; the group between has no file at all. */
    write_file("/sys/fs/cgroup/kubepods/cpu.max", "50000 100000\n");
    assert_int_equal(count(8, "group /kubepods gives it 0.50"), 1);
    /* The same CPUs with another period, and more of them. */
    write_file("/sys/fs/cgroup/kubepods/cpu.max", "600000 200000\n");
    assert_int_equal(count(8, "/kubepods/pod1/app gives it 2.50"), 3);
}

static void test_a_container_that_sees_only_its_own_group(void **state) {
    (void)state;
    write_file("/proc/self/cgroup", "0::/\n");
    write_file("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    assert_int_equal(count(64, "group / gives it 2.00"), 2);
    /* The group lies outside of what is visible, and the root's bound still holds. */
    write_file("/proc/self/cgroup", "0::/../../other\n");
    assert_int_equal(count(64, "group / gives it 2.00"), 2);
}

static void test_version_1(void **state) {
    (void)state;
    write_file("/proc/self/cgroup",
               "9:cpuset:/set\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/x\n0::/\n");
    write_file("/sys/fs/cgroup/cpu/docker/0123/cpu.cfs_quota_us", "-1\n");
    write_file("/sys/fs/cgroup/cpu/docker/0123/cpu.cfs_period_us", "100000\n");
    assert_int_equal(count(16, "no CPU quota"), 16);
    write_file("/sys/fs/cgroup/cpu/docker/0123/cpu.cfs_quota_us", "400000\n");
    assert_int_equal(count(16, "/docker/0123 gives it 4.00"), 4);
    /* The path is the host's; the container's own group is mounted as the root. */
    write_file("/proc/self/cgroup", "4:cpuacct,cpu:/docker/4567\n");
    write_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n");
    write_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000\n");
    assert_int_equal(count(16, "group / gives it 3.00"), 3);
}

static void test_what_is_not_understood_is_named(void **state) {
    (void)state;
    write_file("/proc/self/cgroup", "0::/a/b\n");
    write_file("/sys/fs/cgroup/a/b/cpu.max", "a lot\n");
    assert_int_equal(count(4, "no CPU quota; the CPU quota of /a/b is not understood"), 4);
    write_file("/sys/fs/cgroup/a/cpu.max", "100000 100000\n");
    assert_int_equal(count(4, "the quota counts; the CPU quota of /a/b is not understood"), 1);
}

static void test_forms_of_values(void **state) {
    (void)state;
    struct bt_cpu_quota q;
    static const char *const bad[] = {"",
                                      "max",
                                      "max ",
                                      "max 0",
                                      "100000",
                                      "100000 ",
                                      " 1 1",
                                      "1  1",
                                      "0 100000",
                                      "-1 100000",
                                      "1 1 1",
                                      "1 100000\n\n",
                                      "1 100000x",
                                      "1 99999999",
                                      "9999999999999 1",
                                      "1 1000000000000000000000",
                                      "max100000",
                                      "maximum 1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (bt_cgroup_parse_max(bad[i], &q))
            fail_msg("cpu.max \"%s\" was taken", bad[i]);
    assert_true(bt_cgroup_parse_max("max 100000\n", &q));
    assert_int_equal(q.quota_us, 0);
    assert_true(bt_cgroup_parse_max("1 1", &q));
    assert_true(q.quota_us == 1 && q.period_us == 1);
    assert_true(bt_cgroup_parse_cfs("-1\n", "100000\n", &q));
    assert_int_equal(q.quota_us, 0);
    assert_false(bt_cgroup_parse_cfs("-12", "100000", &q));
    assert_false(bt_cgroup_parse_cfs("0", "100000", &q));
    assert_false(bt_cgroup_parse_cfs("5000", "", &q));
    assert_false(bt_cgroup_parse_cfs("5000 1", "100000", &q));
}

static void test_forms_of_the_list(void **state) {
    (void)state;
    char path[BT_CGROUP_PATH_BYTES], long_path[BT_CGROUP_PATH_BYTES + 8];
    assert_true(bt_cgroup_find("0::/a..b/..c\n", false, path));
    assert_string_equal(path, "/a..b/..c");
    static const char *const none[] = {"",         "\n",       "0::",
                                       "0::a",     "10::/a",   "0:/a",
                                       "0::/a/..", "0::/../a", "1:cpuset:/a\n2:xcpu:/b",
                                       ":::",      "0:"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        assert_false(bt_cgroup_find(none[i], false, path));
        assert_false(bt_cgroup_find(none[i], true, path));
    }
    assert_true(bt_cgroup_find("3:cpuset,cpu:/b:c", true, path));
    assert_string_equal(path, "/b:c");
    memset(long_path, 'x', sizeof long_path);
    memcpy(long_path, "0::/", 4);
    long_path[sizeof long_path - 1] = 0; /* the path: 4 + 512 + 8 - 1 - 4 + 1 bytes, too long */
    assert_false(bt_cgroup_find(long_path, false, path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_groups, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_version_2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_a_container_that_sees_only_its_own_group, make_root,
                                        remove_root),
        cmocka_unit_test_setup_teardown(test_version_1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_what_is_not_understood_is_named, make_root,
                                        remove_root),
        cmocka_unit_test(test_forms_of_values),
        cmocka_unit_test(test_forms_of_the_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
