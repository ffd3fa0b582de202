/* Reads options from flags, environment and file into the variables that an option table names. */
#include "common/base/config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/assert.h"

enum { LINE_BYTES = 4096, OPTIONS_MAX = 64, HELP_COLUMN = 30, HELP_WIDTH = 96 };

static bt_status refuse(struct bt_error *err, const struct bt_option *option, const char *where,
                        const char *value, const char *bound) {
    return bt_fail(err, BT_E_INVALID, "%s: \"%s\" %s: %s", option->name, value, where, bound);
}

static bt_status parse_u64(const struct bt_option *option, const char *where, const char *value,
                           bool units, uint64_t *out, struct bt_error *err) {
    char bound[96];
    snprintf(bound, sizeof bound, "must be a whole number from %llu to %llu%s",
             (unsigned long long)option->min, (unsigned long long)option->max,
             units ? " (k, m, g for powers of 1024)" : "");
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)value[0]))
        return refuse(err, option, where, value, bound);
    double fraction = units ? strtod(value, &end) : 0;
    uint64_t number = units ? 0 : strtoull(value, &end, 10);
    if (errno == ERANGE || end == value)
        return refuse(err, option, where, value, bound);
    if (units) {
        static const char letters[] = "kmgt";
        double factor = 1;
        const char *letter = *end ? strchr(letters, tolower((unsigned char)*end)) : NULL;
        if (letter) {
            for (const char *l = letters; l <= letter; l++)
                factor *= 1024;
            end++;
            if (!strcasecmp(end, "ib") || !strcasecmp(end, "b"))
                end += strlen(end);
        }
        fraction *= factor;
        if (!(fraction >= 0 && fraction < 9e18))
            return refuse(err, option, where, value, bound);
        number = (uint64_t)fraction;
    }
    if (*end || number < option->min || number > option->max)
        return refuse(err, option, where, value, bound);
    *out = number;
    return BT_OK;
}

static bt_status parse_flag(const struct bt_option *option, const char *where, const char *value,
                            struct bt_error *err) {
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false",
                                                                                "off", "0"};
    for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++) {
        if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
            *(bool *)option->out = !strcasecmp(value, yes[i]);
            return BT_OK;
        }
    }
    return refuse(err, option, where, value, "must be yes or no");
}

static bt_status parse_choice(const struct bt_option *option, const char *where, const char *value,
                              struct bt_error *err) {
    char bound[160] = "must be one of";
    for (uint32_t i = 0; i < BT_OPTION_CHOICES_MAX && option->choices[i]; i++) {
        if (!strcmp(value, option->choices[i])) {
            *(uint32_t *)option->out = i;
            return BT_OK;
        }
        size_t n = strlen(bound);
        snprintf(bound + n, sizeof bound - n, "%s %s", i ? "," : "", option->choices[i]);
    }
    return refuse(err, option, where, value, bound);
}

struct kept {
    struct kept *next;
    char text[];
};

/* The copy lives as long as the process: options are read once, at start. The list keeps it in
 * reach, so that a leak checker does not report it once the command's own struct is gone. */
static char *keep(const char *text) {
    static struct kept *all;
    size_t n_bytes = strlen(text) + 1;
    struct kept *copy = malloc(sizeof *copy + n_bytes);
    if (!copy) {
        fprintf(stderr, "baton: out of memory while reading options\n");
        exit(1);
    }
    memcpy(copy->text, text, n_bytes);
    copy->next = all;
    all = copy;
    return copy->text;
}

static bt_status parse_list(const struct bt_option *option, const char *where, const char *value,
                            struct bt_error *err) {
    struct bt_option_list *list = option->out;
    char *rest = keep(value);
    for (char *item; (item = strsep(&rest, ","));) {
        if (!*item)
            return refuse(err, option, where, value, "has an empty item");
        if (list->n_items == BT_OPTION_LIST_MAX)
            return refuse(err, option, where, value, "has more than 16 items");
        list->items[list->n_items++] = item;
    }
    return BT_OK;
}

