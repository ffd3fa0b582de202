/* `baton profile`: where the time of a prefill and of a decode step goes, op by op. */
#pragma once

/* Answers the process's exit code. */
int bt_profile_main(int argc, char **argv);
