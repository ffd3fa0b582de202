/* `baton router`, `baton prefill`, `baton decode`: read the command line of a role and run it. */
#pragma once

#include "common/base/config.h"
#include "common/base/status.h"

enum { BT_TLS_OPTIONS = 3 };

/* The rows of --tls-cert, --tls-key and --tls-ca. */
void bt_tls_option_rows(const char **cert, const char **key, const char **ca,
                        struct bt_option out[BT_TLS_OPTIONS]);
/* All three are there or none. */
bt_status bt_tls_options_check(const char *cert, const char *key, const char *ca,
                               struct bt_error *err);

/* Each answers the process's exit code: 0 ended in order, 2 a bad option, file or peer, 1 else. */
int bt_router_command(int argc, char **argv);
int bt_prefill_command(int argc, char **argv);
int bt_decode_command(int argc, char **argv);
