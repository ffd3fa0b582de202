/* `baton certs DIR`: a certificate authority of one's own and certificates for each role. */
#include "cli/certs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/cert_maker.h"
#include "common/base/config.h"
#include "common/base/file.h"
#include "common/base/tls.h"

enum {
    PATH_BYTES = 512,
    PEM_BYTES_MAX = 1 << 16,
    DAY_S = 86400,
    CLOCK_SLACK_S = 300,
    CA_DAYS = 3650
};

struct certs {
    const char *dir;
    struct bt_option_list hosts;
    uint32_t days;
    bool renew;
};

/* What is made, in this order; role 0: the public doors. */
static const struct {
    const char *name, *subject;
    uint32_t role;
} made[] = {{"router", "baton router", BT_TLS_ROUTER},
            {"prefill", "baton prefill worker", BT_TLS_PREFILL},
            {"decode", "baton decode worker", BT_TLS_DECODE},
            {"http", "baton http", 0}};
enum { N_MADE = sizeof made / sizeof made[0] };

/* ---- files ---- */

/* DIR/NAME.pem, DIR/NAME-key.pem. */
static void path_of(const struct certs *certs, const char *name, bool is_key,
                    char out[PATH_BYTES]) {
    snprintf(out, PATH_BYTES, "%s/%s%s.pem", certs->dir, name, is_key ? "-key" : "");
}

/* Whole or not at all: a process that is told to read its files again never sees half of one. */
static bt_status write_file(const char *path, const char *text, bool is_key, struct bt_error *err) {
    char fresh[PATH_BYTES + 8];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    int fd =
        open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, is_key ? 0600 : 0644);
    size_t n = strlen(text);
    bool written = fd >= 0 && fchmod(fd, is_key ? 0600 : 0644) == 0 &&
                   write(fd, text, n) == (ssize_t)n && fsync(fd) == 0;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (written && rename(fresh, path) == 0)
        return BT_OK;
    error = written ? errno : error;
    unlink(fresh);
    return bt_fail(err, BT_E_IO, "cannot write \"%.160s\": %s", path, strerror(error));
}

static bt_status write_pair(const struct certs *certs, const char *name, char *cert, char *key,
                            struct bt_error *err) {
    char path[PATH_BYTES];
    path_of(certs, name, true, path);
    bt_status status = write_file(path, key, true, err);
    path_of(certs, name, false, path);
    if (status == BT_OK)
        status = write_file(path, cert, false, err);
    explicit_bzero(key, strlen(key));
    free(key);
    free(cert);
    return status;
}

static bt_status refuse_if_there(const struct certs *certs, const char *name,
                                 struct bt_error *err) {
    char path[PATH_BYTES];
    for (int is_key = 0; is_key < 2; is_key++) {
        path_of(certs, name, is_key, path);
        if (access(path, F_OK) == 0)
            return bt_fail(err, BT_E_INVALID,
                           "\"%.120s\" exists and is not overwritten; --renew makes new "
                           "certificates from the authority that is there",
                           path);
    }
    return BT_OK;
}

/* ---- certificates ---- */

static struct bt_cert_wish wish_for(const char *subject, uint32_t days) {
    int64_t now_s = time(NULL);
    return (struct bt_cert_wish){.subject = subject,
                                 /* for machines whose clock is a little behind */
                                 .valid_from_s = now_s - CLOCK_SLACK_S,
                                 .valid_to_s = now_s + (int64_t)days * DAY_S};
}

static bt_status make_ca(const struct certs *certs, struct bt_ca **out, struct bt_error *err) {
    const struct bt_cert_wish wish = wish_for("baton CA", CA_DAYS);
    char *cert, *key;
    BT_TRY(bt_ca_create(&wish, out, err));
    BT_TRY(bt_ca_pem(*out, &cert, &key, err));
    return write_pair(certs, "ca", cert, key, err);
}

static bt_status read_ca(const struct certs *certs, struct bt_ca **out, struct bt_error *err) {
    char path[PATH_BYTES], *cert = NULL, *key = NULL;
    size_t n_cert, n_key = 0;
    path_of(certs, "ca", true, path);
    bt_status status = bt_file_read("the authority's key", path, PEM_BYTES_MAX, &key, &n_key, err);
    path_of(certs, "ca", false, path);
    if (status == BT_OK)
        status = bt_file_read("the authority", path, PEM_BYTES_MAX, &cert, &n_cert, err);
    if (status == BT_OK)
        status = bt_ca_read(cert, key, out, err);
    if (key)
        explicit_bzero(key, n_key);
    free(key);
    free(cert);
    return status;
}

static bt_status make_one(const struct certs *certs, const struct bt_ca *ca, int i,
                          struct bt_error *err) {
    struct bt_cert_wish wish = wish_for(made[i].subject, certs->days);
    char *cert, *key;
    size_t n = 0;
    if (made[i].role) {
        wish.names[n++] = bt_tls_role_dns(made[i].role);
    } else {
        wish.server_only = true;
        wish.names[n++] = "localhost";
        wish.names[n++] = "127.0.0.1";
        wish.names[n++] = "::1";
        for (uint32_t h = 0; h < certs->hosts.n_items; h++)
            wish.names[n++] = certs->hosts.items[h];
    }
    BT_TRY(bt_ca_issue(ca, &wish, &cert, &key, err));
    return write_pair(certs, made[i].name, cert, key, err);
}

