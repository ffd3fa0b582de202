/* `baton bench`: open-loop load against an OpenAI-compatible server; latencies, goodput, a picture.
 */
#pragma once

/* Answers the process's exit code: 0, 1 where no request succeeded or the SLO that was asked for is
 * missed, 2 for a bad option, file or server. */
int bt_bench_main(int argc, char **argv);
