/**
 * Simulates the pod VMs, because the test driver of libvirt only stores their state. When libvirt reports the start of
 * a VM, it boots from its uploaded disk, and answers at its address until libvirt reports its end. Each slot of the
 * node has one address, like with DHCP.
 */
import {spawn, type ChildProcess} from 'node:child_process';
import {rm, writeFile} from 'node:fs/promises';
import {fileURLToPath} from 'node:url';
import type {LifecycleEvent} from '../../src/libvirt/wire/events.ts';
import {Service} from '../lab/service.ts';
import type {NetworkTestbed} from '../network/testbed.ts';
import type {TestDriverHost} from '../support/test-driver-host.ts';
import type {Order} from './vm-process.ts';

/** Number of slots with an address: more than the number of concurrent pods. */
const slots = 8;
const firstAddress = 100;

const addressOf = (slot: number): string => `192.168.122.${firstAddress + slot}`;

/** The last byte of the MAC is the slot. */
export function leaseOf(mac: string): string | undefined {
	const slot = Number.parseInt(mac.slice(-2), 16);
	return slot < slots ? addressOf(slot) : undefined;
}

export class Vms implements AsyncDisposable {
	readonly #host: TestDriverHost;
	readonly #directory: string;
	readonly #child: ChildProcess;
	readonly #service: Service;
	/** The behaviour of VMs that are started from now on. */
	boots: 'listening' | 'silent' | 'ending' = 'listening';

	private constructor(host: TestDriverHost, directory: string, child: ChildProcess) {
		this.#host = host;
		this.#directory = directory;
		this.#child = child;
		this.#service = new Service('the VMs', child);
		host.onLifecycle(event => {
			// Errors, such as an unreadable disk, appear in the start that fails.
			this.#take(event).catch(() => undefined);
		});
	}

	static async start(
		host: TestDriverHost,
		testbed: NetworkTestbed,
		directory: string,
		signal: AbortSignal,
	): Promise<Vms> {
		await testbed.addVm(0);
		await testbed.sh(
			Array.from({length: slots - 1}, (_, index) => `ip addr add ${addressOf(index + 1)}/24 dev enc1`).join('\n'),
			'vm-0',
		);
		const program = fileURLToPath(new URL('vm-process.ts', import.meta.url));
		const child = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'--',
				'nsenter',
				`--net=${testbed.netnsPath('vm-0')}`,
				'--',
				process.execPath,
				program,
			],
			{stdio: ['ignore', 'ignore', 'pipe', 'ipc'], cwd: '/'},
		);
		const vms = new Vms(host, directory, child);
		await vms.#service.line(/^ready$/, signal);
		return vms;
	}

	/** The errors in the process of the VMs. */
	get complaints(): readonly string[] {
		return this.#service.tail.filter(line => line !== 'ready');
	}

	/** Resets all connections to agents. */
	reset(): void {
		this.#order({do: 'reset'});
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#service.stop();
	}

	async #take({name: event, domain: {name, uuid}}: LifecycleEvent): Promise<void> {
		const address = addressOf(uuid.at(-1) ?? 0);
		const disk = `${this.#directory}/${name}.iso`;
		if (event === 'stopped') {
			this.#order({do: 'off', address});
			await rm(disk, {force: true});
			return;
		}

		if (event !== 'started' || this.boots === 'silent') {
			return;
		}

		if (this.boots === 'ending') {
			await this.#host.destroy(name);
			return;
		}

		await writeFile(disk, await this.#host.uploaded(`${name}-cidata.iso`));
		this.#order({do: 'boot', address, disk});
	}

	#order(order: Order): void {
		this.#child.send(order);
	}
}
