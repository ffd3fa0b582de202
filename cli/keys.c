/* `baton keys add NAME`: draws an API key, adds its hash to the key file, prints the key once. */
#include "cli/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/config.h"
#include "router/api_keys.h"

enum { KEY_RANDOM_BYTES = 32, SALT_RANDOM_BYTES = 9 };

/* Random bytes as letters of which no shell or header thinks anything: 6 bits each. */
static bt_status draw(char *out, size_t n_random, struct bt_error *err) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned char bytes[KEY_RANDOM_BYTES];
    size_t n = n_random * 8 / 6;
    if (getrandom(bytes, n_random, 0) != (ssize_t)n_random)
        return bt_fail(err, BT_E_IO, "no random bytes: %s", strerror(errno));
    for (size_t i = 0; i < n; i++) {
        size_t bit = i * 6;
        unsigned pair = bytes[bit / 8] | (bit / 8 + 1 < n_random ? bytes[bit / 8 + 1] << 8 : 0);
        out[i] = letters[pair >> bit % 8 & 63];
    }
    out[n] = 0;
    return BT_OK;
}

/* line begins with a line end, for a file whose last line has none. */
static bt_status append_line(const char *path, const char *line, struct bt_error *err) {
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return bt_fail(err, BT_E_IO, "%.100s: %s", path, strerror(errno));
    char last = '\n';
    off_t end = lseek(fd, 0, SEEK_END);
    if (end <= 0 || (pread(fd, &last, 1, end - 1) == 1 && last == '\n'))
        line++;
    /* One write, so that a router that reads the file meanwhile sees all of the line or nothing. */
    ssize_t n = write(fd, line, strlen(line));
    bool whole = n == (ssize_t)strlen(line);
    if (close(fd) != 0 || !whole)
        return bt_fail(err, BT_E_IO, "%.100s: the line could not be written", path);
    return BT_OK;
}

static bt_status add(const char *name, const char *path, bool is_operator, struct bt_error *err) {
    char key[4 + KEY_RANDOM_BYTES * 8 / 6 + 1] = "bt-", salt[BT_API_SALT_BYTES];
    char hex[2 * BT_API_HASH_BYTES + 1], line[512];
    uint8_t hash[BT_API_HASH_BYTES];
    if (!*name || !bt_api_keys_is_word(name, strlen(name), BT_API_NAME_BYTES - 1))
        return bt_fail(err, BT_E_INVALID,
                       "name \"%.80s\" must be 1 to %d letters, digits, '.', '-' or '_'", name,
                       BT_API_NAME_BYTES - 1);
    struct bt_api_keys *keys = NULL;
    struct stat stat_of;
    if (stat(path, &stat_of) == 0 && stat_of.st_size)
        BT_TRY(bt_api_keys_open(path, &keys, err));
    const char *shared = keys ? bt_api_keys_salt(keys) : NULL;
    bt_status status = draw(key + 3, KEY_RANDOM_BYTES, err);
    if (status == BT_OK && shared)
        snprintf(salt, sizeof salt, "%s", shared);
    else if (status == BT_OK)
        status = draw(salt, SALT_RANDOM_BYTES, err);
    bt_api_keys_close(keys);
    BT_TRY(status);
    if (bt_api_keys_hash(salt, key, strlen(key), hash) != BT_OK)
        return bt_fail(err, BT_E_INTERNAL, "SHA-256 failed");
    for (size_t i = 0; i < sizeof hash; i++)
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    snprintf(line, sizeof line, "\n%s:%s:%s%s\n", name, hex, salt, is_operator ? ":operator" : "");
    BT_TRY(append_line(path, line, err));
    printf("%s\n", key);
    return BT_OK;
}

int bt_keys_main(int argc, char **argv) {
    const char *path = "", *words[2] = {"", ""};
    bool is_operator = false;
    size_t n_words = 0;
    const struct bt_option options[] = {
        {"file", BT_OPTION_STRING, &path, .argument = "FILE", .required = true,
         .help = "The key file; made where it is not there."},
        {"operator", BT_OPTION_FLAG, &is_operator, "no",
         .help = "A key that may see /metrics and /debug too."},
    };
    const struct bt_command command = {
        .name = "keys",
        .usage = "baton keys add NAME --file FILE [--operator]",
        .summary =
            "Draws an API key, prints it, and adds its name and salted hash to the file that\n"
            "`baton router --api-key-file` reads; the key itself is kept nowhere. To take a key "
            "away, delete its line.\nA router reads the file again on SIGHUP.\n"
            "A line is NAME:HASH[:SALT[:operator]], HASH = sha256(SALT KEY): for a key of your "
            "own\n"
            "  printf '%s%s' SALT KEY | sha256sum",
        .example = "  baton keys add alice --file keys\n"
                   "  curl -H \"Authorization: Bearer $KEY\" http://localhost:8000/v1/models",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .words = words,
        .n_words_max = 2,
        .n_words = &n_words,
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status == BT_OK && (n_words != 2 || strcmp(words[0], "add") != 0))
        status = bt_fail(&err, BT_E_INVALID, "give: baton keys add NAME --file FILE");
    if (status == BT_OK)
        status = add(words[1], path, is_operator, &err);
    if (status == BT_OK)
        return 0;
    fprintf(stderr, "baton keys: %s\n", err.text);
    return 2;
}
