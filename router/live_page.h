/* The live page at /: both pools, latencies, the last requests and a prompt box, in one file.
 *
 * router/live_page.html is put into the binary when it is built (embed_page.cmake), together with
 * the hashes of its script and style: the Content-Security-Policy allows these two and nothing
 * else. */
#pragma once

#include "router/http_server.h"

void bt_live_on_page(void *arg, struct bt_http_call *call);
