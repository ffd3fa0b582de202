/* Sends the page that is built into this program. */
#include "router/live_page.h"

/* live_page_bytes, LIVE_PAGE_SCRIPT_SHA256 and LIVE_PAGE_STYLE_SHA256. */
#include "live_page_bytes.h"

/* Nothing but the page's own script and style runs, it talks to its own router only, and nobody can
 * put it into a frame. */
static const char headers[] =
    "Content-Security-Policy: default-src 'none'; script-src 'sha256-" LIVE_PAGE_SCRIPT_SHA256
    "'; style-src 'sha256-" LIVE_PAGE_STYLE_SHA256
    "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cache-Control: no-cache\r\n";

void bt_live_on_page(void *arg, struct bt_http_call *call) {
    (void)arg;
    bt_http_call_reply(call, 200, "text/html; charset=utf-8",
                       (struct bt_slice){(const char *)live_page_bytes, sizeof live_page_bytes},
                       headers);
}
