/* `baton top`: the router and both pools, live in a terminal. */
#pragma once

/* Answers the process's exit code: 0, 1 where the router cannot be asked, 2 for a bad option. */
int bt_top_main(int argc, char **argv);
