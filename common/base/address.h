/* Reads and writes "host:port", and says whether such an address stays on this machine. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/base/status.h"

struct bt_address {
    char host[BT_ADDRESS_BYTES]; /* a name, an IPv4 address, or an IPv6 address without brackets */
    uint16_t port;               /* 0: chosen by the system (to listen only) */
};

/* "host:port" or "[v6]:port". Refuses (BT_E_INVALID, with a sentence) an empty host, a host of
 * other characters than letters, digits, '.', '-', '_' (v6: hex digits, ':', '.', '%'), a port that
 * is not 0 to 65535, and what does not fit BT_ADDRESS_BYTES. */
bt_status bt_address_parse(const char *text, struct bt_address *out, struct bt_error *err);
/* The inverse; always fits what parse accepted. */
void bt_address_format(const struct bt_address *address, char out[BT_ADDRESS_BYTES]);
/* 127.0.0.0/8, ::1 and "localhost". Other names are never looked up here: not loopback. */
bool bt_address_is_loopback(const struct bt_address *address);
