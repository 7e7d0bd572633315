/**
 * All pod VMs of a run, in the network namespace in which it is started: one forwarder for each running VM, with the
 * certificate from its cloud-init disk. Controlled by its parent process, see vms.ts.
 */
import {answerEmpty, startForwarder, type Forwarder} from '../support/forwarder.ts';
import {readForwarderConfiguration} from '../support/vm-disk.ts';

export type Order =
	| {readonly do: 'boot'; readonly address: string; readonly disk: string}
	| {readonly do: 'off'; readonly address: string}
	| {readonly do: 'reset'};

const forwarders = new Map<string, Forwarder>();
let orders = Promise.resolve();

async function carryOut(order: Order): Promise<void> {
	switch (order.do) {
		case 'boot': {
			const {tls} = await readForwarderConfiguration(order.disk);
			await forwarders.get(order.address)?.[Symbol.asyncDispose]();
			forwarders.set(
				order.address,
				await startForwarder({tls, address: order.address, port: 15_150, onConnection: answerEmpty}),
			);
			return;
		}

		case 'off': {
			await forwarders.get(order.address)?.[Symbol.asyncDispose]();
			forwarders.delete(order.address);
			return;
		}

		case 'reset': {
			for (const forwarder of forwarders.values()) {
				forwarder.reset();
			}
		}
	}
}

process.on('message', (order: Order) => {
	orders = orders
		.then(async () => carryOut(order))
		.catch((error: unknown) => {
			process.stderr.write(`${JSON.stringify(order)}: ${String(error)}\n`);
		});
});
process.on('disconnect', () => process.exit());
process.stderr.write('ready\n');
