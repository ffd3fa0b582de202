/* `baton up`: a whole cluster on this machine, one command. */
#pragma once

/* Answers the process's exit code. */
int bt_up_main(int argc, char **argv);
