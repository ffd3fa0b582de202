/* Asks a router once a second what it does and draws it, until q or a signal; the terminal is put
 * back on every way out. */
#include "cli/top.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "cli/bars.h"
#include "cli/http_client.h"
#include "cli/top_frame.h"
#include "common/base/clock.h"
#include "common/base/config.h"

enum { REFRESH_MS = 1000, TIMEOUT_S = 2, COLUMNS = 80, ROWS = 24, NOTICE_BYTES = 320 };

struct top {
    struct bt_http_client *client;
    const char *url, *api_key;
    bool once, unicode;
    json_t *stats, *requests; /* what came last */
    json_t *reply;
    uint64_t lost_ns; /* since when there is no answer; 0: there is */
    char notice[NOTICE_BYTES];
    struct termios before;
    bool has_keys; /* standard input is a terminal, and set to give keys at once */
    int signals;
    char frame[BT_TOP_BYTES];
};

/* ---- asking ---- */

static bool on_line(void *arg, const char *line, size_t length) {
    struct top *top = arg;
    if (!length)
        return true;
    json_decref(top->reply);
    top->reply = json_loadb(line, length, 0, NULL);
    return true;
}

/* Takes the answer's object into *out. */
static bt_status get(struct top *top, const char *path, json_t **out, struct bt_error *err) {
    struct bt_http_answer answer;
    const struct bt_http_request request = {
        .path = path, .api_key = top->api_key, .timeout_s = TIMEOUT_S};
    json_decref(top->reply);
    top->reply = NULL;
    BT_TRY(bt_http_client_request(top->client, &request, on_line, top, &answer, err));
    if (answer.code != 200 || !json_is_object(top->reply)) {
        const char *message =
            json_string_value(json_object_get(json_object_get(top->reply, "error"), "message"));
        return bt_fail(err, BT_E_PEER_GONE, "%s answered %d: %.180s", path, answer.code,
                       message ? message : "that is no page of a router");
    }
    json_decref(*out);
    *out = top->reply;
    top->reply = NULL;
    return BT_OK;
}

static bt_status ask(struct top *top, struct bt_error *err) {
    BT_TRY(get(top, "/debug/stats", &top->stats, err));
    return get(top, "/debug/requests?limit=100", &top->requests, err);
}

/* ---- the terminal ---- */

static unsigned from_environment(const char *name, unsigned standard) {
    const char *text = getenv(name);
    char *end;
    unsigned long value = text && *text ? strtoul(text, &end, 10) : 0;
    return value && !*end && value < 10000 ? (unsigned)value : standard;
}

static void read_size(struct bt_top_view *view) {
    struct winsize size;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col &&
        size.ws_row) {
        view->columns = size.ws_col;
        view->rows = size.ws_row;
        return;
    }
    view->columns = from_environment("COLUMNS", COLUMNS);
    view->rows = from_environment("LINES", ROWS);
}

/* A terminal that does not take it is gone; the loop notices at its next read. */
static void write_all(const char *text, size_t n) {
    while (n) {
        ssize_t sent = write(STDOUT_FILENO, text, n);
        if (sent < 0 && errno != EINTR)
            return;
        if (sent > 0) {
            text += sent;
            n -= (size_t)sent;
        }
    }
}

static void write_text(const char *text) {
    write_all(text, strlen(text));
}

/* The other screen, without a cursor; keys come at once and are not shown. */
static void enter(struct top *top) {
    struct termios keys;
    top->has_keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &top->before) == 0;
    if (top->has_keys) {
        keys = top->before;
        keys.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &keys);
    }
    write_text("\033[?1049h\033[?25l");
}

static void leave(struct top *top) {
    write_text("\033[?25h\033[?1049l");
    if (top->has_keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &top->before);
}

static void draw(struct top *top) {
    struct bt_top_view view = {.unicode = top->unicode,
                               .terminal = !top->once,
                               .notice = top->notice[0] ? top->notice : NULL};
    read_size(&view);
    size_t n = bt_top_frame(&view, top->stats, top->requests, top->frame);
    if (top->once) {
        write_all(top->frame, n);
        write_text("\n");
        return;
    }
    write_text("\033[H");
    write_all(top->frame, n);
    write_text("\033[J");
}

/* ---- the loop ---- */

