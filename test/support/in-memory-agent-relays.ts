/**
 * `AgentRelays` without sockets and keys, for tests of the domain. Tests set which VM answers at an address. Passes
 * test/contract/agent-relays.ts, like the real implementation.
 */
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {Secret} from '../../src/core/log.ts';
import type {AgentRelay, AgentRelays, ForwarderTls, RelayTarget} from '../../src/sandbox/ports.ts';

export class InMemoryAgentRelays implements AgentRelays {
	/** The served socket paths, with their targets. */
	readonly served = new Map<string, RelayTarget>();
	/** By served socket path: why its VM is gone. */
	readonly failures = new Map<string, Error>();
	/** Instance names of the issued certificates, in order. */
	readonly issued: string[] = [];
	/** If set, `issue` fails with it. */
	issueError: Error | undefined;
	/** If set, `open` fails with it instead of resolving. */
	openError: Error | undefined;
	/** Accepts every address as that of the VM, for tests that do not depend on addresses. */
	readonly #anyAddress: boolean;
	readonly #answering = new Map<string, string>();
	readonly #watchers = new Set<() => void>();

	constructor({anyAddress = false}: {readonly anyAddress?: boolean} = {}) {
		this.#anyAddress = anyAddress;
	}

	/** Until disposed, the VM answers at the address. */
	boot(address: string, instanceName: string): Disposable {
		this.#answering.set(address, instanceName);
		for (const look of this.#watchers) {
			look();
		}

		return {
			[Symbol.dispose]: () => {
				if (this.#answering.get(address) === instanceName) {
					this.#answering.delete(address);
				}
			},
		};
	}

	async issue(instanceName: string, signal: AbortSignal): Promise<ForwarderTls> {
		signal.throwIfAborted();
		if (this.issueError !== undefined) {
			throw this.issueError;
		}

		this.issued.push(instanceName);
		return {
			serverKey: new Secret(`key of ${instanceName}`),
			serverCert: `certificate of ${instanceName}`,
			clientCa: 'certificate of the relay',
		};
	}

	assertServable(socketPath: string): void {
		if (Buffer.byteLength(socketPath) > 107) {
			throw new AdaptorError({
				code: 'invalid-argument',
				what: "The agent socket's path is too long",
				where: {path: socketPath},
				remedy: 'Choose a shorter PODS_DIR.',
			});
		}
	}

	async discard(socketPath: string): Promise<void> {
		this.served.delete(socketPath);
		this.failures.delete(socketPath);
	}

	async open(target: RelayTarget, addresses: AsyncIterable<string>, signal: AbortSignal): Promise<AgentRelay> {
		this.assertServable(target.socketPath);
		const {promise, resolve, reject} = Promise.withResolvers<string>();
		const seen = new Set<string>();
		const look = (): void => {
			const found = [...seen].find(
				address => this.#anyAddress || this.#answering.get(address) === target.instanceName,
			);
			if (found !== undefined) {
				resolve(found);
			}
		};

		const iterator = addresses[Symbol.asyncIterator]();
		const readAddresses = async (): Promise<void> => {
			for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
				seen.add(next.value);
				look();
			}

			if (seen.size === 0) {
				throw new AdaptorError({
					code: 'unavailable',
					what: "Could not reach the pod VM's forwarder: the VM has no address",
				});
			}
		};

		this.#watchers.add(look);
		readAddresses().catch(reject);
		let address: string;
		try {
			address = await abortable(promise, signal);
		} finally {
			this.#watchers.delete(look);
			iterator.return?.().catch(() => undefined);
		}

		if (this.openError !== undefined) {
			throw this.openError;
		}

		const mine = {...target};
		this.served.set(target.socketPath, mine);
		const close = async (): Promise<void> => {
			if (this.served.get(target.socketPath) === mine) {
				this.served.delete(target.socketPath);
				this.failures.delete(target.socketPath);
			}
		};

		return {
			address,
			leave: close,
			fail: reason => {
				if (this.served.get(target.socketPath) === mine && !this.failures.has(target.socketPath)) {
					this.failures.set(target.socketPath, reason);
				}
			},
			[Symbol.asyncDispose]: close,
		};
	}
}
