/**
 * A KVM host for a daemon in its own process: the test driver of libvirt behind a unix socket. A proxy with the codec
 * of this project adds what the test driver lacks: it accepts uploads and keeps them, serves a bootable base volume for
 * downloads, and reports the recorded capabilities of an s390x host. All other packets pass through unless a test
 * injects a fault.
 */
import {once} from 'node:events';
import {readFile} from 'node:fs/promises';
import {connect, createServer, type Server, type Socket} from 'node:net';
import {libvirtCode, remoteError} from '../../src/libvirt/wire/errors.ts';
import type {LifecycleEvent} from '../../src/libvirt/wire/events.ts';
import {
	encodePacket,
	messageStatus,
	messageType,
	PacketDecoder,
	remoteProgram,
	type MessageStatus,
	type MessageType,
	type Packet,
} from '../../src/libvirt/wire/packet.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {decode, encode} from '../../src/libvirt/wire/xdr.ts';
import {bootRecord, qcow2Of} from './disk-image.ts';
import {startTestLibvirtd} from './libvirtd.ts';

export const pool = 'default-pool';
export const baseVolume = 'podvm-base.qcow2';
/** The address that the test driver of libvirt assigns to the first started domain. */
export const addressOfFirstVm = '192.168.122.23';

const {signal} = new AbortController();
/** Small enough for one packet of a stream. */
const baseImage = await qcow2Of(bootRecord, 1024n * 1024n, '-o', 'cluster_size=4k');
const names: ReadonlyMap<number, string> = new Map(Object.values(procedures).map(({name, number}) => [number, name]));
/** ENOSPC, as libvirt reports it. */
const noSpace = 28;

/** The fault of a call. */
export interface Fate {
	/**
	 * before: libvirt does not get the call. during: libvirt gets the call, before the answer arrives. after: the
	 * answer has arrived, but is not forwarded yet.
	 */
	readonly when: 'before' | 'during' | 'after';
	/**
	 * - drop: closes the connection
	 * - freeze: forwards nothing more on this connection, without notice
	 * - refuse: answers with this error number instead of libvirt; only with `before`
	 * - a function is called, and the call continues
	 */
	readonly action: 'drop' | 'freeze' | {readonly refuse: number} | (() => void);
}

export interface TestDriverHostOptions {
	/** Called for each call of a client; returns its fault, if any. */
	readonly onCall?: (procedure: string) => Fate | undefined;
	/** The DHCP lease of a MAC. If absent, the test driver of libvirt invents addresses. */
	readonly leaseOf?: (mac: string) => string | undefined;
	/** While true, uploads fail at their end. */
	readonly isFull?: () => boolean;
}

export interface TestDriverHost extends AsyncDisposable {
	/** The socket for clients, as if it were that of libvirtd. */
	readonly socketPath: string;
	/** Resolves with the first upload to a volume. */
	uploaded(volume: string): Promise<Buffer>;
	/** Sorted names, read from libvirt directly. */
	domains(): Promise<readonly string[]>;
	volumes(): Promise<readonly string[]>;
	/** Ends a VM, like an administrator. */
	destroy(domain: string): Promise<void>;
	/** Subscribes to the events of libvirt directly, until the host is disposed. */
	onLifecycle(listener: (event: LifecycleEvent) => void): void;
	/** Closes all connections, and refuses new ones until `back`. */
	away(): Promise<void>;
	back(): Promise<void>;
}

