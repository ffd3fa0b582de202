/* One option table per command: flags, BATON_* environment and a `key = value` file, all by the
 * same names.
 *
 * Precedence: flag, then environment, then file (--config FILE or BATON_CONFIG), then the default
 * in the table. Every value is checked against its row, and a refusal names the option, where the
 * value came from, the value and the bound. Used at start only, on the main thread. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum bt_option_kind {
    BT_OPTION_STRING, /* const char *          */
    BT_OPTION_U32,    /* uint32_t, min..max    */
    BT_OPTION_BYTES,  /* uint64_t, min..max; "512", "64k", "1.5g", "2GiB" (powers of 1024) */
    BT_OPTION_FLAG,   /* bool; --name or --name=yes|no; in environment and file yes|no */
    BT_OPTION_CHOICE, /* uint32_t, index into `choices` */
    BT_OPTION_LIST,   /* struct bt_option_list; given again or separated by commas */
};

enum { BT_OPTION_LIST_MAX = 16, BT_OPTION_CHOICES_MAX = 8 };

struct bt_option_list {
    const char *items[BT_OPTION_LIST_MAX];
    uint32_t n_items;
};

struct bt_option {
    const char *name; /* "kv-tokens": --kv-tokens, BATON_KV_TOKENS, kv-tokens = */
    enum bt_option_kind kind;
    void *out; /* what `kind` says; holds the default already, or is set from `standard` */
    const char *standard;                       /* default as text, NULL = leave *out alone */
    uint64_t min, max;                          /* U32, BYTES */
    const char *choices[BT_OPTION_CHOICES_MAX]; /* CHOICE, ended by NULL */
    const char *argument;                       /* "FILE", "N"; NULL for a flag */
    const char *help;                           /* one or more sentences */
    bool required;
};

struct bt_command {
    const char *name;    /* "decode" */
    const char *usage;   /* "baton decode --model FILE --router HOST:PORT" */
    const char *summary; /* what it does, a few sentences */
    const char *example; /* printed at the end of --help; may be NULL */
    const struct bt_option *options;
    size_t n_options;
    const char *
        *words; /* positional arguments go here, up to n_words_max; NULL: none are allowed */
    size_t n_words_max;
    size_t *n_words;
};

/* Fills the outputs of all options. argv[0] is skipped. BT_DONE: --help or --version was asked for
 * and printed on stdout. Strings are borrowed from argv, the environment, or memory kept until the
 * process ends. */
bt_status bt_config_parse(const struct bt_command *command, int argc, char **argv,
                          struct bt_error *err);

/* Prints the help text of a command on stdout. */
void bt_config_help(const struct bt_command *command);
