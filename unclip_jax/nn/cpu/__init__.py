"""The kernels for CPUs, chosen when a program is lowered for one."""
