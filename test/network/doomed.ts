/**
 * A daemon that reserves and attaches one pod's network, telling each step, until it is killed. Argument: JSON of
 * `Doomed`.
 */
import {createPodNetworks} from '../../src/network/pod-networks.ts';
import {silentLogger} from '../../src/core/log.ts';

export interface Doomed {
	readonly shell: readonly string[];
	readonly ownNetns: string;
	readonly pod: string;
	/** Without it, the network is only reserved. */
	readonly vm?: string;
}

const {shell, ownNetns, pod, vm} = JSON.parse(process.argv[2] ?? '') as Doomed;
const signal = AbortSignal.timeout(100_000);
const networks = createPodNetworks({
	underlay: {vmAddress: async () => '192.168.122.1'},
	vxlanPort: 4789,
	vxlanMinId: 555_000,
	podSubnetCidrs: [],
	externalNetViaPodVm: false,
	log: silentLogger,
	spawnServer: {shell},
	ownNetns,
});
await networks.check(signal);
process.stdout.write('begin\n');
const network = await networks.reserve('doomed', pod, signal);
process.stdout.write(`${JSON.stringify(network)}\n`);
if (vm !== undefined) {
	await networks.attach(network, vm, signal);
	process.stdout.write('attached\n');
}

setInterval(() => undefined, 60_000);
