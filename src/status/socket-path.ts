/** Where a daemon serves its status API. */
import {dirname, join} from 'node:path';

export function statusSocketBeside(hypervisorSocket: string): string {
	return join(dirname(hypervisorSocket), 'status.sock');
}
