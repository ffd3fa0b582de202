/* Control group files as the start reads them: a list of groups, cpu.max, quota and period of
 * version 1, separated by NUL; what is taken is within its bounds. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"
#include "common/device/cpu_count.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct bt_cpu_quota *quota) {
    BT_ASSERT(quota->quota_us <= 1ull << 40);
    BT_ASSERT(quota->period_us >= 1 && quota->period_us <= 1 << 22);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 4);
    if (!text)
        return 0;
    if (size)
        memcpy(text, data, size);
    memset(text + size, 0, 4);
    const char *groups = text, *max = groups + strlen(groups) + 1;
    const char *end = text + size + 3; /* the last NUL */
    if (max > end)
        max = end;
    const char *quota = max + strlen(max) + 1 > end ? end : max + strlen(max) + 1;
    const char *period = quota + strlen(quota) + 1 > end ? end : quota + strlen(quota) + 1;
    char path[BT_CGROUP_PATH_BYTES];
    struct bt_cpu_quota found;
    for (int version_1 = 0; version_1 < 2; version_1++)
        if (bt_cgroup_find(groups, version_1, path))
            BT_ASSERT(path[0] == '/' && strlen(path) < sizeof path && !strstr(path, "/../"));
    if (bt_cgroup_parse_max(max, &found))
        check(&found);
    if (bt_cgroup_parse_cfs(quota, period, &found))
        check(&found);
    free(text);
    return 0;
}
