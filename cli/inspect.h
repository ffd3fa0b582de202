/* `baton inspect FILE`: what a model file is and what it costs to run. */
#pragma once

/* Answers the process's exit code. */
int bt_inspect_main(int argc, char **argv);
