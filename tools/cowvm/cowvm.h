// SPDX-License-Identifier: Apache-2.0
/* cowvm.h - the commands of cowvm. Each returns the exit status (cowfs_tool.h). */
#ifndef COWVM_COWVM_H
#define COWVM_COWVM_H

int cmd_create(int argc, char **argv);
int cmd_start(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_rm(int argc, char **argv);
int cmd_ls(int argc, char **argv);
int cmd_console(int argc, char **argv);
int cmd_exec_qmp(int argc, char **argv);
int cmd_fork(int argc, char **argv);
int cmd_hibernate(int argc, char **argv);
int cmd_resume(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_reset(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_standby(int argc, char **argv);

#endif
