/* Parses a chat template into its tree; what is not implemented is refused by name and line. */
#pragma once
#include "common/text/jinja_node.h"

/* All of the tree is the arena's. BT_E_INVALID: malformed, BT_E_UNSUPPORTED: not implemented. */
bt_status bt_jinja_parse(struct bt_slice source, struct bt_arena *arena, struct bt_jnode **out,
                         struct bt_error *err);
