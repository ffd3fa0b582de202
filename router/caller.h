/* Who asked, as logs and records may say it: never the key itself. */
#pragma once

enum { BT_CALLER_KEY_BYTES = 64, BT_CALLER_ID_BYTES = 65 };

struct bt_caller {
    char key[BT_CALLER_KEY_BYTES]; /* the name of the API key; "" without one */
    char id[BT_CALLER_ID_BYTES];   /* the X-Request-Id that the client gave, printable; or "" */
};
