/* `baton certs DIR`: a certificate authority of one's own and certificates for each role. */
#pragma once

/* Answers the process's exit code. */
int bt_certs_main(int argc, char **argv);
