/**
 * A guest without a lab: the image in a QEMU process with user-mode networking, with its port forwarded to loopback.
 * Uses no libvirt, no namespaces and no privileges. For tests of the image itself. QEMU dies when this object is
 * disposed, and with this process.
 */
import {spawn, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {createServer, type AddressInfo} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {connect as connectTls} from 'node:tls';
import {abortable} from '../../src/core/lifetime.ts';
import {cidataIso} from '../../src/podvm/cidata.ts';
import {makeCa, makeClientCertificate, makeServerCertificate, type KeyPair} from '../../src/relay/certificates.ts';
import type {GuestFile} from '../../src/sandbox/ports.ts';
import {TtrpcClient} from '../../src/ttrpc/client.ts';

export interface GuestIdentity {
	readonly instanceName: string;
	readonly ca: KeyPair;
	readonly server: KeyPair;
	readonly client: KeyPair;
}

export async function makeGuestIdentity(instanceName: string): Promise<GuestIdentity> {
	const validity = {notBefore: new Date(Date.now() - 3_600_000), notAfter: new Date(Date.now() + 3_600_000)};
	const ca = await makeCa('agent-protocol-forwarder', validity);
	return {
		instanceName,
		ca,
		server: await makeServerCertificate(instanceName, ca, validity),
		client: await makeClientCertificate('cloud-api-adaptor', validity),
	};
}

export class BareGuest implements AsyncDisposable {
	/** All lines of the console so far. */
	readonly console: string[] = [];
	readonly port: number;
	readonly #qemu: ChildProcess;
	readonly #closed: Promise<unknown>;
	readonly #directory: string;
	/** Error output of QEMU. */
	#complaint = '';
	/** Resolves at the next line and at the end; replaced after each line. */
	#changed = Promise.withResolvers<undefined>();

	private constructor(qemu: ChildProcess, port: number, directory: string) {
		this.#qemu = qemu;
		this.port = port;
		this.#directory = directory;
		this.#closed = once(qemu, 'close');
		let rest = '';
		qemu.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
			const lines = (rest + chunk).split(/\r*\n/);
			rest = lines.pop() ?? '';
			this.console.push(...lines);
			this.#change();
		});
		qemu.stderr?.setEncoding('utf8').on('data', (text: string) => {
			this.#complaint += text;
		});
		void this.#closed.then(() => this.#change());
	}

	/** Resolves when the guest has printed its first line. */
	static async boot(image: string, instanceName: string, files: readonly GuestFile[]): Promise<BareGuest> {
		for (;;) {
			const guest = await BareGuest.#start(image, instanceName, files);
			await guest.#changed.promise;
			// Another program has taken the port in the meantime.
			if (guest.console.length > 0 || !/Could not set up host forwarding/.test(guest.#complaint)) {
				return guest;
			}

			await guest[Symbol.asyncDispose]();
		}
	}

	static async #start(image: string, instanceName: string, files: readonly GuestFile[]): Promise<BareGuest> {
		const directory = await mkdtemp(join(tmpdir(), 'caat-guest-'));
		const cidata = join(directory, 'cidata.iso');
		await writeFile(cidata, cidataIso(instanceName, files, new Date()));
		const port = await freePort();
		const qemu = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'qemu-system-s390x',
				'-machine',
				's390-ccw-virtio',
				'-accel',
				'tcg',
				// If a second CPU is possible, QEMU keeps the memory barriers of the guest; see
				// src/podvm/domain-xml.ts.
				'-smp',
				'1,maxcpus=2',
				'-m',
				'256',
				'-nodefaults',
				'-display',
				'none',
				'-no-reboot',
				'-chardev',
				'stdio,id=console,signal=off',
				'-device',
				'sclpconsole,chardev=console',
				'-drive',
				`file=${image},if=none,id=root,format=qcow2,readonly=on`,
				'-device',
				'virtio-blk-ccw,drive=root,bootindex=1',
				'-drive',
				`file=${cidata},if=none,id=cidata,format=raw,readonly=on`,
				'-device',
				'virtio-blk-ccw,drive=cidata',
				'-netdev',
				`user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:${port}-:15150`,
				'-device',
				'virtio-net-ccw,netdev=net',
			],
			{stdio: ['pipe', 'pipe', 'pipe']},
		);
		return new BareGuest(qemu, port, directory);
	}

	/** The first matching line of the console. Rejects if the machine ends before it. */
	async line(pattern: RegExp, signal: AbortSignal): Promise<string> {
		for (;;) {
			const found = this.console.find(line => pattern.test(line));
			if (found !== undefined) {
				return found;
			}

			if (this.#qemu.exitCode !== null || this.#qemu.signalCode !== null) {
				throw new Error(
					`The guest ended before ${String(pattern)}:\n${this.#complaint}${this.console.join('\n')}`,
				);
			}

			await abortable(this.#changed.promise, signal).catch((error: unknown) => {
				throw new Error(`The console has no line ${String(pattern)}:\n${this.console.join('\n')}`, {
					cause: error,
				});
			});
		}
	}

	/** Resolves with the exit status of QEMU when the machine has powered off. */
	async ended(): Promise<number | null> {
		await this.#closed;
		return this.#qemu.exitCode;
	}

	/**
	 * Opens a ttrpc connection with mutual TLS. The guest must listen already, because user-mode networking accepts
	 * connections before that.
	 */
	async connect({instanceName, ca, client}: GuestIdentity, signal: AbortSignal): Promise<TtrpcClient> {
		const socket = connectTls({
			host: '127.0.0.1',
			port: this.port,
			servername: instanceName,
			ca: ca.cert,
			cert: client.cert,
			key: client.key.reveal(),
		});
		try {
			await once(socket, 'secureConnect', {signal});
		} catch (error) {
			socket.destroy();
			throw error;
		}

		return new TtrpcClient(socket);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#qemu.kill('SIGKILL');
		await this.#closed;
		await rm(this.#directory, {recursive: true, force: true});
	}

	#change(): void {
		this.#changed.resolve(undefined);
		this.#changed = Promise.withResolvers();
	}
}

async function freePort(): Promise<number> {
	const server = createServer().listen(0, '127.0.0.1');
	await once(server, 'listening');
	const {port} = server.address() as AddressInfo;
	server.close();
	await once(server, 'close');
	return port;
}
