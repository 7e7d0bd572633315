/** What the kernel has in the network namespace of a pod, for an operator who inspects it. Changes nothing. */
import type {PodNetwork} from '../sandbox/ports.ts';
import {inNetns} from './iproute2.ts';
import {tunnelInterface} from './plan.ts';
import type {SpawnServer} from './spawn-server.ts';

export interface DescribedCommand {
	/** Without the part that enters the namespace. */
	readonly command: string;
	/** Or the error. */
	readonly output: string;
}

export async function describeNetwork(
	programs: Pick<SpawnServer, 'run'>,
	{netnsPath, interface: podInterface}: PodNetwork,
	signal: AbortSignal,
): Promise<readonly DescribedCommand[]> {
	const commands = [
		['ip', '-d', '-s', 'address'],
		['ip', 'route', 'show', 'table', 'all'],
		['ip', 'neighbour'],
		...[podInterface, tunnelInterface].map(device => ['tc', '-s', 'filter', 'show', 'dev', device, 'ingress']),
	];
	return Promise.all(
		commands.map(async argv => {
			const {status, stdout, stderr} = await programs.run({argv: [...inNetns(netnsPath), ...argv]}, signal);
			return {command: argv.join(' '), output: status === 0 ? stdout : `${stderr.trim()} (status ${status})\n`};
		}),
	);
}
