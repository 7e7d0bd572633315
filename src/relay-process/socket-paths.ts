/** The sockets of relay processes and of the daemons behind them, all beside hypervisor.sock. */
import {dirname, join} from 'node:path';

export function relaySocketBeside(hypervisorSocket: string): string {
	return join(dirname(hypervisorSocket), 'relay.sock');
}

/** Where a relay process can be reached after another one has taken relay.sock over. */
export function asideOf(relaySocket: string, inode: bigint): string {
	return join(dirname(relaySocket), `relay-${inode}.sock`);
}
