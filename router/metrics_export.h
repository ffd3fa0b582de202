/* /metrics: what the router knows of itself and of its workers, as Prometheus text. */
#pragma once

#include "router/http_server.h"

void bt_metrics_on_page(void *arg, struct bt_http_call *call); /* arg: the shell */
