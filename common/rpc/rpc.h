/* Starts and ends gRPC in this process, and sends its log lines to ours.
 *
 * Only a role (router, prefill worker, decode worker) calls bt_rpc_init, once, after its command
 * line is read. gRPC starts threads there and does not survive a fork (grpc issues 14055, 15334):
 * a program that starts roles (`baton up`) does so by exec and never calls this. */
#pragma once

/* gRPC's own log lines go through bt_log, at most 10 a second and the same one once in 10 s; the
 * rest are counted and the count is logged with the next line that passes (a stranger's connections
 * must not fill the log). */
void bt_rpc_init(void);
/* After every server and client has stopped. */
void bt_rpc_fini(void);