static bt_status set(const struct bt_option *option, const char *where, const char *value,
                     struct bt_error *err) {
    uint64_t number = 0;
    switch (option->kind) {
    case BT_OPTION_STRING:
        *(const char **)option->out = keep(value);
        return BT_OK;
    case BT_OPTION_U32:
        BT_ASSERT(option->max <= UINT32_MAX);
        BT_TRY(parse_u64(option, where, value, false, &number, err));
        *(uint32_t *)option->out = (uint32_t)number;
        return BT_OK;
    case BT_OPTION_BYTES:
        BT_TRY(parse_u64(option, where, value, true, &number, err));
        *(uint64_t *)option->out = number;
        return BT_OK;
    case BT_OPTION_FLAG:
        return parse_flag(option, where, value, err);
    case BT_OPTION_CHOICE:
        return parse_choice(option, where, value, err);
    case BT_OPTION_LIST:
        return parse_list(option, where, value, err);
    }
    return bt_fail(err, BT_E_INTERNAL, "option --%s has the unknown kind %d", option->name,
                   (int)option->kind);
}

static const struct bt_option *find(const struct bt_command *command, const char *name,
                                    size_t length) {
    for (size_t i = 0; i < command->n_options; i++)
        if (strlen(command->options[i].name) == length &&
            !strncmp(command->options[i].name, name, length))
            return &command->options[i];
    return NULL;
}

static bt_status parse_flags(const struct bt_command *command, int argc, char **argv, bool *seen,
                             const char **config, struct bt_error *err) {
    bool only_words = false; /* behind "--" */
    for (int i = 1; i < argc; i++) {
        char *arg = argv[i];
        if (!only_words && !strcmp(arg, "--")) {
            only_words = true;
            continue;
        }
        if (only_words || strncmp(arg, "--", 2)) {
            if (!only_words && arg[0] == '-' && arg[1])
                return bt_fail(err, BT_E_INVALID,
                               "unknown option %s; \"baton %s --help\" lists them", arg,
                               command->name);
            if (!command->words || *command->n_words == command->n_words_max)
                return bt_fail(err, BT_E_INVALID,
                               "unexpected word \"%s\"; \"baton %s --help\" shows the usage", arg,
                               command->name);
            command->words[(*command->n_words)++] = arg;
            continue;
        }
        char *name = arg + 2, *equals = strchr(name, '=');
        size_t length = equals ? (size_t)(equals - name) : strlen(name);
        bool is_config = length == 6 && !strncmp(name, "config", 6);
        const struct bt_option *option = is_config ? NULL : find(command, name, length);
        if (!option && !is_config)
            return bt_fail(err, BT_E_INVALID,
                           "unknown option --%.*s; \"baton %s --help\" lists them", (int)length,
                           name, command->name);
        const char *value = equals ? equals + 1 : NULL;
        if (!value && option && option->kind == BT_OPTION_FLAG)
            value = "yes";
        if (!value) {
            if (i + 1 == argc)
                return bt_fail(err, BT_E_INVALID, "--%.*s needs a value", (int)length, name);
            value = argv[++i];
        }
        if (is_config) {
            *config = value;
            continue;
        }
        BT_TRY(set(option, "on the command line", value, err));
        seen[option - command->options] = true;
    }
    return BT_OK;
}