static bt_status make_all(const struct certs *certs, struct bt_error *err) {
    struct bt_ca *ca = NULL;
    if (strlen(certs->dir) > PATH_BYTES - 32)
        return bt_fail(err, BT_E_INVALID, "the directory's name has %zu bytes, at most %d",
                       strlen(certs->dir), PATH_BYTES - 32);
    if (mkdir(certs->dir, 0755) != 0 && errno != EEXIST)
        return bt_fail(err, BT_E_IO, "cannot make the directory \"%.160s\": %s", certs->dir,
                       strerror(errno));
    if (!certs->renew) {
        BT_TRY(refuse_if_there(certs, "ca", err));
        for (int i = 0; i < N_MADE; i++)
            BT_TRY(refuse_if_there(certs, made[i].name, err));
    }
    bt_status status = certs->renew ? read_ca(certs, &ca, err) : make_ca(certs, &ca, err);
    for (int i = 0; i < N_MADE && status == BT_OK; i++)
        status = make_one(certs, ca, i, err);
    bt_ca_destroy(ca);
    return status;
}

/* ---- the command ---- */

static void say_what_next(const struct certs *certs) {
    const char *d = certs->dir;
    printf("Made in %s, valid for %u days:\n", d, certs->days);
    if (!certs->renew)
        printf("  %-32s%s\n", "ca.pem, ca-key.pem", "the authority; keep its key off the servers");
    for (int i = 0; i < N_MADE; i++) {
        char files[64];
        snprintf(files, sizeof files, "%s.pem, %s-key.pem", made[i].name, made[i].name);
        printf("  %-32s%s%s\n", files,
               made[i].role ? "names the role " : "for the router's public doors",
               made[i].role ? bt_tls_role_dns(made[i].role) : "");
    }
    if (certs->renew)
        printf("Processes that have the old ones read these after `kill -HUP`.\n");
    else
        printf("\nUse them so:\n"
               "  baton router  --tls-cert %s/router.pem --tls-key %s/router-key.pem --tls-ca "
               "%s/ca.pem \\\n"
               "                --http-tls-cert %s/http.pem --http-tls-key %s/http-key.pem ...\n"
               "  baton prefill --tls-cert %s/prefill.pem --tls-key %s/prefill-key.pem --tls-ca "
               "%s/ca.pem ...\n"
               "  baton decode  --tls-cert %s/decode.pem --tls-key %s/decode-key.pem --tls-ca "
               "%s/ca.pem ...\n",
               d, d, d, d, d, d, d, d, d, d, d);
}

int bt_certs_main(int argc, char **argv) {
    struct certs certs = {0};
    const char *words[1];
    size_t n_words = 0;
    const struct bt_option options[] = {
        {"host", BT_OPTION_LIST, &certs.hosts, .argument = "NAME",
         .help = "A name or address by which clients reach the router, beside localhost, 127.0.0.1 "
                 "and ::1; given again or separated by commas for several."},
        {"days", BT_OPTION_U32, &certs.days, "365", 1, 3650, .argument = "N",
         .help = "How long the certificates are valid; the authority is for ten years."},
        {"renew", BT_OPTION_FLAG, &certs.renew, "no",
         .help = "Make new certificates from the authority that is in DIR, over the old ones; give "
                 "--host again."},
    };
    const struct bt_command command = {
        .name = "certs",
        .usage = "baton certs DIR [--host NAME] [--days N] [--renew]",
        .summary =
            "Makes a certificate authority and, signed by it, a certificate for each role and for "
            "the public doors.\n\n"
            "Routers and workers know each other by the role that stands in the certificate, a DNS "
            "name: router.baton,\n"
            "prefill.baton, decode.baton. The hosts they run on play no part, so one certificate "
            "serves all workers of a\n"
            "role, and one of a prefill worker cannot serve as a router's. Certificates of another "
            "authority work as well\n"
            "where they carry these names, and may be used on both sides of a connection.\n"
            "Keys are P-256 and readable by their owner only.",
        .example = "  baton certs certs --host llm.example.com\n"
                   "  baton up --model model.gguf --tls certs\n"
                   "  baton certs certs --renew && kill -HUP $(pidof baton)   # before they expire",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .words = words,
        .n_words_max = 1,
        .n_words = &n_words,
    };
    struct bt_error err;
    bt_status status = bt_config_parse(&command, argc, argv, &err);
    if (status == BT_DONE)
        return 0;
    if (status == BT_OK && n_words == 0)
        status = bt_fail(&err, BT_E_INVALID, "a directory is needed: baton certs DIR");
    if (status == BT_OK) {
        certs.dir = words[0];
        status = make_all(&certs, &err);
    }
    if (status < 0) {
        fprintf(stderr, "baton certs: %s\n", err.text);
        return err.status == BT_E_INVALID ? 2 : 1;
    }
    say_what_next(&certs);
    return 0;
}
