/* `baton health`: asks a Baton process on this machine whether it is alive or ready; for probes. */
#pragma once

/* Answers the process's exit code: 0 SERVING, 1 NOT_SERVING or no answer, 2 a bad option. */
int bt_health_main(int argc, char **argv);
