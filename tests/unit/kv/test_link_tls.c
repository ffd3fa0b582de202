/* KV links under TLS: frames land byte for byte, every refusal is a sentence on both sides. */
#include "link_rig.h"

#include <signal.h>
#include <fcntl.h>

#include "tests/unit/certs.h"

static struct certs certs;

static void expect_text(const char *text, const char *part) {
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in: %s", part, text);
}

static int open_certs(void **state) {
    (void)state;
    certs_open(&certs);
    certs_issue_roles(&certs);
    rig_p_tls = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
    rig_d_tls = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
    return 0;
}

static int close_certs(void **state) {
    (void)state;
    bt_tls_destroy(rig_p_tls);
    bt_tls_destroy(rig_d_tls);
    certs_close(&certs);
    return 0;
}

static void test_frames_land_byte_for_byte(void **state) {
    (void)state;
    rig_send_all(RIG_PAGE_BYTES);
    rig_send_all(100);                       /* 64 pages a frame, several in a record */
    rig_send_all(2 * BT_KV_FRAME_BYTES + 5); /* three pieces a page, many records */
}

static void test_messages_go_both_ways_among_frames(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    rig_flood(&rig, 100);
    RIG_UNTIL(rig.base, rig.p.next_out > 0);
    uint32_t pulled = rig.p.next_out;
    struct bt_kv_msg msg = rig_hello(1);
    rig.p.ops->send(rig.p.links, 3, &msg);
    msg = (struct bt_kv_msg){.type = BT_KV_GRANT, .ticket = {1, 1}, .pages = 9};
    rig.d.ops->send(rig.d.links, rig.d.link, &msg);
    RIG_UNTIL(rig.base, rig.d.n_whole == rig.p.n_out && rig.d.n_messages && rig.p.n_messages);
    assert_int_equal(rig.d.frames_before_message[0], pulled);
    rig.p.ops->close(rig.p.links, 3);
    RIG_UNTIL(rig.base, rig.p.n_down && rig.d.n_down);
    expect_text(rig.p.why, "closed");
    expect_text(rig.d.why, "the peer closed the connection");
    rig_close(&rig);
}

/* What D writes to the log goes to a file meanwhile. */
static void expect_refused(struct bt_tls *p, struct bt_tls *d, const char *p_hears,
                           const char *d_logs) {
    struct bt_tls *p_before = rig_p_tls, *d_before = rig_d_tls;
    struct bt_fingerprint layout = rig_layout();
    struct rig rig = {0};
    static char log[1 << 14];
    FILE *file = tmpfile();
    int before = dup(STDERR_FILENO);
    assert_non_null(file);
    dup2(fileno(file), STDERR_FILENO);
    rig_p_tls = p;
    rig_d_tls = d;
    rig_open_base(&rig);
    rig_side_init(&rig.d, rig.base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    rig_side_init(&rig.p, rig.base, "tcp", true, 2, RIG_PAGE_BYTES, &layout);
    rig_dial(&rig);
    bool logged = false;
    for (uint64_t end = rig_now_ms() + RIG_WAIT_S * 1000;
         rig_now_ms() < end && !(rig.p.n_down && logged);) {
        event_base_loop(rig.base, EVLOOP_ONCE);
        ssize_t n = pread(fileno(file), log, sizeof log - 1, 0);
        log[n > 0 ? n : 0] = 0;
        logged = strstr(log, d_logs) != NULL;
    }
    dup2(before, STDERR_FILENO);
    close(before);
    fclose(file);
    assert_int_equal(rig.p.n_up + rig.d.n_up, 0);
    expect_text(rig.p.why, p_hears);
    expect_text(log, d_logs);
    rig_close(&rig);
    rig_p_tls = p_before;
    rig_d_tls = d_before;
}

static void test_refusals_are_sentences(void **state) {
    (void)state;
    struct certs others;
    certs_open(&others);
    certs_issue_roles(&others);
    char command[1024], both[CERTS_PATH_BYTES];
    snprintf(both, sizeof both, "%s/both-ca.pem", others.dir);
    snprintf(command, sizeof command, "cat %s %s > %s", certs.ca_path, others.ca_path, both);
    assert_int_equal(system(command), 0);
    struct bt_tls *foreign = certs_tls(&others, "prefill", NULL, BT_TLS_PREFILL);
    struct bt_tls *trusting = certs_tls(&others, "prefill", both, BT_TLS_PREFILL);
    struct bt_tls *router = certs_tls(&certs, "router", NULL, BT_TLS_ROUTER);
    expect_refused(rig_p_tls, router, "is for the role router, must be for decode",
                   "the peer refuses our certificate: it is for another role");
    expect_refused(router, rig_d_tls, "the peer refuses our certificate: it is for another role",
                   "(\"router\") is for the role router, must be for prefill");
    expect_refused(foreign, rig_d_tls, "is not signed by a CA of",
                   "the peer refuses our certificate: it does not know the CA");
    expect_refused(trusting, rig_d_tls, "refuses our certificate: it does not know the CA",
                   "(\"prefill\") is not signed by a CA of");
    expect_refused(NULL, rig_d_tls, "it may want TLS (--tls-cert",
                   "was not taken: the peer does not speak TLS");
    expect_refused(rig_p_tls, NULL, "the peer does not speak TLS",
                   "the peer speaks TLS and this side does not (--tls-cert");
    bt_tls_destroy(router);
    bt_tls_destroy(trusting);
    bt_tls_destroy(foreign);
    certs_close(&others);
}

static void test_a_peer_that_only_connects_is_let_go(void **state) {
    (void)state;
    struct rig rig = {0};
    struct bt_fingerprint layout = rig_layout();
    uint8_t bytes[64];
    size_t n_bytes = 0;
    rig_open_base(&rig);
    rig_side_init(&rig.d, rig.base, "tcp", false, 1, RIG_PAGE_BYTES, &layout);
    int fd = raw_connect(&rig.d);
    RIG_UNTIL(rig.base, !raw_read(fd, bytes, &n_bytes, sizeof bytes));
    assert_int_equal(n_bytes, 0);
    close(fd);
    rig_close(&rig);
}

static void test_a_cut_in_mid_frame_ends_the_link(void **state) {
    (void)state;
    struct rig rig = {0};
    rig_open(&rig, "tcp", RIG_PAGE_BYTES);
    rig_flood(&rig, 200);
    RIG_UNTIL(rig.base, rig.d.n_whole > 5);
    rig.p.ops->destroy(rig.p.links);
    rig.p.links = NULL;
    RIG_UNTIL(rig.base, rig.d.n_down);
    assert_int_equal(rig.d.n_begun, rig.d.n_whole + rig.d.n_broken);
    free(rig.p.memory);
    free(rig.p.out);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_land_byte_for_byte),
        cmocka_unit_test(test_messages_go_both_ways_among_frames),
        cmocka_unit_test(test_refusals_are_sentences),
        cmocka_unit_test(test_a_peer_that_only_connects_is_let_go),
        cmocka_unit_test(test_a_cut_in_mid_frame_ends_the_link),
    };
    signal(SIGPIPE, SIG_IGN); /* as common/base/tls.h asks */
    return cmocka_run_group_tests(tests, open_certs, close_certs);
}
