/* Reads the file of hashed API keys and compares what clients show with it. */
#include "router/api_keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "common/base/assert.h"
#include "common/base/file.h"

enum { FILE_BYTES_MAX = 1 << 20, FIELDS_MAX = 4 };

struct key {
    char name[BT_API_NAME_BYTES];
    uint8_t hash[BT_API_HASH_BYTES];
    uint8_t salt_i;
    bool is_operator;
};

struct bt_api_keys {
    char *path;
    struct key *keys;
    size_t n_keys;
    char salts[BT_API_SALTS_MAX][BT_API_SALT_BYTES];
    size_t n_salts;
};

bool bt_api_keys_is_word(const char *text, size_t n_bytes, size_t n_bytes_max) {
    if (n_bytes > n_bytes_max)
        return false;
    for (size_t i = 0; i < n_bytes; i++) {
        char c = text[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '.' || c == '-' || c == '_';
        if (!fine)
            return false;
    }
    return true;
}

bt_status bt_api_keys_hash(const char *salt, const char *key, size_t key_bytes,
                           uint8_t out[BT_API_HASH_BYTES]) {
    uint8_t text[BT_API_SALT_BYTES + BT_API_KEY_BYTES_MAX];
    size_t salt_bytes = strlen(salt);
    if (salt_bytes >= BT_API_SALT_BYTES || key_bytes > BT_API_KEY_BYTES_MAX)
        return BT_E_INVALID;
    memcpy(text, salt, salt_bytes);
    memcpy(text + salt_bytes, key, key_bytes);
    int done = EVP_Digest(text, salt_bytes + key_bytes, out, NULL, EVP_sha256(), NULL);
    OPENSSL_cleanse(text, sizeof text);
    return done == 1 ? BT_OK : BT_E_INTERNAL;
}

/* ---- the file ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool read_hash(const char *text, size_t n, uint8_t out[BT_API_HASH_BYTES]) {
    if (n != 2 * BT_API_HASH_BYTES)
        return false;
    for (size_t i = 0; i < BT_API_HASH_BYTES; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high * 16 + low);
    }
    return true;
}

struct field {
    const char *text;
    size_t n;
};

static size_t split(const char *line, size_t n, struct field fields[FIELDS_MAX + 1]) {
    size_t n_fields = 0;
    for (size_t from = 0; n_fields <= FIELDS_MAX;) {
        const char *colon = memchr(line + from, ':', n - from);
        size_t end = colon ? (size_t)(colon - line) : n;
        fields[n_fields++] = (struct field){line + from, end - from};
        if (!colon)
            break;
        from = end + 1;
    }
    return n_fields;
}

/* The index of a salt among those known, a new one included; BT_API_SALTS_MAX: no room. */
static size_t find_salt(struct bt_api_keys *keys, const struct field *salt) {
    size_t i = 0;
    for (; i < keys->n_salts; i++)
        if (strlen(keys->salts[i]) == salt->n && !memcmp(keys->salts[i], salt->text, salt->n))
            return i;
    if (i < BT_API_SALTS_MAX) {
        memcpy(keys->salts[i], salt->text, salt->n);
        keys->salts[i][salt->n] = 0;
        keys->n_salts++;
    }
    return i;
}

static bt_status read_line(struct bt_api_keys *keys, const char *line, size_t n, size_t number,
                           struct bt_error *err) {
    struct field fields[FIELDS_MAX + 1];
    const char *path = keys->path;
    for (size_t i = 0; i <= FIELDS_MAX; i++)
        fields[i] = (struct field){"", 0};
    size_t n_fields = split(line, n, fields);
    const struct field *name = &fields[0], *salt = &fields[2];
    struct key key = {0};
    if (n_fields < 2 || n_fields > FIELDS_MAX)
        return bt_fail(err, BT_E_INVALID,
                       "%.100s:%zu: a line must be NAME:SHA256[:SALT[:operator]]", path, number);
    if (!name->n || !bt_api_keys_is_word(name->text, name->n, BT_API_NAME_BYTES - 1))
        return bt_fail(err, BT_E_INVALID,
                       "%.100s:%zu: a name must be 1 to %d letters, digits, '.', '-' or '_'", path,
                       number, BT_API_NAME_BYTES - 1);
    if (!read_hash(fields[1].text, fields[1].n, key.hash))
        return bt_fail(err, BT_E_INVALID, "%.100s:%zu: a SHA-256 must be %d hex digits", path,
                       number, 2 * BT_API_HASH_BYTES);
    if (!bt_api_keys_is_word(salt->text, salt->n, BT_API_SALT_BYTES - 1))
        return bt_fail(err, BT_E_INVALID,
                       "%.100s:%zu: a salt must be at most %d letters, digits, '.', '-' or '_'",
                       path, number, BT_API_SALT_BYTES - 1);
    if (n_fields == FIELDS_MAX && fields[3].n) {
        key.is_operator = fields[3].n == 8 && !memcmp(fields[3].text, "operator", 8);
        if (!key.is_operator)
            return bt_fail(err, BT_E_INVALID,
                           "%.100s:%zu: the fourth field may only be \"operator\"", path, number);
    }
    if (keys->n_keys == BT_API_KEYS_MAX)
        return bt_fail(err, BT_E_INVALID, "%.100s:%zu: more than %d keys", path, number,
                       BT_API_KEYS_MAX);
    size_t salt_i = find_salt(keys, salt);
    if (salt_i == BT_API_SALTS_MAX)
        return bt_fail(err, BT_E_INVALID,
                       "%.100s:%zu: more than %d different salts; keys may share one", path, number,
                       BT_API_SALTS_MAX);
    key.salt_i = (uint8_t)salt_i;
    memcpy(key.name, name->text, name->n);
    if (keys->n_keys % 64 == 0) {
        struct key *grown = realloc(keys->keys, (keys->n_keys + 64) * sizeof *grown);
        if (!grown)
            return bt_fail(err, BT_E_NO_MEMORY, "out of memory for API keys");
        keys->keys = grown;
    }
    keys->keys[keys->n_keys++] = key;
    return BT_OK;
}

static bt_status read_lines(struct bt_api_keys *keys, const char *text, size_t n_bytes,
                            struct bt_error *err) {
    size_t number = 0;
    for (size_t from = 0; from < n_bytes;) {
        const char *newline = memchr(text + from, '\n', n_bytes - from);
        size_t end = newline ? (size_t)(newline - text) : n_bytes, n = end - from;
        const char *line = text + from;
        number++;
        from = end + 1;
        while (n && (line[n - 1] == '\r' || line[n - 1] == ' ' || line[n - 1] == '\t'))
            n--;
        if (n && line[0] != '#')
            BT_TRY(read_line(keys, line, n, number, err));
    }
    /* An empty file is far more often a file half written than the wish to shut everybody out. */
    if (!keys->n_keys)
        return bt_fail(err, BT_E_INVALID, "%.100s: there is no key in it", keys->path);
    return BT_OK;
}

bt_status bt_api_keys_parse(const char *path, const char *text, size_t n_bytes,
                            struct bt_api_keys **out, struct bt_error *err) {
    struct bt_api_keys *keys = calloc(1, sizeof *keys);
    if (keys)
        keys->path = strdup(path);
    bt_status status = keys && keys->path
                           ? read_lines(keys, text, n_bytes, err)
                           : bt_fail(err, BT_E_NO_MEMORY, "out of memory for API keys");
    if (status < 0)
        bt_api_keys_close(keys);
    else
        *out = keys;
    return status;
}

bt_status bt_api_keys_open(const char *path, struct bt_api_keys **out, struct bt_error *err) {
    char *text;
    size_t n;
    BT_TRY(bt_file_read("api-key-file", path, FILE_BYTES_MAX, &text, &n, err));
    bt_status status = bt_api_keys_parse(path, text, n, out, err);
    free(text);
    return status;
}

bt_status bt_api_keys_reload(struct bt_api_keys *keys, struct bt_error *err) {
    struct bt_api_keys *fresh = NULL;
    BT_TRY(bt_api_keys_open(keys->path, &fresh, err));
    BT_ASSERT(fresh);
    struct bt_api_keys old = *keys;
    *keys = *fresh;
    *fresh = old;
    bt_api_keys_close(fresh);
    return BT_OK;
}

void bt_api_keys_close(struct bt_api_keys *keys) {
    if (!keys)
        return;
    free(keys->keys);
    free(keys->path);
    free(keys);
}

size_t bt_api_keys_count(const struct bt_api_keys *keys) {
    return keys->n_keys;
}

const char *bt_api_keys_salt(const struct bt_api_keys *keys) {
    return keys->salts[keys->n_salts - 1];
}

/* ---- a client ---- */

/* The key that was shown, or NULL. */
static const char *bearer(const char *authorization, size_t *n_bytes) {
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0)
        return NULL;
    const char *key = authorization + 7 + strspn(authorization + 7, " ");
    *n_bytes = strlen(key);
    return *n_bytes && *n_bytes <= BT_API_KEY_BYTES_MAX ? key : NULL;
}

