/* Counts the CPUs that this process is given, from its mask and its control groups' quotas. */
#include "common/device/cpu_count.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"

enum {
    GROUPS_FILE_BYTES = 64 << 10, /* of /proc/self/cgroup */
    VALUE_FILE_BYTES = 128,
    FILE_PATH_BYTES = 2 * BT_CGROUP_PATH_BYTES,
};

/* The products of a quota and a period stay within 64 bits; the kernel's own bounds are tighter. */
static const uint64_t QUOTA_US_MAX = 1ull << 40, PERIOD_US_MAX = 1ull << 22;

/* ---- The files' forms ---- */

/* Reads 1 to 18 digits at *at and moves behind them. */
static bool read_number(const char **at, uint64_t *out) {
    const char *start = *at;
    uint64_t value = 0;
    for (; **at >= '0' && **at <= '9'; (*at)++) {
        if (*at - start == 18)
            return false;
        value = value * 10 + (uint64_t)(**at - '0');
    }
    *out = value;
    return *at != start;
}

/* Nothing more but one line's end. */
static bool at_end(const char *at) {
    return at[0] == 0 || (at[0] == '\n' && at[1] == 0);
}

static bool is_in_bounds(const struct bt_cpu_quota *quota) {
    return quota->quota_us <= QUOTA_US_MAX && quota->period_us >= 1 &&
           quota->period_us <= PERIOD_US_MAX;
}

bool bt_cgroup_parse_max(const char *text, struct bt_cpu_quota *out) {
    *out = (struct bt_cpu_quota){0};
    bool bounded = strncmp(text, "max ", 4) != 0;
    if (!bounded)
        text += 3;
    else if (!read_number(&text, &out->quota_us) || !out->quota_us)
        return false;
    return *text++ == ' ' && read_number(&text, &out->period_us) && at_end(text) &&
           is_in_bounds(out);
}

bool bt_cgroup_parse_cfs(const char *quota, const char *period, struct bt_cpu_quota *out) {
    *out = (struct bt_cpu_quota){0};
    if (!read_number(&period, &out->period_us) || !at_end(period))
        return false;
    if (!strncmp(quota, "-1", 2))
        return at_end(quota + 2) && is_in_bounds(out);
    return read_number(&quota, &out->quota_us) && out->quota_us && at_end(quota) &&
           is_in_bounds(out);
}

/* Whether the list "cpu,cpuacct" of n bytes has the word "cpu". */
static bool has_cpu(const char *list, size_t n) {
    while (n) {
        const char *comma = memchr(list, ',', n);
        size_t word = comma ? (size_t)(comma - list) : n;
        if (word == 3 && !memcmp(list, "cpu", 3))
            return true;
        n -= comma ? word + 1 : n;
        list += word + 1;
    }
    return false;
}

static bool take_path(const char *path, size_t n, char out[BT_CGROUP_PATH_BYTES]) {
    if (!n || path[0] != '/' || n >= BT_CGROUP_PATH_BYTES)
        return false;
    memcpy(out, path, n);
    out[n] = 0;
    for (const char *at = out; (at = strstr(at, "/..")); at++)
        if (at[3] == '/' || !at[3])
            return false;
    return true;
}

bool bt_cgroup_find(const char *text, bool version_1, char path[BT_CGROUP_PATH_BYTES]) {
    while (*text) {
        size_t n = strcspn(text, "\n");
        const char *list = memchr(text, ':', n);
        const char *colon = list ? memchr(list + 1, ':', n - (size_t)(list + 1 - text)) : NULL;
        if (colon) {
            size_t list_bytes = (size_t)(colon - list - 1);
            bool wanted = version_1 ? has_cpu(list + 1, list_bytes)
                                    : list == text + 1 && *text == '0' && !list_bytes;
            if (wanted)
                return take_path(colon + 1, n - (size_t)(colon + 1 - text), path);
        }
        text += n + (text[n] == '\n');
    }
    return false;
}

/* ---- The groups of this process ---- */

struct search {
    const char *root;
    bool found; /* a bound */
    struct bt_cpu_quota least;
    char group[BT_CGROUP_PATH_BYTES];   /* that has it */
    char unclear[BT_CGROUP_PATH_BYTES]; /* a group whose files were not understood, or "" */
};

