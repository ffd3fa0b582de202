/* `baton router`, `baton prefill`, `baton decode`: read the command line of a role and run it. */
#pragma once

/* Each answers the process's exit code: 0 ended in order, 2 a bad option, file or peer, 1 else. */
int bt_router_command(int argc, char **argv);
int bt_prefill_command(int argc, char **argv);
int bt_decode_command(int argc, char **argv);
