/* Whether this process may use tile registers; asks the kernel for them the first time. */
#ifndef HEADRACE_SCAN_AMX_H
#define HEADRACE_SCAN_AMX_H

int hr_amx_permitted(void);

#endif
