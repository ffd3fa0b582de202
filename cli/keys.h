/* `baton keys`: makes API keys. */
#pragma once

/* Answers the process's exit code. */
int bt_keys_main(int argc, char **argv);
