/* Parses and formats "host:port" and "[v6]:port". */
#include "common/base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define ALNUM "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
static const char name_characters[] = ALNUM ".-_";
static const char v6_characters[] = "0123456789abcdefABCDEF:.%";

static bt_status parse_port(const char *text, const char *digits, uint16_t *port,
                            struct bt_error *err) {
    size_t n = strlen(digits);
    uint32_t value = 0;
    bool valid = n >= 1 && n <= 5 && strspn(digits, "0123456789") == n;
    for (size_t i = 0; valid && i < n; i++)
        value = value * 10 + (uint32_t)(digits[i] - '0');
    if (!valid || value > 65535)
        return bt_fail(err, BT_E_INVALID,
                       "address \"%s\" has port \"%s\", must be a number from 0 to 65535", text,
                       digits);
    *port = (uint16_t)value;
    return BT_OK;
}

bt_status bt_address_parse(const char *text, struct bt_address *out, struct bt_error *err) {
    size_t length = strlen(text);
    if (length >= BT_ADDRESS_BYTES)
        return bt_fail(err, BT_E_INVALID,
                       "address \"%.32s...\" has %zu bytes, must have at most %d", text, length,
                       BT_ADDRESS_BYTES - 1);
    bool v6 = text[0] == '[';
    const char *host = text + v6;
    const char *end = v6 ? strchr(host, ']') : strrchr(host, ':');
    const char *colon = v6 && end ? end + 1 : end;
    if (!end || *colon != ':')
        return bt_fail(err, BT_E_INVALID, "address \"%s\" must be host:port or [v6]:port", text);
    size_t n = (size_t)(end - host);
    if (n == 0)
        return bt_fail(err, BT_E_INVALID, "address \"%s\" has no host, must be host:port", text);
    size_t legal = strspn(host, v6 ? v6_characters : name_characters);
    if (legal < n && host[legal] == ':')
        return bt_fail(err, BT_E_INVALID,
                       "address \"%s\" has more than one ':', an IPv6 address must stand in "
                       "brackets: [v6]:port",
                       text);
    if (legal < n)
        return bt_fail(err, BT_E_INVALID,
                       "address \"%s\" has the byte 0x%02x in its host, must be %s", text,
                       (unsigned char)host[legal],
                       v6 ? "hex digits, ':', '.', '%'" : "letters, digits, '.', '-', '_'");
    if (v6 && !memchr(host, ':', n))
        return bt_fail(err, BT_E_INVALID, "address \"%s\" has no IPv6 address in its brackets",
                       text);
    struct bt_address parsed = {.port = 0};
    BT_TRY(parse_port(text, colon + 1, &parsed.port, err));
    memcpy(parsed.host, host, n);
    *out = parsed;
    return BT_OK;
}

void bt_address_format(const struct bt_address *address, char out[BT_ADDRESS_BYTES]) {
    bool v6 = strchr(address->host, ':') != NULL;
    snprintf(out, BT_ADDRESS_BYTES, v6 ? "[%s]:%u" : "%s:%u", address->host, address->port);
}

bool bt_address_is_loopback(const struct bt_address *address) {
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, address->host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, address->host, &v6) == 1)
        return IN6_IS_ADDR_LOOPBACK(&v6);
    return strcasecmp(address->host, "localhost") == 0;
}
