/* The kinds of KV link, by name. */
#include "common/kv/kv_link.h"

#include <string.h>

#include "common/kv/kv_link_local.h"
#include "common/kv/kv_link_tcp.h"

const struct bt_kv_link_ops *bt_kv_link_find(const char *name) {
    static const struct bt_kv_link_ops *const kinds[] = {&bt_kv_link_tcp, &bt_kv_link_local};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(kinds[i]->name, name))
            return kinds[i];
    return NULL;
}