static void refresh(struct top *top) {
    struct bt_error err;
    top->notice[0] = 0;
    if (ask(top, &err) == BT_OK) {
        top->lost_ns = 0;
    } else {
        if (!top->lost_ns)
            top->lost_ns = bt_clock_ns();
        snprintf(top->notice, sizeof top->notice, "no contact for %llu s: %s",
                 (unsigned long long)((bt_clock_ns() - top->lost_ns) / 1000000000u), err.text);
    }
    draw(top);
}

/* True: the signal asks to end. */
static bool take_signals(struct top *top) {
    struct signalfd_siginfo info;
    while (read(top->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGTSTP) {
            leave(top);
            raise(SIGSTOP);
            enter(top); /* continued */
        } else if (info.ssi_signo != SIGWINCH && info.ssi_signo != SIGCONT) {
            return true;
        }
        draw(top);
    }
    return false;
}

/* True: q, or nobody is at the keyboard any more. */
static bool take_keys(const struct top *top) {
    char keys[64];
    if (!top->has_keys)
        return false;
    ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    return n == 0 || (n > 0 && (memchr(keys, 'q', (size_t)n) || memchr(keys, 'Q', (size_t)n)));
}

static int watch(struct top *top) {
    static const int wanted[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        sigaddset(&set, wanted[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    top->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (top->signals < 0) {
        fprintf(stderr, "baton top: %s\n", strerror(errno));
        return 1;
    }
    enter(top);
    for (bool end = false; !end;) {
        uint64_t started_ms = bt_clock_ns() / 1000000;
        refresh(top);
        for (;;) {
            uint64_t gone_ms = bt_clock_ns() / 1000000 - started_ms;
            struct pollfd fds[] = {{.fd = top->signals, .events = POLLIN},
                                   {.fd = top->has_keys ? STDIN_FILENO : -1, .events = POLLIN}};
            if (gone_ms >= REFRESH_MS || poll(fds, 2, (int)(REFRESH_MS - gone_ms)) == 0)
                break;
            end = take_signals(top) || (fds[1].revents && take_keys(top));
            if (end)
                break;
        }
        /* A slow answer must not keep a signal waiting for a whole turn. */
        end = end || take_signals(top);
    }
    leave(top);
    close(top->signals);
    return 0;
}

static int print_once(struct top *top) {
    struct bt_error err;
    if (ask(top, &err) != BT_OK) {
        fprintf(stderr, "baton top: %s\n", err.text);
        return 1;
    }
    draw(top);
    return 0;
}

static int parse_and_run(struct top *top, int argc, char **argv) {
    const char *words[1], *ca_file = NULL;
    size_t n_words = 0;
    const struct bt_option options[] = {
        {"ca-file", BT_OPTION_STRING, &ca_file, .argument = "FILE",
         .help = "Of an https URL: trust these certificates (PEM) instead of the system's."},
        {"once", BT_OPTION_FLAG, &top->once, "no",
         .help = "Print one plain picture and end; also what happens where the output is no "
                 "terminal. COLUMNS and LINES give its size (80, 24)."},
        {"api-key", BT_OPTION_STRING, &top->api_key, .argument = "KEY",
         .help = "An operator's, where the router asks for one; better in BATON_API_KEY, where ps "
                 "does not show it."},
    };
    const struct bt_command command = {
        .name = "top",
        .usage = "baton top [URL]",
        .summary = "Shows a router and its two pools live: latencies of the last minute, load and "
                   "KV pages of each worker,\n"
                   "the last requests with the share of each stage and the verdict. URL: "
                   "http://127.0.0.1:8000. q ends.\n\n"
                   "Page bars: active, then cached (free to be taken), then free.",
        .example = "  baton top http://127.0.0.1:8000",
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
    top->url = n_words ? words[0] : "http://127.0.0.1:8000";
    if (status == BT_OK)
        status = bt_http_client_create(top->url, &top->client, &err);
    if (status == BT_OK && ca_file)
        status = bt_http_client_trust(top->client, ca_file, false, &err);
    if (status != BT_OK) {
        fprintf(stderr, "baton top: %s\n", err.text);
        return 2;
    }
    top->unicode = bt_bar_unicode();
    top->once = top->once || !isatty(STDOUT_FILENO);
    return top->once ? print_once(top) : watch(top);
}

int bt_top_main(int argc, char **argv) {
    struct top *top = calloc(1, sizeof *top); /* the frame is large */
    if (!top) {
        fprintf(stderr, "baton top: out of memory\n");
        return 1;
    }
    int code = parse_and_run(top, argc, argv);
    bt_http_client_destroy(top->client);
    json_decref(top->stats);
    json_decref(top->requests);
    json_decref(top->reply);
    free(top);
    return code;
}
