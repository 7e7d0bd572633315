/**
 * A KVM host for a daemon that is a process of its own: libvirt's test driver behind a unix socket. What the test driver cannot do is
 * done in front of it, by our own codec: it takes no uploads (these are kept), and it knows no s390x (the capabilities are a recorded
 * host's). All other packets pass through.
 */
import {once} from 'node:events';
import {readFile} from 'node:fs/promises';
import {connect, createServer, type Socket} from 'node:net';
import {encodePacket, messageStatus, messageType, PacketDecoder, remoteProgram, type MessageType, type Packet} from '../../src/libvirt/packet.ts';
import {procedures} from '../../src/libvirt/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {decode, encode} from '../../src/libvirt/xdr.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';

export const pool = 'default-pool';
export const baseVolume = 'podvm-base.qcow2';
/** What libvirt's test driver makes up for the first domain that is started, whoever asks. */
export const addressOfFirstVm = '192.168.122.23';

const {signal} = new AbortController();

export interface KvmHost extends AsyncDisposable {
	/** Of the libvirt daemon, as far as clients can tell. */
	readonly socketPath: string;
	/** What was, or will be, uploaded to a volume for the first time. */
	uploaded(volume: string): Promise<Buffer>;
	/** Asked of libvirt itself: names, sorted. */
	domains(): Promise<readonly string[]>;
	volumes(): Promise<readonly string[]>;
}

export async function startKvmHost(directory: string): Promise<KvmHost> {
	await using undo = new AsyncDisposableStack();
	const libvirtd = undo.use(await startTestLibvirtd());
	const session = undo.use(new LibvirtSession({
		uri: 'test:///default', openPipe: openUnixPipe({...parseLibvirtUri(`test:///default?socket=${libvirtd.socketPath}`), transport: 'unix'}, {}),
	}));
	await session.connect(signal);
	const {pool: storage} = await session.call(procedures.storagePoolLookupByName, {name: pool}, signal);
	const xml = `<volume><name>${baseVolume}</name><capacity>1000000</capacity><allocation>0</allocation><target><format type='qcow2'/></target></volume>`;
	await session.call(procedures.storageVolCreateXml, {pool: storage, xml, flags: 0}, signal);

	const capabilities = encode(procedures.connectGetCapabilities.result, {capabilities: await readFile(new URL('../fixtures/podvm/capabilities-s390x-tcg.xml', import.meta.url), 'utf8')});
	const uploads = new Map<string, PromiseWithResolvers<Buffer>>();
	const uploadTo = (volume: string): PromiseWithResolvers<Buffer> => {
		const upload = uploads.get(volume) ?? Promise.withResolvers<Buffer>();
		uploads.set(volume, upload);
		return upload;
	};

	const sockets = new Set<Socket>();
	const server = createServer(client => {
		const daemon = connect(libvirtd.socketPath);
		const front = new Front(client, capabilities, (volume, content) => uploadTo(volume).resolve(content));
		relayPackets(client, packet => front.answers(packet) || daemon.write(encodePacket(packet, packet.body)));
		relayPackets(daemon, packet => client.write(encodePacket(packet, packet.body)));
		for (const [socket, other] of [[client, daemon], [daemon, client]] as const) {
			sockets.add(socket);
			socket.on('error', () => undefined);
			socket.once('close', () => {
				sockets.delete(socket);
				other.destroy();
			});
		}
	});
	const socketPath = `${directory}/libvirt.sock`;
	server.listen(socketPath);
	await once(server, 'listening');
	undo.defer(async () => {
		server.close();
		for (const socket of sockets) {
			socket.destroy();
		}

		await once(server, 'close');
	});
	const owned = undo.move();
	return {
		socketPath,
		uploaded: async volume => uploadTo(volume).promise,
		domains: async () => (await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal)).domains.map(({name}) => name).sort(),
		volumes: async () => (await session.call(procedures.storagePoolListAllVolumes, {pool: storage, needResults: 1, flags: 0}, signal)).vols.map(({name}) => name).sort(),
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

function relayPackets(socket: Socket, take: (packet: Packet) => unknown): void {
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
	readonly #keep: (volume: string, content: Buffer) => void;
	/** Uploads under way, by serial. */
	readonly #streams = new Map<number, {readonly volume: string; readonly chunks: Buffer[]}>();

	constructor(client: Socket, capabilities: Buffer, keep: (volume: string, content: Buffer) => void) {
		this.#client = client;
		this.#capabilities = capabilities;
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

			default: {
				return false;
			}
		}
	}

	#upload(packet: Packet): void {
		if (packet.type === messageType.call) {
			this.#streams.set(packet.serial, {volume: decode(procedures.storageVolUpload.args, packet.body).vol.name, chunks: []});
			this.#send(packet, messageType.reply);
			return;
		}

		const stream = this.#streams.get(packet.serial);
		if (packet.status === messageStatus.continue) {
			stream?.chunks.push(Buffer.from(packet.body));
			return;
		}

		this.#streams.delete(packet.serial);
		if (stream !== undefined && packet.status === messageStatus.ok) {
			this.#keep(stream.volume, Buffer.concat(stream.chunks));
		}

		this.#send(packet, messageType.stream);
	}

	#send(to: Packet, type: MessageType, body: Uint8Array = Buffer.alloc(0)): void {
		this.#client.write(encodePacket({...to, type, status: messageStatus.ok}, body));
	}
}
