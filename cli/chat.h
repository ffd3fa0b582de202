/* `baton chat`: talks to a router from the terminal and shows how fast the answer came. */
#pragma once

/* Answers the process's exit code. */
int bt_chat_main(int argc, char **argv);
