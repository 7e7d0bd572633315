/**
 * A way to a libvirtd that breaks once, at a chosen call: before it got there, while it is carried out, or before its
 * answer got back. Sits on a real socket between the two; knows of libvirt's protocol what a packet is and which calls
 * are the handshake's.
 */
import {once} from 'node:events';
import {connect, createServer, type Socket} from 'node:net';
import type {Duplex} from 'node:stream';
import {encodePacket, messageType, PacketDecoder, remoteProgram, type Packet} from '../../src/libvirt/wire/packet.ts';
import type {OpenPipe} from '../../src/libvirt/transport/pipe.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';

export type Break = 'before' | 'during' | 'after';

const handshake: ReadonlySet<number> = new Set(
	[
		procedures.authList,
		procedures.authPolkit,
		procedures.connectOpen,
		procedures.connectSupportsFeature,
		procedures.connectDomainEventCallbackRegisterAny,
		procedures.connectGetType,
		procedures.connectGetLibVersion,
		procedures.connectGetHostname,
		procedures.connectClose,
	].map(({number}) => number),
);
const names = new Map(Object.values(procedures).map(({name, number}) => [number, name]));

export class BreakingWay implements AsyncDisposable {
	/** Calls that were seen since `arm`. */
	readonly calls: string[] = [];
	readonly #at: number;
	readonly #when: Break;
	readonly #disposables = new AsyncDisposableStack();
	#armed = false;
	/** The call at which it broke. */
	broken: string | undefined;

	/** @param at 1 is the first call after `arm` */
	constructor(at: number, when: Break) {
		this.#at = at;
		this.#when = when;
	}

	arm(): void {
		this.#armed = true;
		this.calls.length = 0;
	}

	/** What `open` reaches, by this way. */
	to(open: OpenPipe): OpenPipe {
		return async signal => {
			const far = await open(signal);
			const server = createServer().listen(0, '127.0.0.1');
			await once(server, 'listening');
			const address = server.address();
			const near = connect(typeof address === 'object' && address !== null ? address.port : 0, '127.0.0.1');
			near.setNoDelay(true);
			const [middle] = (await once(server, 'connection')) as [Socket];
			server.close();
			this.#join(middle, far.duplex);
			near.on('error', () => undefined);
			this.#disposables.defer(() => void near.destroy());
			const close = (): void => void near.destroy();
			return {duplex: near, description: 'breaking way', close, cut: close};
		};
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#disposables.disposeAsync();
	}

	#join(near: Socket, far: Duplex): void {
		const end = (): void => {
			near.destroy();
			far.destroy();
		};
		const [toFar, toNear] = [new PacketDecoder(), new PacketDecoder()];
		let last: number | undefined;
		near.setNoDelay(true)
			.on('error', () => undefined)
			.on('close', end)
			.on('data', chunk => {
				for (const packet of toFar.push(chunk)) {
					const breaks = this.#isChosen(packet);
					if (breaks && this.#when === 'before') {
						end();
						return;
					}

					far.write(encodePacket(packet, packet.body));
					if (breaks && this.#when === 'during') {
						end();
						return;
					}

					last = breaks ? packet.serial : last;
				}
			});
		far.on('error', () => undefined)
			.on('close', end)
			.on('data', (chunk: Buffer) => {
				for (const packet of toNear.push(chunk)) {
					if (packet.serial === last && packet.type === messageType.reply) {
						end();
						return;
					}

					near.write(encodePacket(packet, packet.body));
				}
			});
	}

	#isChosen({program, type, procedure}: Packet): boolean {
		if (!this.#armed || program !== remoteProgram || type !== messageType.call || handshake.has(procedure)) {
			return false;
		}

		const name = names.get(procedure) ?? String(procedure);
		if (this.calls.push(name) !== this.#at) {
			return false;
		}

		this.broken = name;
		return true;
	}
}
