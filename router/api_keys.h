/* API keys: who may ask what, by both public doors.
 *
 * The file has one key per line, `NAME:HASH[:SALT[:operator]]`: a name (letters, digits, '.', '-',
 * '_'; it stands in logs), the SHA-256 of SALT followed by the key in hex, the salt (the same
 * characters, may be empty), and the word `operator` for keys that may see /metrics and /debug.
 * Blank lines and lines that begin with '#' are skipped. `baton keys` makes such lines.
 *
 * The key itself is in no file, log or answer. What a client shows is hashed once for each salt in
 * the file and compared with every line, in constant time and without stopping at the first that
 * fits, so the time tells nothing about which keys exist. Loop thread only. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    BT_API_KEYS_MAX = 4096,
    BT_API_SALTS_MAX = 16, /* different ones in one file: each costs one hash per request */
    BT_API_NAME_BYTES = 64,
    BT_API_SALT_BYTES = 64,
    BT_API_KEY_BYTES_MAX = 512, /* a longer one is refused unread */
    BT_API_HASH_BYTES = 32,
};

/* What an endpoint asks for. */
enum bt_api_right {
    BT_API_OPEN,     /* nothing */
    BT_API_CLIENT,   /* any key of the file */
    BT_API_OPERATOR, /* an operator's key, or a connection from this machine */
};

struct bt_api_keys;

/* What is known about who asks. */
struct bt_api_caller {
    const char *authorization; /* the header's value, "Bearer KEY"; NULL: none */
    bool is_local;             /* the connection comes from this machine, and no proxy is in it */
};

/* Reads the file. BT_E_IO, BT_E_INVALID ("FILE:LINE: what"), BT_E_NO_MEMORY. */
bt_status bt_api_keys_open(const char *path, struct bt_api_keys **out, struct bt_error *err);
/* The same from text; `path` stands in errors. */
bt_status bt_api_keys_parse(const char *path, const char *text, size_t n_bytes,
                            struct bt_api_keys **out, struct bt_error *err);
/* Reads the file again; after a failure the old keys hold. */
bt_status bt_api_keys_reload(struct bt_api_keys *keys, struct bt_error *err);
void bt_api_keys_close(struct bt_api_keys *keys); /* NULL is accepted */
size_t bt_api_keys_count(const struct bt_api_keys *keys);
/* A salt that is in use, for a further key: a new one would cost each request one hash more. */
const char *bt_api_keys_salt(const struct bt_api_keys *keys);

/* BT_OK, and the key's name in `name` ("" where no key of the file was shown), or
 * BT_E_UNAUTHENTICATED or BT_E_FORBIDDEN with a sentence for the client. keys = NULL: no file was
 * given, everything is allowed. */
bt_status bt_api_keys_check(const struct bt_api_keys *keys, const struct bt_api_caller *caller,
                            enum bt_api_right right, char name[BT_API_NAME_BYTES],
                            struct bt_error *err);

/* SHA-256 of salt and key, one after the other. */
bt_status bt_api_keys_hash(const char *salt, const char *key, size_t key_bytes,
                           uint8_t out[BT_API_HASH_BYTES]);
/* A name or salt that may stand in the file. */
bool bt_api_keys_is_word(const char *text, size_t n_bytes, size_t n_bytes_max);