/* The line that the key belongs to, or NULL. All are compared. */
static const struct key *find(const struct bt_api_keys *keys, const char *shown, size_t n_bytes) {
    uint8_t hashes[BT_API_SALTS_MAX][BT_API_HASH_BYTES];
    const struct key *found = NULL;
    for (size_t i = 0; i < keys->n_salts; i++)
        if (bt_api_keys_hash(keys->salts[i], shown, n_bytes, hashes[i]) != BT_OK)
            return NULL;
    for (size_t i = 0; i < keys->n_keys; i++) {
        const struct key *key = &keys->keys[i];
        if (CRYPTO_memcmp(hashes[key->salt_i], key->hash, BT_API_HASH_BYTES) == 0)
            found = key;
    }
    return found;
}

bt_status bt_api_keys_check(const struct bt_api_keys *keys, const struct bt_api_caller *caller,
                            enum bt_api_right right, char name[BT_API_NAME_BYTES],
                            struct bt_error *err) {
    name[0] = 0;
    if (!keys)
        return BT_OK;
    size_t n_bytes = 0;
    const char *shown = bearer(caller->authorization, &n_bytes);
    const struct key *key = shown ? find(keys, shown, n_bytes) : NULL;
    if (key)
        memcpy(name, key->name, BT_API_NAME_BYTES);
    if (right == BT_API_OPEN || (right == BT_API_OPERATOR && caller->is_local) ||
        (key && (right == BT_API_CLIENT || key->is_operator)))
        return BT_OK;
    if (key)
        return bt_fail(err, BT_E_FORBIDDEN,
                       "The key \"%s\" may not see this page; an operator's key may.", key->name);
    if (shown)
        return bt_fail(err, BT_E_UNAUTHENTICATED, "Incorrect API key provided.");
    return bt_fail(err, BT_E_UNAUTHENTICATED,
                   "You didn't provide an API key. Give it in an Authorization header using "
                   "Bearer auth (Authorization: Bearer YOUR_KEY).");
}
