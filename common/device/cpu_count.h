/* How many CPUs this process is given: its affinity mask, and the CPU quota of its control group
 * and of all groups above it, whichever is least.
 *
 * A container with a quota of 2 CPUs on a host of 64 sees 64 in its mask; 64 threads would spend
 * their quota in a moment and then stand still together. Used at start, on any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum { BT_CPU_COUNT_TEXT_BYTES = 256, BT_CGROUP_PATH_BYTES = 512 };

struct bt_cpu_count {
    uint32_t n;                         /* to use: at least 1; a part of a CPU counts as one */
    uint32_t in_mask;                   /* that the process may run on */
    char text[BT_CPU_COUNT_TEXT_BYTES]; /* which bound applied, for the log */
};

/* root is put before /proc and /sys: "" but for tests. What cannot be read gives no bound; what is
 * read and not understood gives none either, and the text names it. */
void bt_cpu_count(const char *root, uint32_t in_mask, struct bt_cpu_count *out);

/* The same for this process, asked for its mask. */
void bt_cpu_count_here(struct bt_cpu_count *out);

/* ---- The files' forms ---- */

/* quota_us of CPU time in each period_us; quota_us 0: no bound. */
struct bt_cpu_quota {
    uint64_t quota_us, period_us;
};

/* The path of this process's group in the text of /proc/self/cgroup: the line "0::PATH" of version
 * 2, or that of version 1's controller "cpu". False where there is no such line, or its path does
 * not begin with "/", has a ".." in it (the group lies outside of what is visible) or is too long.
 */
bool bt_cgroup_find(const char *text, bool version_1, char path[BT_CGROUP_PATH_BYTES]);
/* cpu.max of version 2: "max 100000\n" or "150000 100000\n". */
bool bt_cgroup_parse_max(const char *text, struct bt_cpu_quota *out);
/* cpu.cfs_quota_us ("-1": no bound) and cpu.cfs_period_us of version 1. */
bool bt_cgroup_parse_cfs(const char *quota, const char *period, struct bt_cpu_quota *out);