static char *read_value(const struct search *s, const char *folder, const char *group,
                        const char *name) {
    char path[FILE_PATH_BYTES], *text = NULL;
    struct bt_error ignored; /* a group without a quota has no file */
    size_t n_bytes;
    int n = snprintf(path, sizeof path, "%s/sys/fs/cgroup%s%s/%s", s->root, folder, group, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return NULL;
    bt_file_read("a control group's file", path, VALUE_FILE_BYTES, &text, &n_bytes, &ignored);
    return text;
}

/* Notes the bound of one group, if it has one and none before was less. */
static void look_at(struct search *s, bool version_1, const char *folder, const char *group) {
    struct bt_cpu_quota quota = {0};
    char *first = read_value(s, folder, group, version_1 ? "cpu.cfs_quota_us" : "cpu.max");
    char *second = version_1 ? read_value(s, folder, group, "cpu.cfs_period_us") : NULL;
    bool known = first && (!version_1 || second);
    if (known && !(version_1 ? bt_cgroup_parse_cfs(first, second, &quota)
                             : bt_cgroup_parse_max(first, &quota)))
        snprintf(s->unclear, sizeof s->unclear, "%s", *group ? group : "/");
    else if (known && quota.quota_us &&
             (!s->found ||
              quota.quota_us * s->least.period_us < s->least.quota_us * quota.period_us)) {
        s->found = true;
        s->least = quota;
        snprintf(s->group, sizeof s->group, "%s", *group ? group : "/");
    }
    free(first);
    free(second);
}

/* From the process's group up to the root of what is visible. In a container the path may be the
 * host's, of which only the root is there; groups that are not there are passed over. */
static void look_upwards(struct search *s, bool version_1, const char *folder, const char *path) {
    char group[BT_CGROUP_PATH_BYTES];
    snprintf(group, sizeof group, "%s", strcmp(path, "/") ? path : "");
    for (;;) {
        look_at(s, version_1, folder, group);
        char *slash = strrchr(group, '/');
        if (!slash)
            return;
        *slash = 0;
    }
}

static void search_groups(struct search *s) {
    char file[FILE_PATH_BYTES], path[BT_CGROUP_PATH_BYTES], *text = NULL;
    struct bt_error ignored; /* no control groups: no bound */
    size_t n_bytes;
    int n = snprintf(file, sizeof file, "%s/proc/self/cgroup", s->root);
    if (n < 0 || (size_t)n >= sizeof file ||
        bt_file_read("the list of control groups", file, GROUPS_FILE_BYTES, &text, &n_bytes,
                     &ignored) < 0)
        return;
    look_upwards(s, false, "", bt_cgroup_find(text, false, path) ? path : "/");
    if (bt_cgroup_find(text, true, path))
        look_upwards(s, true, "/cpu", path);
    free(text);
}

void bt_cpu_count(const char *root, uint32_t in_mask, struct bt_cpu_count *out) {
    struct search s = {.root = root};
    *out = (struct bt_cpu_count){.n = in_mask ? in_mask : 1, .in_mask = in_mask};
    search_groups(&s);
    char unclear[96] = "";
    if (s.unclear[0])
        snprintf(unclear, sizeof unclear, "; the CPU quota of %.40s is not understood", s.unclear);
    if (!s.found) {
        snprintf(out->text, sizeof out->text,
                 "%" PRIu32 " CPUs in this process's mask, no CPU quota%s", in_mask, unclear);
        return;
    }
    uint64_t whole = (s.least.quota_us + s.least.period_us - 1) / s.least.period_us;
    bool bounds = whole < out->n;
    if (bounds)
        out->n = (uint32_t)whole;
    snprintf(out->text, sizeof out->text,
             "%" PRIu32 " CPUs in this process's mask, control group %.60s gives it %.2f: %s%s",
             in_mask, s.group, (double)s.least.quota_us / (double)s.least.period_us,
             bounds ? "the quota counts" : "the mask counts", unclear);
}

void bt_cpu_count_here(struct bt_cpu_count *out) {
    cpu_set_t set;
    bool known = sched_getaffinity(0, sizeof set, &set) == 0;
    bt_cpu_count("", known ? (uint32_t)CPU_COUNT(&set) : 1, out);
}