static bt_status parse_environment(const struct bt_command *command, bool *seen,
                                   struct bt_error *err) {
    for (size_t i = 0; i < command->n_options; i++) {
        char name[80] = "BATON_";
        size_t n = strlen(name);
        for (const char *c = command->options[i].name; *c && n + 1 < sizeof name; c++)
            name[n++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        name[n] = 0;
        const char *value = getenv(name);
        if (!value || seen[i])
            continue;
        char where[100];
        snprintf(where, sizeof where, "in the environment (%s)", name);
        BT_TRY(set(&command->options[i], where, value, err));
        seen[i] = true;
    }
    return BT_OK;
}

static char *trim(char *text) {
    while (isspace((unsigned char)*text))
        text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        end--;
    *end = 0;
    return text;
}

/* One file may serve several commands: a name that this command lacks is refused only if no command
 * could have it, which cannot be known here, so every unknown name is refused and files are per
 * command. */
static bt_status parse_file(const struct bt_command *command, const char *path, bool *seen,
                            struct bt_error *err) {
    FILE *file = fopen(path, "r");
    if (!file)
        return bt_fail(err, BT_E_IO, "cannot open the config file %s: %s", path, strerror(errno));
    bool from_file[OPTIONS_MAX] = {false};
    char line[LINE_BYTES];
    bt_status status = BT_OK;
    for (int number = 1; status == BT_OK && fgets(line, sizeof line, file); number++) {
        char *text = trim(line);
        if (!*text || *text == '#')
            continue;
        char *equals = strchr(text, '=');
        if (!equals) {
            status = bt_fail(err, BT_E_INVALID, "%s line %d: \"%.100s\" is not key = value", path,
                             number, text);
            break;
        }
        *equals = 0;
        char *name = trim(text), *value = trim(equals + 1);
        const struct bt_option *option = find(command, name, strlen(name));
        if (!option) {
            status = bt_fail(err, BT_E_INVALID,
                             "%s line %d: unknown option \"%.60s\"; \"baton %s --help\" lists them",
                             path, number, name, command->name);
            break;
        }
        size_t index = (size_t)(option - command->options);
        if (seen[index] && !from_file[index])
            continue;
        char where[300];
        snprintf(where, sizeof where, "in %.200s line %d", path, number);
        status = set(option, where, value, err);
        seen[index] = from_file[index] = true;
    }
    fclose(file);
    return status;
}

static void print_wrapped(const char *text) {
    int column = HELP_COLUMN;
    for (const char *word = text; *word;) {
        size_t length = strcspn(word, " ");
        if (column + (int)length > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        printf("%.*s ", (int)length, word);
        column += (int)length + 1;
        word += length + strspn(word + length, " ");
    }
    printf("\n");
}

static void print_option(const struct bt_option *option) {
    char left[128], help[1024];
    int n = snprintf(left, sizeof left, "  --%s%s%s", option->name, option->argument ? " " : "",
                     option->argument ? option->argument : "");
    size_t used = (size_t)snprintf(help, sizeof help, "%s", option->help);
    if (option->kind == BT_OPTION_CHOICE) {
        used += (size_t)snprintf(help + used, sizeof help - used, " One of:");
        for (int i = 0; i < BT_OPTION_CHOICES_MAX && option->choices[i]; i++)
            used += (size_t)snprintf(help + used, sizeof help - used, "%s %s", i ? "," : "",
                                     option->choices[i]);
        used += (size_t)snprintf(help + used, sizeof help - used, ".");
    }
    if (option->standard)
        snprintf(help + used, sizeof help - used, " Default: %s.", option->standard);
    else if (option->required)
        snprintf(help + used, sizeof help - used, " Required.");
    printf("%s", left);
    if (n >= HELP_COLUMN)
        printf("\n%*s", HELP_COLUMN, "");
    else
        printf("%*s", HELP_COLUMN - n, "");
    print_wrapped(help);
}

void bt_config_help(const struct bt_command *command) {
    printf("%s\n\nUsage: %s\n\nOptions:\n", command->summary, command->usage);
    for (size_t i = 0; i < command->n_options; i++)
        print_option(&command->options[i]);
    static const struct bt_option common[] = {
        {.name = "config",
         .argument = "FILE",
         .help = "Read options from a file of `name = value` lines."},
        {.name = "help", .help = "Show this text."},
        {.name = "version", .help = "Show the version."},
    };
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++)
        print_option(&common[i]);
    printf("\nEach option can also be given as BATON_NAME in the environment (--kv-tokens is "
           "BATON_KV_TOKENS)\n"
           "or in the file. A flag wins over the environment, the environment over the file.\n");
    if (command->example)
        printf("\nExample:\n%s\n", command->example);
}

bt_status bt_config_parse(const struct bt_command *command, int argc, char **argv,
                          struct bt_error *err) {
    BT_ASSERT(command->n_options <= OPTIONS_MAX);
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            bt_config_help(command);
            return BT_DONE;
        }
        if (!strcmp(argv[i], "--version")) {
            printf("baton %s\n", BT_VERSION);
            return BT_DONE;
        }
    }
    bool seen[OPTIONS_MAX] = {false};
    const char *config = getenv("BATON_CONFIG");
    BT_TRY(parse_flags(command, argc, argv, seen, &config, err));
    BT_TRY(parse_environment(command, seen, err));
    if (config)
        BT_TRY(parse_file(command, config, seen, err));
    for (size_t i = 0; i < command->n_options; i++) {
        const struct bt_option *option = &command->options[i];
        if (seen[i])
            continue;
        if (option->required)
            return bt_fail(err, BT_E_INVALID, "--%s is required; \"baton %s --help\" explains it",
                           option->name, command->name);
        if (option->standard)
            BT_TRY(set(option, "(the default)", option->standard, err));
    }
    return BT_OK;
}