export async function startTestDriverHost(
	directory: string,
	options: TestDriverHostOptions = {},
): Promise<TestDriverHost> {
	await using undo = new AsyncDisposableStack();
	const libvirtd = undo.use(await startTestLibvirtd());
	const session = undo.use(
		new LibvirtSession({
			uri: 'test:///default',
			openPipe: openUnixPipe(
				{...parseLibvirtUri(`test:///default?socket=${libvirtd.socketPath}`), transport: 'unix'},
				{},
			),
		}),
	);
	await session.connect(signal);
	const {pool: storage} = await session.call(procedures.storagePoolLookupByName, {name: pool}, signal);
	const xml = `<volume><name>${baseVolume}</name><capacity>1000000</capacity><allocation>0</allocation><target><format type='qcow2'/></target></volume>`;
	await session.call(procedures.storageVolCreateXml, {pool: storage, xml, flags: 0}, signal);

	const capabilities = encode(procedures.connectGetCapabilities.result, {
		capabilities: await readFile(new URL('../fixtures/podvm/capabilities-s390x-tcg.xml', import.meta.url), 'utf8'),
	});
	const uploads = new Map<string, PromiseWithResolvers<Buffer>>();
	const uploadTo = (volume: string): PromiseWithResolvers<Buffer> => {
		const upload = uploads.get(volume) ?? Promise.withResolvers<Buffer>();
		uploads.set(volume, upload);
		return upload;
	};

	const sockets = new Set<Socket>();
	const socketPath = `${directory}/libvirt.sock`;
	let server: Server | undefined;
	const away = async (): Promise<void> => {
		const closing = server;
		server = undefined;
		closing?.close();
		for (const socket of sockets) {
			socket.destroy();
		}

		if (closing !== undefined) {
			await once(closing, 'close');
		}
	};

	const back = async (): Promise<void> => {
		server = createServer(client => {
			const daemon = connect(libvirtd.socketPath);
			joinSockets(
				client,
				daemon,
				new Front(client, capabilities, options, (volume, content) => uploadTo(volume).resolve(content)),
				options,
			);
			for (const [socket, other] of [
				[client, daemon],
				[daemon, client],
			] as const) {
				sockets.add(socket);
				socket.on('error', () => undefined);
				socket.once('close', () => {
					sockets.delete(socket);
					other.destroy();
				});
			}
		});
		server.listen(socketPath);
		await once(server, 'listening');
	};

	undo.defer(away);
	await back();
	const owned = undo.move();
	return {
		socketPath,
		away,
		back,
		uploaded: async volume => uploadTo(volume).promise,
		domains: async () =>
			(await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal)).domains
				.map(({name}) => name)
				.sort(),
		volumes: async () =>
			(
				await session.call(
					procedures.storagePoolListAllVolumes,
					{pool: storage, needResults: 1, flags: 0},
					signal,
				)
			).vols
				.map(({name}) => name)
				.sort(),
		destroy: async name => {
			const {dom} = await session.call(procedures.domainLookupByName, {name}, signal);
			await session.call(procedures.domainDestroyFlags, {dom, flags: 0}, signal);
		},
		onLifecycle: listener => void session.onLifecycle(listener),
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

/** Forwards one connection in both directions. */
function joinSockets(client: Socket, daemon: Socket, front: Front, {onCall}: TestDriverHostOptions): void {
	let isFrozen = false;
	/** By serial: the actions for answers that have not arrived. */
	const awaited = new Map<number, Fate['action']>();
	/** Performs the action. @returns whether the packet is still forwarded */
	const act = (packet: Packet, action: Fate['action'] | undefined): boolean => {
		if (typeof action === 'function') {
			action();
		} else if (action === 'drop') {
			client.destroy();
		} else if (action === 'freeze') {
			isFrozen = true;
		} else if (action !== undefined) {
			front.refuse(packet, action.refuse);
		}

		return action === undefined || typeof action === 'function';
	};

	eachPacket(client, packet => {
		const fate =
			!isFrozen && packet.program === remoteProgram && packet.type === messageType.call
				? onCall?.(names.get(packet.procedure) ?? String(packet.procedure))
				: undefined;
		if (isFrozen || (fate?.when === 'before' && !act(packet, fate.action))) {
			return;
		}

		const isAnswered = front.answers(packet);
		if (!isAnswered) {
			daemon.write(encodePacket(packet, packet.body));
		}

		if (fate?.when === 'during' || (fate?.when === 'after' && isAnswered)) {
			act(packet, fate.action);
		} else if (fate?.when === 'after') {
			awaited.set(packet.serial, fate.action);
		}
	});
	eachPacket(daemon, packet => {
		const action = packet.type === messageType.reply ? awaited.get(packet.serial) : undefined;
		if (action !== undefined) {
			awaited.delete(packet.serial);
		}

		if (!isFrozen && act(packet, action)) {
			client.write(encodePacket(packet, packet.body));
		}
	});
}

function eachPacket(socket: Socket, take: (packet: Packet) => void): void {
	const decoder = new PacketDecoder();
	socket.on('data', chunk => {
		for (const packet of decoder.push(chunk)) {
			take(packet);
		}
	});
}

/** Answers calls instead of libvirt on one connection. */
class Front {
	readonly #client: Socket;
	readonly #capabilities: Buffer;
	readonly #options: TestDriverHostOptions;
	readonly #keep: (volume: string, content: Buffer) => void;
	/** By serial: the uploads in progress. */
	readonly #streams = new Map<number, {readonly volume: string; readonly chunks: Buffer[]}>();

	constructor(
		client: Socket,
		capabilities: Buffer,
		options: TestDriverHostOptions,
		keep: (volume: string, content: Buffer) => void,
	) {
		this.#client = client;
		this.#capabilities = capabilities;
		this.#options = options;
		this.#keep = keep;
	}

	/** @returns whether the packet was answered here */
	answers(packet: Packet): boolean {
		if (packet.program !== remoteProgram) {
			return false;
		}

		switch (packet.procedure) {
			case procedures.connectGetCapabilities.number: {
				this.#send(packet, messageType.reply, this.#capabilities);
				return true;
			}

			case procedures.storageVolUpload.number: {
				this.#upload(packet);
				return true;
			}

			case procedures.storageVolDownload.number: {
				return this.#download(packet);
			}

			case procedures.networkGetDhcpLeases.number: {
				return this.#sendLease(packet);
			}

			case procedures.domainInterfaceAddresses.number: {
				if (this.#options.leaseOf === undefined) {
					return false;
				}

				this.#send(packet, messageType.reply, encode(procedures.domainInterfaceAddresses.result, {ifaces: []}));
				return true;
			}

			default: {
				return false;
			}
		}
	}

	refuse(packet: Packet, code: number, type: MessageType = messageType.reply): void {
		const [message, errno] =
			code === libvirtCode.systemError
				? ['cannot write data: No space left on device', noSpace]
				: ['refused by the test', -1];
		const body = {
			code,
			domain: 10,
			message,
			level: 2,
			dom: null,
			str1: null,
			str2: null,
			str3: null,
			int1: errno,
			int2: -1,
			net: null,
		};
		this.#send(packet, type, encode(remoteError, body), messageStatus.error);
	}

	#sendLease(packet: Packet): boolean {
		const {leaseOf} = this.#options;
		if (leaseOf === undefined) {
			return false;
		}

		const {mac} = decode(procedures.networkGetDhcpLeases.args, packet.body);
		const ipaddr = mac === null ? undefined : leaseOf(mac);
		const leases =
			ipaddr === undefined
				? []
				: [
						{
							iface: 'virbr0',
							expirytime: 4_000_000_000n,
							type: 0,
							mac,
							iaid: null,
							ipaddr,
							prefix: 24,
							hostname: null,
							clientid: null,
						},
					];
		this.#send(
			packet,
			messageType.reply,
			encode(procedures.networkGetDhcpLeases.result, {leases, ret: leases.length}),
		);
		return true;
	}

	#upload(packet: Packet): void {
		if (packet.type === messageType.call) {
			this.#streams.set(packet.serial, {
				volume: decode(procedures.storageVolUpload.args, packet.body).vol.name,
				chunks: [],
			});
			this.#send(packet, messageType.reply);
			return;
		}

		const stream = this.#streams.get(packet.serial);
		if (packet.status === messageStatus.continue) {
			stream?.chunks.push(Buffer.from(packet.body));
			return;
		}

		this.#streams.delete(packet.serial);
		if (packet.status === messageStatus.ok && this.#options.isFull?.() === true) {
			this.refuse(packet, libvirtCode.systemError, messageType.stream);
			return;
		}

		if (stream !== undefined && packet.status === messageStatus.ok) {
			this.#keep(stream.volume, Buffer.concat(stream.chunks));
		}

		this.#send(packet, messageType.stream);
	}

	/** Sends the base volume in one packet, then the end of the stream. @returns false for another volume */
	#download(packet: Packet): boolean {
		if (packet.type !== messageType.call) {
			this.#send(packet, messageType.stream);
			return true;
		}

		const {vol, offset, length} = decode(procedures.storageVolDownload.args, packet.body);
		if (vol.name !== baseVolume) {
			return false;
		}

		this.#send(packet, messageType.reply);
		this.#send(
			packet,
			messageType.stream,
			baseImage.subarray(Number(offset), length === 0n ? undefined : Number(offset + length)),
			messageStatus.continue,
		);
		this.#send(packet, messageType.stream, Buffer.alloc(0), messageStatus.continue);
		return true;
	}

	#send(
		to: Packet,
		type: MessageType,
		body: Uint8Array = Buffer.alloc(0),
		status: MessageStatus = messageStatus.ok,
	): void {
		this.#client.write(encodePacket({...to, type, status}, body));
	}
}
