/**
 * A KVM host for a daemon that is a process of its own: libvirt's test driver behind a unix socket. What the test
 * driver cannot do is done in front of it, by our own codec: it takes no uploads (these are kept), it gives no
 * downloads (the base volume is a bootable image), and it knows no s390x (the capabilities are a recorded host's). All
 * other packets pass through, unless a test decides otherwise: on the way to this host anything may go wrong.
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
/** What libvirt's test driver makes up for the first domain that is started, whoever asks. */
export const addressOfFirstVm = '192.168.122.23';

const {signal} = new AbortController();
/** Small enough for one packet of a stream. */
const baseImage = await qcow2Of(bootRecord, 1024n * 1024n, '-o', 'cluster_size=4k');
const names: ReadonlyMap<number, string> = new Map(Object.values(procedures).map(({name, number}) => [number, name]));
/** ENOSPC, as libvirt passes it on. */
const noSpace = 28;

/** What becomes of a call. */
export interface Fate {
	/**
	 * Before it reaches libvirt; when it has, but not its answer; when there is an answer, which has not been passed
	 * on.
	 */
	readonly when: 'before' | 'during' | 'after';
	/**
	 * - drop: the connection ends
	 * - freeze: nothing passes on this connection any more, and nobody is told
	 * - refuse: libvirt's answer is this error's number; only `before`
	 * - a function is called, and the call goes its way
	 */
	readonly action: 'drop' | 'freeze' | {readonly refuse: number} | (() => void);
}

export interface TestDriverHostOptions {
	/** Hears of every call of a client, and decides on it. */
	readonly onCall?: (procedure: string) => Fate | undefined;
	/** What DHCP gave to a MAC. If absent, libvirt's test driver makes addresses up. */
	readonly leaseOf?: (mac: string) => string | undefined;
	/** Uploads fail at their end while this is true. */
	readonly isFull?: () => boolean;
}

export interface TestDriverHost extends AsyncDisposable {
	/** Of the libvirt daemon, as far as clients can tell. */
	readonly socketPath: string;
	/** What was, or will be, uploaded to a volume for the first time. */
	uploaded(volume: string): Promise<Buffer>;
	/** Asked of libvirt itself: names, sorted. */
	domains(): Promise<readonly string[]>;
	volumes(): Promise<readonly string[]>;
	/** Ends a VM as an administrator would. */
	destroy(domain: string): Promise<void>;
	/** Told by libvirt itself, until the host is disposed. */
	onLifecycle(listener: (event: LifecycleEvent) => void): void;
	/** Ends all connections; new ones are refused until `back`. */
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

/** Both ways of one connection. */
function joinSockets(client: Socket, daemon: Socket, front: Front, {onCall}: TestDriverHostOptions): void {
	let isFrozen = false;
	/** Calls of which the answer is waited for, by serial. */
	const awaited = new Map<number, Fate['action']>();
	/** Whether the packet still goes its way. */
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

/** Answers for libvirt on one connection. */
class Front {
	readonly #client: Socket;
	readonly #capabilities: Buffer;
	readonly #options: TestDriverHostOptions;
	readonly #keep: (volume: string, content: Buffer) => void;
	/** Uploads under way, by serial. */
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

	/** Whether the packet was ours to answer. */
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
				return this.#tellsLease(packet);
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

	#tellsLease(packet: Packet): boolean {
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

	/** All of the base volume in one piece, and its end. Whether it is the base volume's. */
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
